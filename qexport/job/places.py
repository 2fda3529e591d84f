"""Whether the files that a job names are there, and whether what it writes has a place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from qexport.checkpoints.identify import refuse_by_beginning
from qexport.data.resolve import bundled_data, known_data
from qexport.errors import InputError
from qexport.job.export_job import ExportJob
from qexport.system.files import check_folder
from qexport.system.given_files import special_kind
from qexport.system.nearby import names_beside, or_nearby
from qexport.vocabulary import closest, listed

RELEASED = ("yolo", "rtdetr")
"""What the names of checkpoints begin with that Ultralytics has for download."""


def check_paths(job: ExportJob) -> None:
    """Refuse files that are not there or are none, before anything slow is imported; all that are missing in one line.

    Bare names that Ultralytics may know are resolved later.

    Raises:
        InputError: a path does not exist, or leads to a pipe or a device.
    """
    data: dict[str, str | Path | None] = {"--data": job.data, "--eval-data": job.eval_data}
    files: dict[str, str | Path | None] = {"--calibration": job.calibration, "--plan": job.plan}
    files |= {"--candidate": job.candidate, "--baseline": job.baseline}
    given = {option: path for option, path in {"model": job.model, **data, **files}.items() if path}
    missing = {option: path for option, path in given.items() if not os.path.exists(path)}
    for option in ("model", *data):
        name = str(missing.get(option, ""))
        known = _may_be_released(job, name) if option == "model" else bundled_data(name)
        if name and name == Path(name).name and known:
            del missing[option]
    if missing:
        raise _not_there(missing)
    for option, path in given.items():
        kind = special_kind(path)
        if kind or (option in files and Path(path).is_dir()):
            raise InputError(f"{option} {path} is {kind or 'a folder'}, not a file", "check the path")
    if not job.from_onnx and os.path.isfile(job.model):
        refuse_by_beginning(Path(job.model))


def _may_be_released(job: ExportJob, name: str) -> bool:
    """Whether a bare name may be a checkpoint that Ultralytics knows; it is not asked, which takes seconds."""
    own = name.startswith(RELEASED) or not closest(name, names_beside(name))
    return own and not job.from_onnx


def _not_there(missing: Mapping[str, str | Path]) -> InputError:
    """One line for everything that is missing, with what was probably meant."""
    what = listed([f"{option} {path}" for option, path in missing.items()])
    bare = {option for option, path in missing.items() if option.endswith("data") and Path(path).name == str(path)}
    hints = [or_nearby(path, known_data() if option in bare else ()) for option, path in missing.items()]
    several = len(missing) > 1
    return InputError(
        f"{what} {'do' if several else 'does'} not exist",
        f"check the path{'s' if several else ''}{''.join(dict.fromkeys(hints))}",
    )


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
