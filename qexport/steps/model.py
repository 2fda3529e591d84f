"""Read a model, and calibrate it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from qexport.calibration import calibrate as calibration
from qexport.calibration.calibration_table import CalibrationTable
from qexport.data.resolve import resolve_model
from qexport.data.selection import image_files
from qexport.programs.build import Source, read_source
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program


def read_model(model: str | Path, **options: Any) -> Source:
    """Read a checkpoint or a float ONNX file and capture its float program.

    Args:
        model: path, or a name that Ultralytics knows, which may be downloaded.
        options: fields of `CaptureOptions`, such as `imgsz=(640, 640)`: height and width in pixels.

    Raises:
        InputError, UsageError: it cannot be exported, or not with these options.
    """
    return read_source(resolve_model(str(model)), CaptureOptions(**options))


def calibrate(
    program: Program,
    images: str | Path | Sequence[Path],
    on_image: Callable[[], None] = lambda: None,
    *,
    fraction: float = 1.0,
    count: int | None = None,
) -> CalibrationTable:
    """Run a program over images and return what its values looked like, for `plan`.

    Args:
        images: image files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        on_image: called after each image.
        fraction, count: share and greatest number of a data set's images, evenly chosen; None for 512, 0 for all.

    Raises:
        InputError: images are missing, too few can be read, or a value is not finite.
    """
    return calibration.calibrate(program, image_files(images, fraction, count), on_image)
