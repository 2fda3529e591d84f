"""Child processes that end with their parent, whatever both are doing. It costs nothing to import: it comes first."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qexport.system.scratch import NOTES, undo_notes
from qexport.system.signals import hold_if_ending

STDIN, STDOUT, STDERR = 0, 1, 2
OWN_GROUP = 0
"""A terminal's Ctrl-C goes to a group: an interpreter that is starting would not know yet that its parent decides."""
POLL_MS = 1000
"""How soon it is noticed, at the latest, that the child went first."""


def _tied(code: str) -> list[str]:
    """The command of a Python process that runs `code` and is killed when its standard input closes.

    The parent decides what an interrupt means. `-c` puts the working directory, which may be anybody's, before all
    other imports: that goes before the first one.
    """
    start = (
        f"import sys; sys.path[:] = {sys.path!r}; import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
        f"from qexport.system.guard import end_with_parent; end_with_parent(); {code}"
    )
    return [sys.executable, "-c", start]


def start_tied(code: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a Python process that reads requests and writes replies; it ends when its standard input closes.

    Raises:
        OSError: it cannot be started.
    """
    hold_if_ending()
    pipe = subprocess.PIPE
    return subprocess.Popen(_tied(code), stdin=pipe, stdout=pipe, env=environment, process_group=OWN_GROUP)


def run_tied(command: Sequence[str], seconds: float) -> subprocess.CompletedProcess[str]:
    """Run another program to its end, which comes at the latest with this process's.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it was killed after so many seconds.
    """
    if not os.access(command[0], os.X_OK):
        raise PermissionError(f"{command[0]} cannot be run")
    code = f"import os; signal.signal(signal.SIGPIPE, signal.SIG_DFL); os.execv({command[0]!r}, {list(command)!r})"
    return run_code(code, seconds)


def run_code(
    code: str,
    seconds: float | None = None,
    words: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own to its end, which comes at the latest with this process's.

    Args:
        words: its `sys.argv` behind the first.
        environment: its variables; None for those of this process.
        folder: its working directory; None for that of this process.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it was killed after so many seconds.
    """
    hold_if_ending()
    reading, writing = os.pipe()  # that of `subprocess.run` is closed at once
    try:
        return subprocess.run(
            [*_tied(code), *words],
            stdin=reading,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
            env=environment,
            cwd=folder,
            process_group=OWN_GROUP,
        )
    finally:
        hold_if_ending()
        os.close(reading)
        os.close(writing)


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
            if folder := os.environ.get(NOTES):
                undo_notes(Path(folder))
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
