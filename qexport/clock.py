"""The clock of a run: shows a step while it runs and keeps its seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

from qexport.progress import Advance, Progress


class Clock:
    """Seconds of each step, by name.

    Args:
        alone: a context in which nothing else is at work here that this run knows of, for what is timed to be compared.
    """

    def __init__(self, progress: Progress, alone: Callable[[], AbstractContextManager[None]] = nullcontext) -> None:
        self.progress, self.alone = progress, alone
        self.seconds: dict[str, float] = {}

    @contextmanager
    def shown(self, title: str) -> Iterator[None]:
        """Show `title` for the time of the block, whose parts are timed by themselves."""
        with self.progress.step(title):
            yield

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Time the block and show nothing; steps of one name add up."""
        started = time.perf_counter()
        yield
        self.add({name: time.perf_counter() - started})

    def add(self, seconds: Mapping[str, float]) -> None:
        """Note what steps took, those that another process did, too."""
        for name, each in seconds.items():
            self.seconds[name] = round(self.seconds.get(name, 0.0) + each, 2)

    @contextmanager
    def step(self, name: str, title: str, total: int | None = None) -> Iterator[Advance]:
        """Show `title` and time the block; steps of one name add up."""
        with self.timed(name), self.progress.step(title, total) as advance:
            yield advance


WAITED = "wait_"
"""Begins the names of steps that waited for another process, whose own steps have the rest of the name."""


def elapsed(seconds: Mapping[str, float]) -> float:
    """Wall-clock seconds of a run: of what another process did beside it, only what was waited for."""
    beside = [name.removeprefix(WAITED) for name in seconds if name.startswith(WAITED)]
    theirs = {f"{verb}_{name}" for verb in ("plan", "optimise", "simulate", "lower", "verify") for name in beside}
    return sum(each for name, each in seconds.items() if name not in theirs)
