"""The report's other forms, written where the job asks for them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qexport.errors import InputError
from qexport.job.options import ExportJob
from qexport.reporting.junit import to_junit
from qexport.reporting.summary import to_markdown
from qexport.system.files import write_text

STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def write_summary(job: ExportJob, report: Mapping[str, Any]) -> None:
    """Write `--summary`.

    GitHub's step summary belongs to every command of a step: there the report is added at the end.

    Raises:
        InputError: the file cannot be written.
    """
    if job.summary:
        (_append if is_step_summary(job.summary) else write_text)(job.summary, to_markdown(report))


def write_junit(job: ExportJob, report: Mapping[str, Any]) -> None:
    """Write `--junit`.

    Raises:
        InputError: the file cannot be written.
    """
    if job.junit:
        write_text(job.junit, to_junit(report))


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
