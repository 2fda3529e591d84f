"""The clock of a run: shows a step while it runs and keeps its seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qexport.progress import Progress


class Clock:
    """Seconds of each step, by name."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, title: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Show `title` and time the block; steps of one name add up."""
        started = time.perf_counter()
        with self._progress.step(title, total) as advance:
            yield advance
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)
