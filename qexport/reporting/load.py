"""Read a report.json back, also of an earlier version."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.errors import InputError
from qexport.reporting.report import SCHEMA, BaselineInfo, Report, from_json
from qexport.reporting.thresholds import thresholds_of
from qexport.system.given_files import MAX_TEXT, read_bytes
from qexport.system.json_form import parse_json
from qexport.system.nearby import or_nearby

SCHEMAS = (1, SCHEMA)
REMEDY = "give a report.json that qexport wrote"
IN_PLACE = " in place of "
PARTS = ("command", "seconds", "model", "artifacts", "environment", "threads", "warnings", "failures")
"""What every report has. All else is of later versions, and empty where it is missing."""
TIMES = ("latency_ms", "latency_float_ms")
_CLASS = re.compile("[0-9]{1,9}")
EMPTY: Mapping[str, Any] = {"calibration": None, "evaluation": None, "qexport": ""}
"""What a report may lack that has another value by itself, or none."""


@dataclass(frozen=True)
class Baseline:
    """The report of an earlier run, to compare with, and where it is from."""

    origin: BaselineInfo
    report: Report


def load_report(path: str | Path) -> Report:
    """Read a report of this or an earlier schema, brought to this one.

    What an earlier version did not write is empty; its warnings are about a whole artifact, or the run.

    Raises:
        InputError: it cannot be read, is none, or was written by a later version.
    """
    return load_baseline(Path(path)).report


def load_baseline(path: Path) -> Baseline:
    """Read a report with the hash of its file.

    Raises:
        InputError: as `load_report`.
    """
    try:
        raw = read_bytes(path, MAX_TEXT)
        # What JSON has no word for (NaN, Infinity) is no figure either.
        content = parse_json(raw, parse_constant=lambda _: None, parse_float=_figure)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not JSON"
        remedy = REMEDY + ("" if path.exists() else or_nearby(path))
        raise InputError(f"report {path} cannot be read ({reason})", remedy) from error
    if isinstance(content, dict) and content.get("schema", 0) not in SCHEMAS:
        wanted = " or ".join(map(str, SCHEMAS))
        raise InputError(f"report {path} has schema {content.get('schema')}", f"this version reads {wanted}")
    if not isinstance(content, dict) or any(content.get(name) is None for name in PARTS):
        raise InputError(f"{path} is not a report of qexport", REMEDY)
    try:
        report = report_of(content)
    except ValueError as error:
        raise InputError(f"{path} is not a report of qexport (its {error})", REMEDY) from error
    return Baseline(BaselineInfo(str(path), hashlib.sha256(raw).hexdigest()), report)


def _figure(digits: str) -> float | None:
    found = float(digits)
    return found if math.isfinite(found) else None


def report_of(content: Mapping[str, Any]) -> Report:
    """The report of a report.json that was parsed already.

    Raises:
        ValueError: names what is missing, or of another type.
    """
    artifacts = content.get("artifacts")
    if isinstance(artifacts, list):
        artifacts = [_upgraded_artifact(each) if isinstance(each, dict) else each for each in artifacts]
    report = from_json({**EMPTY, **content, "schema": SCHEMA, "artifacts": artifacts})
    for number, artifact in enumerate(report.artifacts):
        for name in TIMES:
            timing = getattr(artifact, name)
            if timing is not None and min(timing.min, timing.p50, timing.p95) <= 0:
                raise ValueError(f"artifacts.{number}.{name} is no time")
        known = thresholds_of(artifact)
        if known and not (
            known[0].count.keys() <= known[0].classes.keys() and all(map(_CLASS.fullmatch, known[0].classes))
        ):
            raise ValueError(f"artifacts.{number} has thresholds of no classes")
    return report


def _upgraded_artifact(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Earlier reports say in words alone, in `runtime`, that a stand-in ran a file."""
    own = entry.get("own_runtime")
    return {**entry, "own_runtime": IN_PLACE not in str(entry.get("runtime")) if own is None else own}
