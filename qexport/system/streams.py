"""Standard streams that every process can rely on, however it was started."""

from __future__ import annotations

import io
import os
import sys


def open_streams() -> None:
    """Make standard output and error take every text, and go nowhere where the process was started without them.

    A descriptor that is closed would be the next file's, which libraries then print into.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest one that is free, which is this
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
        stream = getattr(sys, name)
        if number and isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
