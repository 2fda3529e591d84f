"""What is known of a run of a sweep, in its folder: what it is of, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexport.errors import EngineNotBuiltError, GateError, InputError
from qexport.reporting.record_file import load_record, save_record

SCHEMA = 1
FILE = "sweep-run.json"
COMPLETE = (0, EngineNotBuiltError.exit_code, GateError.exit_code)
"""Exit codes of runs that have all figures that there are to be had: once more would give the same."""


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        fingerprint: of all that its figures depend on.
        exit_code: of its process; None where it has begun and not ended.
        line: what it said where that is not 0.
        seconds: that it took.
        alone: it measured latency while no other run of the sweep worked on its machine.
    """

    fingerprint: str
    exit_code: int | None = None
    line: str = ""
    seconds: float = 0.0
    alone: bool = True

    @property
    def complete(self) -> bool:
        """Whether it need not be run again."""
        return self.exit_code in COMPLETE


def save_run(record: RunRecord, folder: Path) -> None:
    """Write a record into its run's folder.

    Raises:
        InputError: it cannot be written.
    """
    save_record(record, SCHEMA, folder / FILE)


def load_run(folder: Path) -> RunRecord | None:
    """The record of a run that was begun in a folder; None where there is none, or none that can be read."""
    try:
        return load_record(RunRecord, SCHEMA, folder / FILE, "record of a sweep's run", "run it again")
    except InputError:
        return None
