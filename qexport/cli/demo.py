"""The embedded default: small trained models and a rendered data set, for a first run without network."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

import qexport
from qexport.backends.registry import find_backend
from qexport.errors import InputError, MissingExtraError
from qexport.job.options import ExportJob, make_job
from qexport.reporting.verdict import CPU_FORMATS
from qexport.vocabulary import unknown

FORMAT = "tflite"
"""What is written where nobody says."""


@dataclass(frozen=True)
class Demo:
    """A task's model and data set, below the demo folder, and the image size in pixels that it was trained at."""

    model: str
    data: str
    imgsz: int = 320


DEMOS = {
    "detect": Demo("shapes26.pt", "shapes/shapes.yaml"),
    "segment": Demo("shapes26-seg.pt", "shapes/shapes-segment.yaml"),
    "pose": Demo("shapes26-pose.pt", "shapes/shapes-pose.yaml"),
    "obb": Demo("shapes26-obb.pt", "shapes/shapes-obb.yaml"),
    "classify": Demo("shapes26-cls.pt", "shapes/crops", imgsz=96),
}


def demo_folder() -> Path:
    """The folder with models and data set: inside the wheel, or the repository's own.

    Raises:
        InputError: neither is there.
    """
    package = Path(qexport.__file__).parent
    for folder in (package / "_demo", package.parent / "calibration_data"):
        if (folder / DEMOS["detect"].model).is_file():
            return folder
    raise InputError("the demo model is not part of this installation", "install qexport again")


def demo_job(out: Path | None = None, task: str = "detect", formats: str | None = None) -> ExportJob:
    """The main job on the embedded default.

    Args:
        formats: comma-separated; None for the default, `FORMAT`.

    Raises:
        UsageError: no such task or format.
        MissingExtraError: a format's packages are missing; for the default's with the line to type that does without.
    """
    if task not in DEMOS:
        raise unknown(f"--task {task}", task, tuple(DEMOS))
    folder, demo = demo_folder(), DEMOS[task]
    options = {
        "model": str(folder / demo.model),
        "data": str(folder / demo.data),
        "format": formats or FORMAT,
        "int8": True,
        "imgsz": demo.imgsz,
        "out": out or Path("qexport_out") / ("demo" if task == "detect" else f"demo-{task}"),
    }
    try:
        return make_job(options)
    except MissingExtraError as error:
        other = "" if formats else next(filter(_installed, CPU_FORMATS), "")
        if not other:
            raise
        words = ["qexport", "demo", *([] if task == "detect" else ["--task", task]), "--format", other]
        raise MissingExtraError(error.what, f"{error.remedy}, or type {shlex.join(words)}") from error


def _installed(name: str) -> bool:
    """Whether what a format needs is there."""
    try:
        find_backend(name)
    except MissingExtraError:
        return False
    return True
