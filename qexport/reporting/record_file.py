"""Records as files of their own: JSON with the version of its form, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

from qexport.errors import InputError
from qexport.system.files import write_text
from qexport.system.given_files import read_text
from qexport.system.json_form import from_plain, parse_json, to_plain

Record = TypeVar("Record")


def save_record(record: object, schema: int, path: str | Path) -> None:
    """Write a record of dataclasses, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(Path(path), json.dumps({"schema": schema, **to_plain(record)}, indent=2) + "\n")


def load_record(kind: type[Record], schema: int, path: str | Path, what: str, remedy: str) -> Record:
    """Read what `save_record` wrote.

    Args:
        what: it is, for the message.

    Raises:
        InputError: it cannot be read, is something else, or was written by a later version.
    """
    try:
        content = parse_json(read_text(path))
        written = content["schema"]
        if written == schema:
            return from_plain(kind, content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is no {what} ({error})", remedy) from error
    raise InputError(f"{path} has schema {written}, this version reads {schema}", remedy)
