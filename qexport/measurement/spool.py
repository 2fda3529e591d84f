"""What is kept of each image, on disk: memory does not grow with their number."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import BinaryIO, TypeVar

Kept = TypeVar("Kept")


class Spool(Mapping[str, Kept]):
    """A mapping in the order of insertion, whose values are read anew each time.

    They lie in a file without a name, which no other process opens and which goes with this object.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="qexport-")  # noqa: SIM115  it is closed with this object
        self._places: dict[str, int] = {}
        weakref.finalize(self, _close, self._file)

    def add(self, name: str, value: Kept) -> None:
        """Keep a value, which can be pickled, in place of an earlier one of that name.

        Raises:
            OSError: the disk is full.
        """
        self._places[name] = self._file.seek(0, 2)
        pickle.dump(value, self._file)

    def __getitem__(self, name: str) -> Kept:
        """Read a value."""
        self._file.seek(self._places[name])
        value: Kept = pickle.load(self._file)
        return value

    def __contains__(self, name: object) -> bool:
        """Whether there is one, without reading it."""
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._places)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._places)


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # the disk is full: what is still to be written to it is nobody's any more
        file.close()
