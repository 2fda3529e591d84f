"""Functions that are called in a process of their own: libraries that end it, or hang, end nothing else."""

from __future__ import annotations

import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from qexport.errors import named_reason
from qexport.system.guard import run_code

TRACEBACK = "Traceback (most recent call last):"
"""What stands before the lines of code, which are indented, and the error."""
MAX_REASON = 160
"""Characters of what a process said last."""


class ApartError(Exception):
    """A process gave no answer; the text says why, in one line."""


def text_from(function: Callable[..., str], *arguments: object, seconds: float) -> str:
    """Call a function of a module's top level in a process of its own; return the text that it returns.

    Args:
        arguments: numbers and texts.

    Raises:
        ApartError: the function raised something, its process was killed, or is after so many seconds.
    """
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        answer = Path(scratch) / "answer"
        called = f"{function.__name__}({', '.join(map(repr, arguments))})"
        code = (
            f"from pathlib import Path; from {function.__module__} import {function.__name__}; "
            f"Path({str(answer)!r}).write_text({called}, encoding='utf-8')"
        )
        try:
            done = run_code(code, seconds)
        except subprocess.TimeoutExpired as error:
            raise ApartError(f"it did not finish in {seconds:g} s") from error
        except OSError as error:
            raise ApartError(named_reason(error, MAX_REASON)) from error
        if done.returncode or not answer.is_file():
            raise ApartError(_ending(done))
        return answer.read_text(encoding="utf-8")


def _ending(done: subprocess.CompletedProcess[str]) -> str:
    """How a process ended that did not answer: by a signal, or with what it raised, the first line of that."""
    if done.returncode < 0:
        return f"it was killed by {signal.Signals(-done.returncode).name}"
    raised = done.stderr.rpartition(TRACEBACK)[2].splitlines()
    told = (line for line in raised if line.strip() and not line.startswith(" "))
    return next(told, f"it ended with exit code {done.returncode}")[:MAX_REASON]
