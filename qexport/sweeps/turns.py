"""Runs side by side on one machine, of which one at a time measures latency while the others stand still.

All that work hold one lock together; who measures holds it alone, once every other run has come to its own measurement
or to its end. Locks are those of the system (`flock`), which a process loses however it ends.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from qexport.progress import Progress

NOTHING = -1
"""In place of a descriptor."""


class Turns:
    """The turns of runs that name the same folder and are on one machine.

    Args:
        folder: exists; gets two empty files for each machine.
    """

    def __init__(self, folder: Path) -> None:
        self._room, self._door = (folder / f".turns-{platform.node()}-{name}" for name in ("room", "door"))
        self._held = NOTHING

    def can_be_taken(self) -> bool:
        """Whether the system locks files in the folder."""
        try:
            import fcntl

            for path in (self._room, self._door):
                descriptor = _open(path)
                try:
                    with suppress(BlockingIOError):  # somebody has it, so it can be locked
                        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                finally:
                    os.close(descriptor)
        except (ImportError, OSError):  # Windows, and some network drives
            return False
        return True

    @contextmanager
    def working(self) -> Iterator[None]:
        """Work beside others for the time of the block, which begins when nobody measures or waits to."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self, progress: Progress) -> Iterator[None]:
        """Measure, in a block of `working`: wait until all others stand still, and let them go on behind the block."""
        import fcntl

        self._leave()
        try:
            with ExitStack() as locks:
                with progress.step("Waiting for other runs, to measure alone"):
                    for path in (self._door, self._room):  # from the first one on nobody begins to work
                        locks.callback(os.close, _locked(path, fcntl.LOCK_EX))
                yield
        finally:
            self._enter()

    def _enter(self) -> None:
        import fcntl

        door = _locked(self._door, fcntl.LOCK_EX)
        try:
            self._held = _locked(self._room, fcntl.LOCK_SH)
        finally:
            os.close(door)

    def _leave(self) -> None:
        if self._held != NOTHING:
            os.close(self._held)
        self._held = NOTHING


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)


def _locked(path: Path, how: int) -> int:
    """A descriptor that has a file locked until it is closed; waits for it."""
    import fcntl

    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, how)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
