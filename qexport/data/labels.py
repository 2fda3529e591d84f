"""Label files: what Ultralytics would leave out silently is an error with file, row and value.

The rules are those of `ultralytics.data.utils.verify_image_label` (8.4), told per row: it drops an image for one wrong
value in its labels, and accuracy is then of fewer images than anybody thinks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qexport.data.dataset import label_path
from qexport.system.given_files import read_text

BOX, MIN_POLYGON = 5, 7
"""Columns of a line with a class and a box, a polygon of three points."""
BEYOND = 0.01
"""How far a coordinate may lie outside of 0..1: labels were rounded by whoever wrote them."""

COORDINATES = 2
"""Of a keypoint's values; the third says whether it can be seen."""

Label = tuple[float, ...]
"""Class, and the rest of a row."""


@dataclass(frozen=True)
class Wanted:
    """What a label can be.

    Attributes:
        task: the model's.
        classes: how many there are.
        points: keypoints and values of each in the data set, None where it has none.
    """

    task: str
    classes: int
    points: tuple[int, ...] | None = None

    @property
    def pose(self) -> int | None:
        """Columns of a line with keypoints."""
        return BOX + self.points[0] * self.points[1] if self.points else None

    def suits(self, columns: int) -> bool:
        """Whether a line of so many columns can be a label of the task.

        Polygons are labels for detection and turned boxes, too: Ultralytics takes the box around them, and COCO's come
        that way.
        """
        if self.task == "pose":
            return columns == self.pose
        polygon = columns >= MIN_POLYGON and columns % 2 == 1 and columns != self.pose
        return polygon or (self.task == "detect" and columns == BOX)


@dataclass(frozen=True)
class Labels:
    """What was found in all label files.

    Attributes:
        fault: what is wrong in the first faulty one, with its place; "" where nothing is.
        faulty: how many files are faulty.
        rows: labels in all.
        doubled: labels that stand in their file a second time; Ultralytics counts them once.
        flat: labels without any area, which nothing that is found can match.
    """

    fault: str = ""
    faulty: int = 0
    rows: int = 0
    doubled: int = 0
    flat: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of labels that are no fault."""
        said = (
            (self.doubled, "stand twice in their file and count once"),
            (self.flat, "have no width or height: nothing can match them"),
        )
        return tuple(f"{count} of {self.rows} labels of the evaluation images {text}" for count, text in said if count)


def read_labels(images: Sequence[Path], folder: str, wanted: Wanted) -> Labels:
    """Look at every label of the images.

    Args:
        folder: name of the folder with labels, see `label_path`.
    """
    fault, faulty, rows, doubled, flat = "", 0, 0, 0, 0
    for path in dict.fromkeys(label_path(image, folder) for image in images):
        try:
            labels = list(_labels(path, wanted))
        except ValueError as error:
            fault, faulty = fault or str(error), faulty + 1
            continue
        rows, doubled = rows + len(labels), doubled + len(labels) - len(set(labels))
        flat += sum(not (width and height) for *_, width, height in (_box(label, wanted) for label in labels))
    return Labels(fault, faulty, rows, doubled, flat)


def _labels(path: Path, wanted: Wanted) -> Iterator[Label]:
    """A file's labels; an image without a file shows nothing that has one.

    Raises:
        ValueError: file, row and what is wrong.
    """
    columns = 0
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        place = f"{path}, row {number}"
        if not wanted.suits(len(words)):
            raise ValueError(f"labels for {wanted.task} do not have {len(words)} columns ({place})")
        if columns and (columns == BOX) != (len(words) == BOX):
            raise ValueError(f"boxes stand among polygons ({place} has {len(words)} columns, others have {columns})")
        columns = len(words)
        label = tuple(_number(word, place) for word in words)
        if fault := _fault(label, wanted):
            raise ValueError(f"{fault} ({place})")
        yield label


def _lines(path: Path) -> list[str]:
    if not os.path.lexists(path):
        return []
    try:
        return read_text(path, "utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    except OSError as error:
        raise ValueError(f"labels {path} cannot be read ({error.strerror})") from None


def _number(word: str, place: str) -> float:
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{word[:20]!r} is no number ({place})")
    return number


def _fault(label: Label, wanted: Wanted) -> str:
    """What is wrong with a label's values."""
    number, *values = label
    if number != int(number) or not 0 <= number < wanted.classes:
        return f"there is no class {number:g}, classes are whole numbers from 0 to {wanted.classes - 1}"
    x, y, width, height = _box(label, wanted)
    if min(width, height) < 0:
        return f"a box has a negative side, {min(width, height):g}"
    places = values
    if wanted.task == "pose":
        size = (wanted.points or (0, 2))[1]
        places = [value for i, value in enumerate(values[4:]) if i % size < COORDINATES] + values[:4]
    # Of polygons only the box counts: it is what Ultralytics looks at, and points do lie a little outside.
    only_box = len(label) > BOX and wanted.task != "pose"
    if max((x, y, width, height) if only_box else places) > 1 + BEYOND:
        return f"{max(places):g} is not within 0..1: labels are shares of the image's width and height, not pixels"
    return f"{min(values):g} is negative" if min((x, y) if only_box else values) < -BEYOND else ""


def _box(label: Label, wanted: Wanted) -> tuple[float, float, float, float]:
    """Centre, width and height of a label, of a polygon those of the box around it."""
    if len(label) == BOX or wanted.task == "pose":
        return label[1], label[2], label[3], label[4]
    across, down = label[1::2], label[2::2]
    left, right, top, bottom = min(across), max(across), min(down), max(down)
    return (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
