"""Images where INT8 lost or gained boxes: each thumbnail is stored once, however many artifacts show it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from qexport.measurement.evidence import parts as evidence
from qexport.reporting.page.content import Entry
from qexport.reporting.page.typeset import form_of, typeset

PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/=]+")
MAX_BYTES = 1_500_000
"""Of all thumbnails together: the page is to stay small enough for a mail."""


LABEL_SIZE = 0.045
"""Of names of boxes, as a share of the width of the frame around an image, which is 4 : 3."""
MIN_SEEN = 0.25
"""Keypoints that are less sure to be seen are left out, as Ultralytics' plots do."""
PERSON = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
"""Bones between COCO's 17 keypoints; of other keypoints nobody says what is joined."""
PERSON_POINTS = 17
LETTER = 0.55
"""Width of a letter, as a share of that."""


@dataclass(frozen=True)
class Label:
    """The name of a box, in pixels of the image: where it is written, and at which end of the text that is."""

    text: str
    x: float
    y: float
    anchor: str


@dataclass(frozen=True)
class Shot:
    """One image of one artifact's gallery: what was found in it, the number of its thumbnail, names of classes."""

    data: evidence.Picture
    picture: int | None
    names: Mapping[int, str]

    def name(self, box: evidence.Box) -> str:
        """Class and score of a box."""
        name = self.names.get(box["class"], f"class {box['class']}")
        return f"{name} {typeset(box['score'], form_of('score'))}"

    def labels(self) -> dict[str, list[Label]]:
        """Names of the boxes that were lost or gained, moved down where they would cover one another."""
        made: dict[str, list[Label]] = {}
        taken: list[Label] = []
        for kind in ("lost", "gained"):
            for each in self.boxes(kind):
                label = place(self.name(each), each["box"], self.data.width, self.label_size, taken)
                made.setdefault(kind, []).append(label)
        return made

    @property
    def label_size(self) -> float:
        """Height of names, in pixels of the image."""
        return round(LABEL_SIZE * float(max(self.data.width, self.data.height * 4 / 3)), 2)

    @property
    def joint_size(self) -> float:
        """Radius of a keypoint, in pixels of the image."""
        return round(self.label_size / 8, 1)

    def boxes(self, kind: str) -> tuple[evidence.Box, ...]:
        """The boxes that were "kept", "lost" or "gained"."""
        return {"kept": self.data.kept, "lost": self.data.lost, "gained": self.data.gained}[kind]

    def count(self, kind: str) -> int:
        """How many boxes those are."""
        return len(self.boxes(kind))


def outlines(box: evidence.Box) -> list[str]:
    """Points of the polygons of a mask or a turned box, as SVG wants them; none of an upright box."""
    return [" ".join(map(_plain, polygon)) for polygon in box.get("outline") or ()]


def joints(box: evidence.Box) -> list[tuple[str, str]]:
    """X and y of a pose's keypoints that can be seen."""
    return [(_plain(x), _plain(y)) for x, y, seen in box.get("points") or () if seen >= MIN_SEEN]


def bones(box: evidence.Box) -> str:
    """The lines between a person's keypoints that can be seen, as an SVG path; "" of other things."""
    points = box.get("points") or ()
    if len(points) != PERSON_POINTS:
        return ""
    joined = ((points[a], points[b]) for a, b in PERSON if min(points[a][2], points[b][2]) >= MIN_SEEN)
    return "".join(f"M{_plain(a[0])} {_plain(a[1])}L{_plain(b[0])} {_plain(b[1])}" for a, b in joined)


def _plain(value: float) -> str:
    """A coordinate in tenths of a pixel; whatever else a report holds there is no number."""
    return f"{float(value):.1f}".removesuffix(".0")


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URI, and the size in pixels of the image that boxes refer to."""

    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Gallery:
    """Thumbnails by number, and each artifact's images by its path in the report."""

    pictures: tuple[Picture, ...]
    shots: Mapping[str, tuple[Shot, ...]]


def make_gallery(entries: Sequence[Entry], most: int = MAX_BYTES) -> Gallery:
    """Take images in turn from all artifacts, those with the most differences first, until `most` bytes are used."""
    numbers: dict[Picture, int] = {}
    shots: dict[str, list[Shot]] = {each.at: [] for each in entries}
    used = 0
    for row in zip_longest(*(each.data.gallery or () for each in entries)):
        for entry, image in zip(entries, row, strict=True):
            if image is None:
                continue
            picture = picture_of(image)
            if picture is not None and picture not in numbers:
                used += len(picture.uri)
                if used > most:
                    return Gallery(tuple(numbers), {at: tuple(each) for at, each in shots.items()})
                numbers[picture] = len(numbers)
            number = None if picture is None else numbers[picture]
            shots[entry.at].append(Shot(image, number, entry.class_names))
    return Gallery(tuple(numbers), {at: tuple(each) for at, each in shots.items()})


def place(text: str, box: Sequence[float], width: float, size: float, taken: list[Label]) -> Label:
    """Above the box, or inside where the image ends; from its right edge where the name would leave the image.

    Args:
        box: corners in pixels of an image so many pixels wide.
        size: height of the text.
        taken: names that are written already; this one is added.
    """
    y = box[1] - 0.25 * size if box[1] > 1.2 * size else box[1] + 0.95 * size
    right = box[0] > 0.6 * width
    made = Label(text, round(box[2] if right else box[0], 1), round(y, 1), "end" if right else "start")
    while any(_overlap(made, each, size) for each in taken):
        made = replace(made, y=round(made.y + size, 1))
    taken.append(made)
    return made


def _overlap(a: Label, b: Label, size: float) -> bool:
    spans = []
    for label in (a, b):
        length = LETTER * size * len(label.text)
        spans.append((label.x - length, label.x) if label.anchor == "end" else (label.x, label.x + length))
    (a_left, a_right), (b_left, b_right) = spans
    return a_left < b_right and b_left < a_right and abs(a.y - b.y) < 0.95 * size


def picture_of(image: evidence.Picture) -> Picture | None:
    """The thumbnail, None where there is none or where it is something else than a picture."""
    uri = image.thumbnail
    return Picture(uri, image.width, image.height) if PICTURE.fullmatch(uri) else None
