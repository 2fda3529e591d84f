"""A child process that ends with its parent, whatever both are doing. It costs nothing to import: it comes first."""

from __future__ import annotations

import os
import select
import shutil
import signal
from contextlib import suppress
from pathlib import Path

from qexport.system.scratch import NOTES, undo_notes

STDIN, STDOUT, STDERR = 0, 1, 2
POLL_MS = 1000
"""How soon it is noticed, at the latest, that the child went first."""


def end_with_parent() -> None:
    """Fork a process that kills this one when nobody holds the other end of standard input, and undoes its notes.

    A thread of this process would not get a word in: converters keep the GIL for minutes.
    """
    child = os.getpid()
    if not hasattr(os, "fork") or os.fork():
        return
    try:
        os.dup2(STDERR, STDOUT)  # whoever reads what the child writes is to see its end
        _wait(child)
        if os.getppid() == child:
            os.kill(child, signal.SIGKILL)
            folder = Path(os.environ[NOTES])
            undo_notes(folder)
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        os._exit(0)


def _wait(child: int) -> None:
    """Return when the parent has gone, or the child has."""
    ends = select.poll()
    ends.register(STDIN, 0)  # that the other end is closed is told unasked
    if hasattr(os, "pidfd_open"):  # or whoever reads standard error to its end waits for the next look
        with suppress(OSError):
            ends.register(os.pidfd_open(child), select.POLLIN)
    with suppress(OSError):
        while os.getppid() == child and not ends.poll(POLL_MS):
            pass
