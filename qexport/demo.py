"""The embedded default: a small trained model and a rendered data set, for a first run without network."""

from __future__ import annotations

from pathlib import Path

import qexport
from qexport.errors import InputError
from qexport.job import ExportJob, make_job

IMAGE_SIZE = 320


def demo_folder() -> Path:
    """The folder with model and data set: inside the wheel, or the repository's own.

    Raises:
        InputError: neither is there.
    """
    package = Path(qexport.__file__).parent
    for folder in (package / "_demo", package.parent / "calibration_data"):
        if (folder / "shapes26.pt").is_file():
            return folder
    raise InputError("the demo model is not part of this installation", "install qexport again")


def demo_job(out: Path) -> ExportJob:
    """The main job on the embedded default."""
    folder = demo_folder()
    options = {
        "model": str(folder / "shapes26.pt"),
        "data": str(folder / "shapes" / "shapes.yaml"),
        "format": "tflite",
        "int8": True,
        "imgsz": IMAGE_SIZE,
        "out": out,
    }
    return make_job(options)
