"""The report's other forms, each written where somebody asks for it."""

from __future__ import annotations

import os
from pathlib import Path

from qexport.errors import InputError
from qexport.reporting.junit import to_junit
from qexport.reporting.report import Report, to_json
from qexport.reporting.summary import to_markdown
from qexport.system.files import write_text

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def save_report(report: Report, path: Path) -> None:
    """Write report.json whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, to_json(report))


def write_summary(report: Report, path: Path) -> None:
    """Write the report as Markdown.

    GitHub's step summary belongs to every command of a step: there the report is added at the end.

    Raises:
        InputError: the file cannot be written.
    """
    (_append if is_step_summary(path) else write_text)(path, to_markdown(report))


def write_junit(report: Report, path: Path) -> None:
    """Write the report as JUnit XML.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, to_junit(report))


def is_step_summary(path: Path) -> bool:
    """Whether a file is the one that GitHub shows on the page of a workflow's run."""
    shared = os.environ.get(STEP_SUMMARY)
    return bool(shared) and path.absolute() == Path(str(shared)).absolute()


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})", "give another --summary") from error
