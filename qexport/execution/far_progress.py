"""Progress of a second process: its steps are told over its pipe, and shown by the first one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from qexport.progress import Advance, Progress


@dataclass(frozen=True)
class StepEvent:
    """Something that happened to a step.

    Attributes:
        step: its number.
        happened: "opened", "advanced" or "closed".
        title, total: of one that is opened.
        note: that came with an advance.
    """

    step: int
    happened: str
    title: str = ""
    total: int | None = None
    note: str = ""


class Told:
    """A `Progress` that tells of its steps."""

    def __init__(self, tell: Callable[[StepEvent], None]) -> None:
        self._tell, self._count = tell, 0

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Tell of a step when it opens, advances and closes."""
        self._count += 1
        number = self._count
        self._tell(StepEvent(number, "opened", title, total))
        try:
            yield lambda note="": self._tell(StepEvent(number, "advanced", note=note))
        finally:
            self._tell(StepEvent(number, "closed"))


class Shown:
    """Shows what is told by another progress; a context that closes what is still open."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: dict[int, tuple[ExitStack, Advance]] = {}

    def __enter__(self) -> Shown:
        """Start with no step."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close every step, the last one first."""
        while self._open:
            self._open.popitem()[1][0].close()

    def show(self, event: StepEvent) -> None:
        """Do to the step what happened to it there."""
        if event.happened == "opened":
            stack = ExitStack()
            self._open[event.step] = stack, stack.enter_context(self._progress.step(event.title, event.total))
        elif event.happened == "advanced":
            self._open[event.step][1](event.note)
        else:
            self._open.pop(event.step)[0].close()
