"""Progress of steps: the protocol that they report to, so that only the command line draws."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Progress(Protocol):
    """Shows the steps of a run."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Open a step of `total` parts (None: unknown); call what it yields after each part."""
        ...


class Silent:
    """Shows nothing."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Do nothing."""
        return nullcontext(lambda: None)


class Titled:
    """Another progress, whose steps have something more in their titles."""

    def __init__(self, progress: Progress, more: str) -> None:
        self._progress, self._more = progress, more

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Callable[[], None]]:
        """Open the step there."""
        return self._progress.step(f"{title}{self._more}", total)
