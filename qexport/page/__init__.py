"""The report as a page: one HTML file that needs nothing else, rendered from report.json alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.errors import InputError
from qexport.files import write_text

SCHEMAS = (1, 2)
NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "command": str,
    "model": dict,
    "artifacts": list,
    "seconds": dict,
    "environment": dict,
}
"""What every report has: fields and the types of their values."""


def read_report(path: Path) -> dict[str, Any]:
    """Read a report.json.

    Raises:
        InputError: it cannot be read, is not a report, or is of a later schema.
    """
    try:
        # What JSON has no word for (NaN, Infinity) is no figure either.
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise InputError(f"report {path} cannot be read ({reason})", "give a report.json that qexport wrote") from error
    if not is_report(content):
        raise InputError(f"{path} is not a report", "give a report.json that qexport wrote")
    if content["schema"] not in SCHEMAS:
        raise InputError(f"{path} has schema {content['schema']}, this version reads {SCHEMAS[-1]}", "update qexport")
    return dict(content)


def is_report(content: Any) -> bool:
    """Whether parsed JSON has what every report has."""
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        return False
    if not all(isinstance(content.get(name), kind) for name, kind in NEEDED.items()):
        return False
    each = content["artifacts"]
    return all(isinstance(item, dict) and {"path", "format", "precision", "bytes"} <= item.keys() for item in each)


def write_page(source: Path, path: Path) -> None:
    """Render a report.json into a page, which appears whole or not at all.

    Raises:
        InputError: the report cannot be used, or the page cannot be written.
    """
    from qexport.page.render import render

    write_text(path, render(read_report(source)))
