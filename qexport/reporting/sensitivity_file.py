"""What parts of a plan cost as a file: JSON, and back."""

from __future__ import annotations

from pathlib import Path

from qexport.optimisation.sensitivity_record import Sensitivity
from qexport.reporting.record_file import load_record, save_record

SCHEMA = 1


def save_sensitivity(found: Sensitivity, path: str | Path) -> None:
    """Write a sensitivity as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    save_record(found, SCHEMA, path)


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read what `save_sensitivity` wrote.

    Raises:
        InputError: it cannot be read, is something else, or was written by a later version.
    """
    return load_record(Sensitivity, SCHEMA, path, "sensitivity that qexport measured", "measure it again")
