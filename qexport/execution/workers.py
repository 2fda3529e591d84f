"""Several processes as one executor, each of which does one task at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

from qexport.execution.executor import Executor, Task, WorkerDiedError
from qexport.execution.worker_process import Worker, WorkerEndedError, worker_process


class Workers:
    """An executor whose processes start with their first tasks; one that ended is replaced for the next task."""

    def __init__(self, jobs: int) -> None:
        self._threads = ThreadPoolExecutor(jobs, thread_name_prefix="worker")
        self._free: SimpleQueue[_Place] = SimpleQueue()
        self._places = [_Place() for _ in range(jobs)]
        for place in self._places:
            self._free.put(place)

    def submit(self, task: Task) -> Future[Any]:
        """Queue a task for the process that is free first."""
        return self._threads.submit(self._do, task)

    def _do(self, task: Task) -> Any:
        place = self._free.get()
        try:
            return place.worker().submit(task).result()
        except WorkerEndedError:
            place.leave()
            raise
        finally:
            self._free.put(place)

    def close(self) -> None:
        """End every process, whatever it is doing, and give up what waits."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for place in self._places:
            place.leave(for_good=True)
        self._threads.shutdown()


class _Place:
    """Where one process runs, and another after it."""

    def __init__(self) -> None:
        self._lock, self._stack, self._closed = Lock(), ExitStack(), False
        self._worker: Worker | None = None

    def worker(self) -> Worker:
        """The process, which is started where there is none."""
        with self._lock:
            if self._closed:
                raise WorkerDiedError("no more processes are started")
            if self._worker is None:
                self._worker = self._stack.enter_context(worker_process(niceness=0))
            return self._worker

    def leave(self, for_good: bool = False) -> None:
        """End the process."""
        with self._lock:
            self._closed = self._closed or for_good
            self._worker = None
            self._stack.close()


@contextmanager
def worker_processes(jobs: int) -> Iterator[Workers]:
    """Yield an executor of so many processes, which end with the block."""
    workers = Workers(jobs)
    try:
        yield workers
    finally:
        workers.close()


def in_order(executor: Executor, tasks: Iterable[Task], ahead: int) -> Iterator[tuple[Task, Future[Any]]]:
    """Submit tasks and yield them with their futures, in their order.

    Args:
        ahead: tasks that may be done before their turn: no more results are in memory at once.
    """
    waiting: deque[tuple[Task, Future[Any]]] = deque()
    try:
        for task in tasks:
            waiting.append((task, executor.submit(task)))
            if len(waiting) > ahead:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:  # who asks for no more has failed
        for _, future in waiting:
            future.cancel()
