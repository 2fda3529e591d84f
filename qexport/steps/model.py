"""Read a model, and calibrate it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from qexport.calibration import calibrate as calibration
from qexport.calibration.calibration_table import CalibrationTable
from qexport.compat.one_at_a_time import sources_forgotten
from qexport.data.resolve import resolve_model
from qexport.data.selection import image_files
from qexport.errors import UsageError
from qexport.programs.build import Source, read_source
from qexport.programs.options import HEADS, CaptureOptions
from qexport.programs.program import Program


def read_model(model: str | Path, **options: Any) -> Source:
    """Read a checkpoint or a float ONNX file and capture its float program.

    Args:
        model: path, or a name that Ultralytics knows, which may be downloaded.
        options: fields of `CaptureOptions`, such as `imgsz=(640, 640)`, height and width in pixels, or one number for
            both.

    Raises:
        InputError, UsageError: it cannot be exported, or not with these options.
    """
    checked = _capture_options(options)
    return read_source(resolve_model(str(model)), checked)


def _capture_options(given: Mapping[str, Any]) -> CaptureOptions:
    """Options of a Python call, checked.

    Raises:
        UsageError: there is no such option, or not with this value.
    """
    known = [field.name for field in fields(CaptureOptions)]
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UsageError(f"unknown option {unknown[0]}", f"known options are {', '.join(known)}")
    size = given.get("imgsz")
    both = (size, size) if isinstance(size, int) else size
    if both is not None and not (isinstance(both, tuple | list) and len(both) == 2 and all(map(_is_count, both))):
        raise UsageError(f"imgsz is {size!r}", "give height and width in pixels, or one number for both")
    options = CaptureOptions(**{**given, "imgsz": None if both is None else tuple(both)})
    if not _is_count(options.batch):
        raise UsageError(f"batch is {options.batch!r}", "give a number of images")
    if options.head not in (None, *HEADS):
        raise UsageError(f"unknown head {options.head}", f"choose from {', '.join(HEADS)}")
    return options


def _is_count(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number > 0


@sources_forgotten()
def calibrate(
    program: Program,
    images: str | Path | Sequence[Path],
    on_image: Callable[[], None] = lambda: None,
    *,
    fraction: float = 1.0,
    count: int | None = None,
    importance: bool = False,
    views: bool = False,
) -> CalibrationTable:
    """Run a program over images and return what its values looked like, for `plan`.

    Args:
        images: image files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        on_image: called after each image.
        fraction: share of a data set's images, evenly chosen.
        count: the greatest number of them; None for 512, 0 for all.
        importance: measure how much the outputs depend on each value, too, for ranges "weighted-mse" and "auto".
        views: see fewer than 32 images mirrored, scaled, cut and in mosaics, too, until there are 32 pictures.

    Raises:
        InputError: images are missing, too few can be read, or a value is not finite.
    """
    given = image_files(images, fraction, count)
    return calibration.calibrate(program, given, on_image, weighted=importance, views=views)
