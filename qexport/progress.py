"""Progress of steps: the protocol that they report to, so that only the command line draws."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Advance(Protocol):
    """Called after each part of a step."""

    def __call__(self, note: str = "", /) -> None:
        """Count the part; `note`: what is to be seen beside the title from now on, "" for what was."""
        ...


class Progress(Protocol):
    """Shows the steps of a run."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Open a step of `total` parts (None: unknown); call what it yields after each part."""
        ...


class Silent:
    """Shows nothing."""

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Do nothing."""
        return nullcontext(lambda note="": None)


class Titled:
    """Another progress, whose steps have something more in their titles."""

    def __init__(self, progress: Progress, more: str) -> None:
        self._progress, self._more = progress, more

    def step(self, title: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Open the step there."""
        return self._progress.step(f"{title}{self._more}", total)
