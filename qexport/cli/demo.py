"""The embedded default: small trained models and a rendered data set, for a first run without network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import qexport
from qexport.errors import InputError
from qexport.job.options import ExportJob, make_job
from qexport.vocabulary import unknown


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


def demo_job(out: Path | None = None, task: str = "detect") -> ExportJob:
    """The main job on the embedded default.

    Raises:
        UsageError: no such task.
    """
    if task not in DEMOS:
        raise unknown(f"--task {task}", task, tuple(DEMOS))
    folder, demo = demo_folder(), DEMOS[task]
    options = {
        "model": str(folder / demo.model),
        "data": str(folder / demo.data),
        "format": "tflite",
        "int8": True,
        "imgsz": demo.imgsz,
        "out": out or Path("qexport_out") / ("demo" if task == "detect" else f"demo-{task}"),
    }
    return make_job(options)
