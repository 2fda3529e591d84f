"""Plug-ins: what packages register as entry points, by group and name.

Groups are `qexport.backends` (classes of backends), `qexport.ranges` (range estimators), `qexport.passes` (passes
over weights) and `qexport.rules` (rules of the gate). Names are listed without importing anything; only what is asked
for is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from qexport.errors import MissingExtraError, PluginError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint, EntryPoints

OURS = __name__.partition(".")[0]
BACKENDS = "qexport.backends"
"""Entry points of backends' classes."""


@dataclass(frozen=True)
class Functions:
    """Functions or classes that are chosen by name: those that are here, and those that other packages register.

    Attributes:
        group: of entry points.
        what: what one of them is called in a sentence.
        own: name → "module:object" of those that are here; nobody takes their places.
    """

    group: str
    what: str
    own: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them, other packages' behind those that are here; nothing is imported."""
        return (*self.own, *(name for name in names(self.group) if name not in self.own))

    def find(self, name: str) -> Callable[..., Any]:
        """Import the one called `name`.

        Raises:
            UsageError: there is none, or what is registered cannot be called.
            PluginError: see `lookup`.
        """
        if name in self.own:
            ours: Callable[..., Any] = resolve_name(self.own[name])
            return ours
        if name not in names(self.group):
            raise UsageError(f"unknown {self.what} {name}", f"choose from {', '.join(self.names)}")
        found = lookup(self.group, name)
        if not callable(found):
            raise UsageError(f"{self.what} {name} of {self.group} cannot be called", "repair or uninstall its package")
        made: Callable[..., Any] = found
        return made


def names(group: str) -> tuple[str, ...]:
    """Names that packages register in a group, sorted; nothing is imported."""
    return tuple(sorted({entry.name for entry in _entries(group)}))


def _entries(group: str) -> EntryPoints:
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> EntryPoints:
    """What the distributions on `sys.path` register in a group; all of them are read for it."""
    from importlib.metadata import entry_points  # a third of the time of --help, which needs none of it

    return entry_points(group=group)


def packages_of(*groups: str) -> dict[str, str]:
    """Distributions that register anything in the groups → their versions."""
    found = (entry.dist for group in groups for entry in _entries(group))
    return {each.name: each.version for each in found if each}


def packages_by_name(group: str) -> dict[str, str]:
    """Names that other packages register in a group → those packages with their versions; nothing is imported."""
    entries = sorted((entry for entry in _entries(group) if _top(entry) != OURS), key=lambda entry: entry.name)
    return {entry.name: _package(entry) for entry in entries}


def places_of(*groups: str) -> tuple[Path, ...]:
    """Folders and modules of other packages that register anything in the groups; nothing is imported."""
    tops = {_top(entry) for group in groups for entry in _entries(group)}
    specs = filter(None, map(find_spec, sorted(tops - {OURS})))
    found = (each.submodule_search_locations or [each.origin or ""] for each in specs)
    return tuple(path for each in found for path in map(Path, filter(None, each)) if path.exists())


def lookup(group: str, name: str) -> Any:
    """Load what is registered as `name`.

    Raises:
        KeyError: nothing is.
        PluginError: two packages register different things as `name`, or the one that does cannot be loaded.
    """
    entries = {entry.value: entry for entry in _entries(group) if entry.name == name}
    if not entries:
        raise KeyError(name)
    if len(entries) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in entries.values()))
        raise PluginError(f"{name} is registered in {group} by {packages}", "uninstall one of them")
    (entry,) = entries.values()
    try:
        return entry.load()
    except Exception as error:  # importing a package can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise PluginError(
            f"{name} in {group}: {_package(entry)} cannot be loaded ({reason})", "repair or uninstall it"
        ) from error


def check_modules(what: str, modules: Iterable[str], install: str) -> None:
    """Raise `MissingExtraError` where a module that something needs cannot be imported; nothing is imported.

    Args:
        install: what pip installs for it.
    """
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtraError(f"{what} needs {', '.join(missing)}", f"pip install '{install}'")


def _top(entry: EntryPoint) -> str:
    """The top-level module that an entry point is in."""
    return entry.value.partition(":")[0].partition(".")[0]


def _package(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
