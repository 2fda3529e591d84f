"""Tasks that tests give to another process, which imports them by name, and with them nothing heavy."""

from __future__ import annotations

from qexport.errors import InputError
from qexport.progress import Progress


def steps(count: int, *, progress: Progress) -> int:
    """A task that is imported by name in the other process."""
    with progress.step("counting", count) as advance, progress.step("besides"):
        for number in range(count):
            advance(f"behind {number}" if number else "")
    return count


def fails(*, progress: Progress) -> None:
    with progress.step("trying"):
        raise InputError("no", "stop")
