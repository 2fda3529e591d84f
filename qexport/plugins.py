"""What other packages add: entry points, by group and name; nothing is imported before it is asked for."""

from __future__ import annotations

from importlib.metadata import entry_points


def names(group: str) -> tuple[str, ...]:
    """What is registered in a group, sorted."""
    return tuple(sorted({entry.name for entry in entry_points(group=group)}))


def lookup(group: str, name: str) -> object:
    """Import what is registered under a name.

    Raises:
        KeyError: nothing is.
    """
    for entry in entry_points(group=group):
        if entry.name == name:
            found: object = entry.load()
            return found
    raise KeyError(name)
