"""Where work runs: a seam, so that the walk asks for a task and does not know which process does it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from qexport.progress import Progress, Silent


@dataclass(frozen=True)
class Task:
    """A call that another process can make, too.

    Attributes:
        function: of a module's top level, so that it can be imported by name.
        arguments: picklable, as is the result.
        setup: a task whose result is the function's first argument; each process does it once and keeps what came of
            it, which need not be picklable, until another setup has the same function. Setups are compared by value,
            and so hashable.
        shown: the function takes `progress`, by name, that its steps are to be shown by.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    setup: Task | None = None
    shown: bool = False


class Executor(Protocol):
    """Does tasks in the order in which they are submitted."""

    def submit(self, task: Task) -> Future[Any]:
        """Return a future of the task's result, which raises what the task has raised."""
        ...


class WorkerDiedError(Exception):
    """A task's process is gone, for a reason that it could not tell: another executor may do the task."""


class Inline:
    """Does a task in this process while it is submitted."""

    def __init__(self, known: dict[Task, Any] | None = None, progress: Progress | None = None) -> None:
        """Start with results of setups that this process has already, and show tasks' steps by `progress`."""
        self._known, self._progress = dict(known or {}), progress or Silent()

    def run(self, task: Task) -> Any:
        """Do a task, its setup first, and return its result."""
        setup, named = task.setup, {"progress": self._progress} if task.shown else {}
        if setup is None:
            return task.function(*task.arguments, **named)
        if setup not in self._known:
            for other in [each for each in self._known if each.function is setup.function]:
                del self._known[other]
            self._known[setup] = self.run(setup)
        return task.function(self._known[setup], *task.arguments, **named)

    def submit(self, task: Task) -> Future[Any]:
        """Do a task; what it raises is raised by the future, interrupts are raised at once."""
        future: Future[Any] = Future()
        try:
            future.set_result(self.run(task))
        except Exception as error:  # a future holds whatever its task raised, for who asks for the result
            future.set_exception(error)
        return future
