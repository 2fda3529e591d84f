"""Write artifacts in a second process beside the first: converters are Python code that keeps one core busy.

The second process reads the checkpoint again and so has a program of its own; only requests and replies cross over.
Files are the same whichever process writes them.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from qexport.backends.registry import find_backend, find_info
from qexport.compat.quiet import quiet_libraries
from qexport.errors import QexportError
from qexport.system.machine import cores
from qexport.system.scratch import NOTES, child_environment, clear_up, undo_notes

if TYPE_CHECKING:
    from qexport.calibration.calibration_table import CalibrationTable
    from qexport.job.options import ExportJob
    from qexport.programs.build import Source

NICENESS = 10
"""Calibration keeps both cores busy and everything waits for it: it goes first."""


@dataclass(frozen=True)
class ReadSource:
    """The first request: what the artifacts are written from."""

    job: ExportJob
    path: Path
    samples: tuple[Path, ...]


@dataclass(frozen=True)
class WriteArtifact:
    """A request for one artifact; the reply is a `ArtifactResult`. INT8 needs a table.

    Attributes:
        folder: where it goes, None for the job's.
        model: SHA-256 of the model's file as the first process read it, "" for any.
    """

    format: str
    precision: str
    table: CalibrationTable | None = None
    folder: Path | None = None
    model: str = ""


class WorkerDiedError(Exception):
    """The second process is gone, for a reason that it could not tell."""


Submit = Callable[[ReadSource | WriteArtifact], "Future[Any]"]


def offloaded_formats(job: ExportJob) -> tuple[str, ...]:
    """Formats of a job that a second process would write, or write the FP32 file of, while this one does the rest."""
    if not job.calibrates or cores() < 2:
        return ()
    offloadable = [name for name in job.format if find_info(name).offloadable]
    return tuple(
        name for name in offloadable[:1] if len(job.format) > 1 or job.needs_float_counterpart(find_info(name).timed)
    )


@contextmanager
def worker_process() -> Iterator[Submit]:
    """Start the process; yield what sends it a request and gives a future of the reply.

    Requests are done in their order. A reply may be a `QexportError`, which the future then raises, or
    `WorkerDiedError`.
    The process ends with the block.
    """
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        try:
            with _started(Path(folder)) as submit:
                yield submit
        finally:
            undo_notes(Path(folder))


@contextmanager
def _started(folder: Path) -> Iterator[Submit]:
    # The first process decides what an interrupt means. `-c` would put the working directory before all other imports.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"sys.path[:] = {sys.path!r}; from qexport.execution.worker import serve; serve({os.getpid()})"
    )
    words, environment = [sys.executable, "-c", start], child_environment(folder)
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin
    assert process.stdout
    pipes = process.stdin, process.stdout

    def submit(request: ReadSource | WriteArtifact) -> Future[Any]:
        return pool.submit(_exchange, *pipes, request)

    with ThreadPoolExecutor(1) as pool:
        try:
            yield submit
        finally:
            process.kill()  # what it is writing is undone from its notes: asking it to end was seen to be ignored
            process.wait()
            with suppress(OSError):  # nobody is left to read what was still buffered
                process.stdin.close()
            pool.shutdown(cancel_futures=True)
            process.stdout.close()


def _exchange(requests: IO[bytes], replies: IO[bytes], request: object) -> Any:
    try:
        pickle.dump(request, requests)
        requests.flush()
        reply = pickle.load(replies)
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WorkerDiedError("the second process ended") from error
    if isinstance(reply, QexportError):
        raise reply
    if isinstance(reply, Exception):
        raise WorkerDiedError("the second process failed") from reply
    return reply


def _end_with(parent: int) -> None:
    """End when the first process is gone, however it went."""
    while os.getppid() == parent:
        time.sleep(1)
    clear_up()
    shutil.rmtree(os.environ[NOTES], ignore_errors=True)
    os._exit(1)


def serve(parent: int) -> None:
    """Be the second process: answer requests of the process `parent` until there are no more."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print must not get between replies
    quiet_libraries()
    # Both take seconds to import; the first process is doing the same.
    import torch

    from qexport.programs.build import read_source

    torch.set_num_threads(1)
    source: Source | None = None
    while True:
        try:
            request = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if isinstance(request, ReadSource):
                source, reply = read_source(request.job, request.path, request.samples), None
            else:
                reply = _write(source, request)
        except Exception as error:  # the first process decides what it means, faults of ours included
            reply = error
        pickle.dump(reply, replies)
        replies.flush()


def _write(source: Source | None, request: WriteArtifact) -> Any:
    from qexport.steps import write_calibrated, write_float

    assert source is not None
    if request.model not in ("", source.checkpoint.fingerprint):
        raise WorkerDiedError("the model's file was another one when the second process read it")
    if request.folder is not None:
        source = replace(source, job=replace(source.job, out=request.folder))
    backend = find_backend(request.format)
    if request.table is not None:
        return write_calibrated(source, backend, request.table)
    return write_float(source, backend, request.precision)
