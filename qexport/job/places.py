"""Whether the files that a job names are there, and whether what it writes has a place."""

from __future__ import annotations

import os
from pathlib import Path

from qexport.errors import InputError
from qexport.job.export_job import ExportJob
from qexport.system.files import check_folder
from qexport.system.given_files import special_kind


def check_paths(job: ExportJob) -> None:
    """Refuse files that are not there or are none, before anything slow is imported; bare names are resolved later.

    Raises:
        InputError: a path does not exist, or leads to a pipe or a device.
    """
    options: dict[str, str | Path | None]
    options = {"model": job.model, "--data": job.data, "--eval-data": job.eval_data}
    files = {"--calibration": job.calibration, "--plan": job.plan, "--candidate": job.candidate}
    files |= {"--baseline": job.baseline}
    for option, given in {**options, **files}.items():
        path = Path(given) if given else None
        if path and not os.path.exists(path) and (option in files or path.name != str(given)):
            raise InputError(f"{option} {given} does not exist", "check the path")
        kind = special_kind(path) if path else ""
        if path and (kind or (option in files and path.is_dir())):
            raise InputError(f"{option} {given} is {kind or 'a folder'}, not a file", "check the path")


def check_places(job: ExportJob) -> None:
    """Refuse folders and files that nothing can be written to.

    Raises:
        InputError: naming the option.
    """
    check_folder(job.folder)
    for option, path in {"report": job.report, "summary": job.summary, "junit": job.junit}.items():
        if path and not _can_be_made(path, job.folder.absolute()):
            raise InputError(f"--{option} {path} cannot be written", "give a file in a folder that exists")


def _can_be_made(path: Path, out: Path) -> bool:
    try:
        return not path.is_dir() and (path.absolute().parent.is_dir() or path.absolute().parent == out)
    except OSError:  # a name that no system takes
        return False
