"""Programs in the runtime, whose threads all programs of a process share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Any

from qexport_executorch.quiet import silence


@dataclass
class Pool:
    """The runtime's threads.

    Attributes:
        threads: how many there are, 0 before anything was loaded.
        made: how often they were made anew: programs that were loaded before hold those that are gone.
    """

    threads: int = 0
    made: int = 0

    def resize(self, threads: int) -> None:
        """Make so many; nothing happens where there are."""
        from executorch.extension.pybindings import portable_lib

        if threads != self.threads:
            portable_lib._unsafe_reset_threadpool(threads)
            self.threads, self.made = threads, self.made + 1


class Loaded:
    """The method "forward" of a program, loaded again wherever the threads have been made anew since."""

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        self._made, self._method = 0, None
        with lock(), silence():
            self._ready()

    def __call__(self, inputs: list[Any]) -> list[Any]:
        """Run it."""
        with lock():
            return list(self._ready().execute(inputs))

    def _ready(self) -> Any:
        from executorch.runtime import Runtime

        pool().resize(self._threads)
        if self._made != pool().made:
            self._method = Runtime.get().load_program(self._path).load_method("forward")
            self._made = pool().made
        return self._method


@cache
def pool() -> Pool:
    """The one that the process has."""
    return Pool()


@cache
def lock() -> RLock:
    """Held while threads are made or used."""
    return RLock()
