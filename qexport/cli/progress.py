"""Progress as it suits the place: bars on a terminal, a line for each step in a pipe."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from qexport.cli.output import say
from qexport.progress import Advance, Progress, Silent
from qexport.system.printable import printable
from qexport.system.signals import time_limit

HEARTBEAT = 60.0
"""Seconds after which a step in a pipe says that it is still there: CI services stop jobs that are silent for long."""


@contextmanager
def shown_progress(console: Console, hidden: bool, timeout: float | None = None) -> Iterator[Progress]:
    """Yield what shows the steps of a run on `console`, that of the real stderr; end it after `timeout` seconds."""
    with _shown(console, hidden) as shown:
        if timeout is None:
            yield shown
            return
        followed = Followed(shown)
        with time_limit(timeout, followed.at):
            yield followed


@contextmanager
def _shown(console: Console, hidden: bool) -> Iterator[Progress]:
    if hidden:
        yield Silent()
    elif console.file.isatty() and not console.is_dumb_terminal:  # not `is_terminal`, which FORCE_COLOR makes true
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
        )
        with Bar(*columns, MofNCompleteColumn(), TimeElapsedColumn(), console=console, redirect_stderr=False) as bar:
            yield Drawn(bar)
    else:
        yield Lines(console)


class Followed:
    """Another progress, of which it is known which step was opened last and is not over."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._open: list[str] = []

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Open the step there."""
        with self._progress.step(title, total) as advance:
            self._open.append(title)
            try:
                yield advance
            finally:
                self._open.remove(title)

    def at(self) -> str:
        """The title of that step, "" where there is none."""
        return next(iter(self._open[-1:]), "")


class Drawn:
    """Progress as bars; steps of unknown length spin, and something spins before the first: imports take seconds."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._starting = [bar.add_task("Starting", total=None)]

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Draw one bar for the time of the block."""
        while self._starting:
            self._bar.remove_task(self._starting.pop())
        task = self._bar.add_task(printable(title), total=total)

        def advance(note: str = "") -> None:
            self._bar.update(task, advance=1, description=printable(f"{title}: {note}") if note else None)

        yield advance
        self._bar.update(task, total=total or 1, completed=total or 1)


class Lines:
    """Progress as lines: of each step when it is done, of long ones now and then; one that fails has its error."""

    def __init__(self, console: Console, heartbeat: float = HEARTBEAT) -> None:
        self._stream = console.file
        self._heartbeat = heartbeat

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        """Print the title and the seconds that the block took."""
        started, parts, notes, done = time.monotonic(), [0], [""], threading.Event()

        def advance(note: str = "") -> None:
            parts[0] += 1
            notes[0] = f", {note}" if note else notes[0]

        def tell() -> None:
            while not done.wait(self._heartbeat):
                so_far = f"{parts[0]} of {total}" if total else "still at it"
                say(f"… {title}: {so_far} after {time.monotonic() - started:.0f} s{notes[0]}", self._stream)

        teller = threading.Thread(target=tell, name="heartbeat", daemon=True)
        teller.start()
        try:
            yield advance
        finally:
            done.set()
            teller.join()
        count = f" ({total})" if total else ""
        say(f"✓ {title}{count}: {time.monotonic() - started:.1f} s{notes[0]}", self._stream)
