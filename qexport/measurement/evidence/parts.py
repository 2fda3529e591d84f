"""The parts of an artifact's evidence as plain data that a report holds: no runtime is imported for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Box = dict[str, Any]
"""`box`: corners in pixels of the original image, `score`, and `class`.

What is no upright box has an `outline`, polygons of x y x y …: of a mask or a rotated box. A pose has `points`, triples
of x, y and how sure it is that they can be seen.
"""
DEPTHS = {"box": 1, "score": 0, "class": 0, "outline": 2, "points": 2}
"""Key of a box → in how many lists its numbers are."""
MAX_NUMBER = 1e9


@dataclass(frozen=True)
class Picture:
    """One image with what two files find in it.

    Attributes:
        image, path: name and place of the image file.
        width, height: in pixels, which boxes refer to.
        kept: the float file's boxes that pair with one of the file's.
        lost: the float file's boxes that do not.
        gained: the file's boxes that pair with none.
        thumbnail: the image, small, as a data URL; "" of a file that only Ultralytics can read, such as HEIC.
    """

    image: str
    path: str
    width: int
    height: int
    kept: tuple[Box, ...]
    lost: tuple[Box, ...]
    gained: tuple[Box, ...]
    thumbnail: str

    def __post_init__(self) -> None:
        """Raise `ValueError` of a box with other values than boxes have: a report may come from anywhere."""
        for kind in ("kept", "lost", "gained"):
            for number, box in enumerate(getattr(self, kind)):
                wrong = [key for key, depth in DEPTHS.items() if key in box and not _numbers(box[key], depth)]
                wrong += [key for key in ("box", "score", "class") if key not in box]
                if wrong or len(box["box"]) != 4 or any(len(point) != 3 for point in box.get("points", ())):
                    raise ValueError(f"gallery: {kind}.{number}.{(wrong or ['box'])[0]}")


def _numbers(value: Any, depth: int) -> bool:
    """Whether a value is lists in lists of numbers, so many deep."""
    if depth:
        return isinstance(value, list) and all(_numbers(each, depth - 1) for each in value)
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < MAX_NUMBER


@dataclass(frozen=True)
class ConfidenceShift:
    """Scores of a file's detections against those of the float file's that they pair with.

    Attributes:
        matched: how many pairs there are.
        mean_float, mean: mean score of either side.
        shift: mean of score minus the float file's score.
        p05, p50, p95: percentiles of the same difference.
        bins, counts: histogram of it, 41 edges and 40 counts.
    """

    matched: int
    mean_float: float
    mean: float
    shift: float
    p05: float
    p50: float
    p95: float
    bins: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Histogram:
    """One value's calibration histogram and its chosen range.

    Attributes:
        edges: one more than `counts`, at most 65.
        counts: elements sampled into each bin, over all calibration images.
        low, high: the real numbers that the lowest and the highest integer stand for.
        sqnr_db: see `qexport.simulation.meters`.
    """

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    low: float
    high: float
    sqnr_db: float


@dataclass(frozen=True)
class Layer:
    """One value of the program.

    Attributes:
        name, operation, macs: see `qexport.programs.program.Value`.
        dtype, group, why: see `qexport.planning.plan.TensorQuant`.
        scale, zero_point: None where it stays float.
        sqnr_db: None where it has no counterpart, see `qexport.simulation.meters`.
    """

    name: str
    operation: str
    dtype: str
    scale: float | None
    zero_point: int | None
    group: str
    why: str
    macs: int
    sqnr_db: float | None
