"""Tasks side by side in threads of this process: for those that wait for a process of their own."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from qexport.execution.executor import Inline, Task
from qexport.progress import Progress


class Pool:
    """An executor of so many tasks at once, whose steps `progress` shows, from several threads."""

    def __init__(self, threads: ThreadPoolExecutor, progress: Progress) -> None:
        self._threads, self._inline = threads, Inline(progress=progress)

    def submit(self, task: Task) -> Future[Any]:
        """Queue a task; it begins when one of those before it is done."""
        return self._threads.submit(self._inline.run, task)


@contextmanager
def pool(jobs: int, progress: Progress) -> Iterator[Pool]:
    """Yield the executor; what has begun is waited for at the end, what has not is given up."""
    threads = ThreadPoolExecutor(jobs, thread_name_prefix="task")
    try:
        yield Pool(threads, progress)
    finally:
        threads.shutdown(cancel_futures=True)
