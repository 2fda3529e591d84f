"""What may have been meant by the name of a file that is not there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path

MAX_NEARBY, MAX_NAMED = 1000, 3
"""Folders that are looked into for a file that is not where it should be, and files there that are named."""
SAME_KIND = ((".yaml", ".yml"), (".pt", ".onnx"))
"""Endings of which one is taken for another."""


def or_nearby(path: str | Path, others: Iterable[str] = ()) -> str:
    """What goes behind the advice on a file that is not there: "; did you mean PATH", "" where there is none.

    Looked for is the same name in folders that lie in its folder, or beside that; then a name in its folder that is
    nearly the same.

    Args:
        others: names that may have been meant besides.
    """
    from qexport.vocabulary import closest  # which needs what few readers of files do

    path = Path(path)
    try:
        folders = [each for place in {path.parent, path.parent.parent} if place.is_dir() for each in place.iterdir()]
        found = [folder / path.name for folder in folders[:MAX_NEARBY] if (folder / path.name).exists()]
    except (OSError, ValueError):  # no system takes the name, or a folder that may not be read
        return ""
    names = [str(each) for each in sorted(set(found))[:MAX_NAMED]]
    if not names and (near := closest(path.name, [*names_beside(path), *others])):
        names = [near if near in others else str(path.with_name(near))]
    return f"; did you mean {' or '.join(names)}" if names and path.name else ""


def names_beside(path: str | Path) -> list[str]:
    """Names in the folder of a file that is not there, sorted, of files of its kind."""
    path = Path(path)
    kind = next((each for each in SAME_KIND if path.suffix in each), (path.suffix,))
    try:
        return [each.name for each in islice(sorted(path.parent.iterdir()), MAX_NEARBY) if each.suffix in kind]
    except (OSError, ValueError):
        return []
