"""What parts of a plan cost as a file: JSON, and back."""

from __future__ import annotations

import json
from pathlib import Path

from qexport.errors import InputError
from qexport.optimisation.sensitivity_record import Sensitivity
from qexport.system.files import write_text
from qexport.system.json_form import from_plain, to_plain

SCHEMA = 1


def save_sensitivity(found: Sensitivity, path: str | Path) -> None:
    """Write a sensitivity as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(Path(path), json.dumps({"schema": SCHEMA, **to_plain(found)}, indent=2) + "\n")


def load_sensitivity(path: str | Path) -> Sensitivity:
    """Read what `save_sensitivity` wrote.

    Raises:
        InputError: it cannot be read, is something else, or was written by a later version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        schema = content["schema"]
        if schema == SCHEMA:
            return from_plain(Sensitivity, content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no sensitivity that qexport measured ({error})", "measure it again") from error
    raise InputError(f"{path} has schema {schema}, this version reads {SCHEMA}", "measure it again")
