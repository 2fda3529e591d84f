"""Ctrl-C and its like end the process at any moment: one line, the documented exit code, nothing left behind.

An exception that a handler raises is not enough: it comes up wherever the main thread happens to be, and callbacks of
compiled libraries, `contextlib.suppress`, finalisers and exit functions swallow it. So nothing is raised. Python's own
C handler writes the signal's number to a pipe at once (`signal.set_wakeup_fd`), whatever the main thread is busy with.
A thread waits there, ends child processes, clears up and ends the process. The main thread is held meanwhile.
Work that can end by itself asks for a `stop_request`, which a first Ctrl-C makes instead.

Only modules that cost nothing are imported here: the command is interruptible before anything else is loaded.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from qexport.system.launch import launched

LINES = {
    "SIGINT": (130, "interrupted"),
    "SIGTERM": (143, "terminated"),
    "SIGHUP": (129, "the terminal was closed"),
    "SIGALRM": (124, "out of time"),
}
"""Signal → exit code (128 and its number, as shells count; of a time limit that of GNU `timeout`) and what is said."""
MAX_SECONDS = 5.0
"""What clearing up may take before the process ends without it."""
SHOW_CURSOR = "\x1b[?25h"

STOPPING = "stopping behind this step; Ctrl-C again ends at once"

ending = threading.Event()
"""Set when a signal has begun to end the process."""
at_end: list[Callable[[], None]] = []
"""What clears up when a signal ends the process; called in a thread of its own, without any lock."""


def hold_if_ending() -> None:
    """Keep a thread from going on while the process ends: what it waits for has been killed, and is no result."""
    while ending.is_set():
        time.sleep(MAX_SECONDS)


class StopRequest:
    """A wish to stop, for work that ends by itself in a state that can be used.

    Attributes:
        made: it was.
        heard: by the thread that waits for signals, for which the next one is another.
    """

    def __init__(self) -> None:
        self.made = self.heard = False

    def __call__(self) -> bool:
        """Whether it was made."""
        return self.made


stop_requests: list[StopRequest] = []
"""What a first Ctrl-C makes in place of ending the process: the last one."""


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Yield what a first Ctrl-C in the block makes; a second one ends the process."""
    request = StopRequest()
    stop_requests.append(request)
    try:
        yield request
    finally:
        stop_requests.remove(request)


time_limits: list[tuple[float, Callable[[], str]]] = []
"""What ends the process when it is over: seconds, and what says at which step that was."""


@contextmanager
def time_limit(seconds: float, doing: Callable[[], str]) -> Iterator[None]:
    """End the process as a signal does if the block takes longer: exit code 124, one line.

    Args:
        doing: says what the process is at, in a few words, "" for nothing; called in another thread.
    """
    time_limits.append((seconds, doing))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        time_limits.pop()


def _overrun() -> str:
    """What is said of the time limit that is over."""
    seconds, doing = time_limits[-1]
    step = f' in the step "{at}"' if (at := doing()) else ""
    return f"not finished in {seconds:g} s{step}: give a longer --timeout, or less to do (--calib-images, --effort)"


class Ending:
    """Where the signals of one process arrive.

    Args:
        terminal: a descriptor of the real stderr, which stays open whatever fd 2 is made to be.
    """

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._arrived, self._written = os.pipe()
        self._first = 0.0
        self._said = False
        self._waits = False
        self._told_elsewhere = not launched(os.environ).first  # `torchrun` has started several, which end together
        self._lines = {int(getattr(signal, name)): line for name, line in LINES.items() if hasattr(signal, name)}

    def watch(self) -> None:
        """Take the signals over, but for those that the process was started to ignore (`nohup`, `&` in scripts)."""
        for number in self._lines:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._hold)
        os.set_blocking(self._written, False)
        signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _hold(self, number: int, frame: FrameType | None) -> None:
        """Keep the main thread from going on, and so from printing or from ending with another code."""
        if number == signal.SIGINT and stop_requests:
            stop_requests[-1].made = True
            limit = time.monotonic() + 1
            while self._waits and not stop_requests[-1].heard and time.monotonic() < limit:
                time.sleep(0.005)  # or the work might end before it is said why
            return
        if not self._waits:
            self._end(number)
        self._first = self._first or time.monotonic()
        # Once more: a library may have taken the wake-up descriptor for itself.
        with suppress(OSError):
            os.write(self._written, bytes([number]))
        while time.monotonic() - self._first < MAX_SECONDS:
            time.sleep(0.05)
        self._say(number)
        os._exit(self._lines[number][0])

    def _wait(self) -> None:
        self._waits = True
        while True:
            number = os.read(self._arrived, 1)[0]
            request = stop_requests[-1] if number == signal.SIGINT and stop_requests else None
            if request and not request.heard:
                request.made = True
                self._write(STOPPING)
                request.heard = True
            elif number in self._lines:
                self._end(number)

    def _end(self, number: int) -> None:
        """End the process. Nothing is imported here: the main thread may be held in an import, with its lock."""
        ending.set()
        try:
            kill_children()
            for clear in at_end:
                with suppress(Exception):  # whatever it is, the process ends
                    clear()
            self._say(number)
        finally:
            os._exit(self._lines[number][0])

    def _say(self, number: int) -> None:
        if not self._said:
            self._said = True
            start = f"\n{SHOW_CURSOR}" if os.isatty(self._terminal) else ""
            over = time_limits and self._lines[number] == LINES["SIGALRM"]
            self._write(f"error: {_overrun() if over else self._lines[number][1]}", start)

    def _write(self, line: str, start: str = "") -> None:
        if self._told_elsewhere:
            return
        with suppress(OSError):
            os.write(self._terminal, f"{start}qexport: {line}\n".encode())

    def _forget(self) -> None:
        """A fork has no thread that waits: signals end it as they end any process."""
        signal.set_wakeup_fd(-1)
        for number in self._lines:
            if signal.getsignal(number) == self._hold:
                signal.signal(number, signal.SIG_DFL)


def ignore_termination() -> None:
    """Let a process end by itself and say why: SIGTERM asks for no more. For the main thread."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def run_process(work: Callable[[], int]) -> int:
    """Do the work of a whole process, interruptible from here to its last moment; return its exit code.

    The process ends with the first exit function, which runs last: what the interpreter would take apart after that
    takes up to a second, in which signals are lost.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)
    Ending(os.dup(2)).watch()
    codes.append(work())
    return codes[0]


def _leave(codes: list[int]) -> None:
    if not codes:
        return  # an exception that nobody caught: the interpreter shows it
    code = codes[0]
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError as error:  # nobody reads, or the disk is full
        code = code or 1
        if not isinstance(error, BrokenPipeError):
            os.write(2, f"qexport: error: the output cannot be written ({error.strerror})\n".encode())
    os._exit(code)


def kill_children(seconds: float = 2.0) -> None:
    """Kill every process that this one started, and theirs, and wait for its own to be gone (where there is /proc)."""
    own = _children_of("self")
    found = list(own)
    for pid in found:
        found += _children_of(str(pid))
    for pid in found:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    limit = time.monotonic() + seconds
    for pid in own:
        with suppress(OSError):  # another thread has waited for it
            while os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < limit:
                time.sleep(0.01)


def _children_of(process: str) -> list[int]:
    found: list[int] = []
    with suppress(OSError):  # it is gone, or there is no /proc
        for thread in os.listdir(f"/proc/{process}/task"):
            with suppress(OSError), open(f"/proc/{process}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    return found
