"""Read a report.json back, as plain data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import InputError

SCHEMAS = (1, 2)
PARTS = {
    "command": str,
    "seconds": dict,
    "model": dict,
    "artifacts": list,
    "environment": dict,
    "threads": int,
    "warnings": list,
    "failures": list,
}
OF_A_MODEL = ("path", "sha256", "head", "imgsz", "batch")
OF_AN_ARTIFACT = ("path", "format", "precision", "sha256", "bytes", "engine", "warnings")


@dataclass(frozen=True)
class SavedReport:
    """A report.json.

    Attributes:
        path: where it was read from.
        sha256: of the file.
        content: as `qexport.reporting.report.Report`, in JSON's types.
    """

    path: Path
    sha256: str
    content: dict[str, Any]


def read_report(path: Path) -> SavedReport:
    """Read and check a report.

    Raises:
        InputError: it cannot be read, is none, or was written by a later version.
    """
    try:
        raw = path.read_bytes()
        # What JSON has no word for (NaN, Infinity) is no figure either.
        content = json.loads(raw, parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        raise InputError(f"report {path} cannot be read ({reason})", "give a report.json that qexport wrote") from error
    if isinstance(content, dict) and content.get("schema", 0) not in SCHEMAS:
        wanted = " or ".join(map(str, SCHEMAS))
        raise InputError(f"report {path} has schema {content.get('schema')}", f"this version reads {wanted}")
    if not _complete(content):
        raise InputError(f"{path} is not a report of qexport", "give a report.json that qexport wrote")
    return SavedReport(path, hashlib.sha256(raw).hexdigest(), content)


def _complete(content: Any) -> bool:
    if not isinstance(content, dict) or not all(isinstance(content.get(key), kind) for key, kind in PARTS.items()):
        return False
    wanted = [(content["model"], OF_A_MODEL), *((entry, OF_AN_ARTIFACT) for entry in content["artifacts"])]
    return all(isinstance(part, dict) and all(key in part for key in keys) for part, keys in wanted)
