"""Do tasks in a second process beside the first: converters are Python code that keeps one core busy.

The second process reads the checkpoint again and so has a program of its own; only tasks and results cross over.
Files are the same whichever process writes them.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from qexport.compat.quiet import quiet_libraries
from qexport.errors import QexportError
from qexport.execution.executor import Inline, Task, WorkerDiedError
from qexport.execution.far_progress import Shown, StepEvent, Told
from qexport.progress import Progress, Silent
from qexport.system.guard import start_tied
from qexport.system.scratch import child_environment, undo_notes

SILENT = Silent()
NICENESS = 10
"""Calibration keeps both cores busy and everything waits for it: it goes first."""


class WorkerEndedError(WorkerDiedError):
    """The process itself is gone: it does no other task either."""


class Worker:
    """The second process as an executor; a result may be a `QexportError` or `WorkerDiedError`, which futures raise."""

    def __init__(self, pool: ThreadPoolExecutor, requests: IO[bytes], replies: IO[bytes], progress: Progress) -> None:
        self._pool, self._pipes, self._progress = pool, (requests, replies), progress

    def submit(self, task: Task) -> Future[Any]:
        """Send a task; it is done behind those that were sent before."""
        return self._pool.submit(_exchange, *self._pipes, task, self._progress)


@contextmanager
def worker_process(progress: Progress = SILENT, niceness: int = NICENESS) -> Iterator[Worker]:
    """Start the process; it ends with the block, whatever it is doing.

    Args:
        progress: shows the steps of its tasks, from another thread.
        niceness: how far it stands back behind this one.
    """
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        try:
            with _started(Path(folder), progress, niceness) as worker:
                yield worker
        finally:
            undo_notes(Path(folder))


@contextmanager
def _started(folder: Path, progress: Progress, niceness: int) -> Iterator[Worker]:
    code = f"from qexport.execution.worker_process import serve; serve({niceness})"
    process = start_tied(code, child_environment(folder))
    assert process.stdin
    assert process.stdout
    with ThreadPoolExecutor(1) as pool:
        try:
            yield Worker(pool, process.stdin, process.stdout, progress)
        finally:
            process.kill()  # what it is writing is undone from its notes: asking it to end was seen to be ignored
            process.wait()
            with suppress(OSError):  # nobody is left to read what was still buffered
                process.stdin.close()
            pool.shutdown(cancel_futures=True)
            process.stdout.close()


def _exchange(requests: IO[bytes], replies: IO[bytes], task: Task, progress: Progress) -> Any:
    try:
        pickle.dump(task, requests)
        requests.flush()
        with Shown(progress) as shown:
            while isinstance(reply := pickle.load(replies), StepEvent):
                shown.show(reply)
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WorkerEndedError("the second process ended") from error
    if isinstance(reply, QexportError):
        raise reply
    if isinstance(reply, Exception):
        raise WorkerDiedError("the second process failed") from reply
    return reply


def serve(niceness: int) -> None:
    """Be the second process: do tasks of the first until there are no more."""
    if hasattr(os, "nice"):
        os.nice(niceness)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between replies
    quiet_libraries()
    import torch  # it takes seconds, and the first process is doing the same

    torch.set_num_threads(1)

    def send(reply: Any) -> None:
        pickle.dump(reply, replies)
        replies.flush()

    own = Inline(progress=Told(send))
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            reply = own.run(task)
        except Exception as error:  # the first process decides what it means, faults of ours included
            reply = error
        send(reply)
