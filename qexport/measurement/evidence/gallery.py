"""Images in which a file loses boxes that the float file finds, or gains others: what a figure cannot show."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from heapq import nsmallest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qexport.data.images import read_image
from qexport.detections.detections import corner_points, upright_boxes
from qexport.detections.matching import pairs
from qexport.errors import InputError
from qexport.measurement.evidence.parts import Box, Picture
from qexport.measurement.image_detections import DetectionsByImage, ImageDetections
from qexport.measurement.shapes import Shape

MAX_IMAGES = 12
LONGEST_SIDE = 480
"""Pixels of a thumbnail's longer side."""
QUALITIES = (70, 55, 40)
MAX_BYTES = 30_000
"""Of a thumbnail's JPEG; a third more as text."""


@dataclass(frozen=True)
class _Change:
    reference: ImageDetections
    own: ImageDetections
    kept: list[int]
    lost: list[int]
    gained: list[int]

    @property
    def count(self) -> int:
        return len(self.lost) + len(self.gained)


def gallery(reference: DetectionsByImage, own: DetectionsByImage, least: float) -> tuple[Picture, ...]:
    """The images with most lost and gained boxes first, at most twelve, none without either.

    Boxes count from the score `least` on. A classifier has no boxes: its gallery is empty.
    """
    boxed = ((name, found.confident(least)) for name, found in reference.items() if found.probabilities is None)
    changes = (_change(found, own[name].confident(least)) for name, found in boxed)
    changed = (each for each in changes if each.count)
    most = nsmallest(MAX_IMAGES, changed, key=lambda each: (-each.count, each.reference.path.name))
    return tuple(map(_picture, most))


def _change(reference: ImageDetections, own: ImageDetections) -> _Change:
    one, other = reference.detections, own.detections
    paired = pairs(one, other)
    kept, same = {i for i, _ in paired}, {j for _, j in paired}
    lost = [i for i in range(len(one.scores)) if i not in kept]
    return _Change(reference, own, sorted(kept), lost, [j for j in range(len(other.scores)) if j not in same])


def _picture(change: _Change) -> Picture:
    path, (width, height) = change.reference.path, change.reference.size
    drawn, other = _boxes(change.reference), _boxes(change.own)
    return Picture(
        image=path.name,
        path=str(path.absolute()),
        width=width,
        height=height,
        kept=tuple(drawn[i] for i in change.kept),
        lost=tuple(drawn[i] for i in change.lost),
        gained=tuple(other[i] for i in change.gained),
        thumbnail=_data_url(path),
    )


def _data_url(path: Path) -> str:
    try:
        image = read_image(path)
    except InputError:  # its boxes are evidence all the same
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(thumbnail(image)).decode()


def _boxes(found: ImageDetections) -> list[Box]:
    seen = found.detections
    rows = zip(upright_boxes(seen, found.size).tolist(), seen.scores.tolist(), seen.classes.tolist(), strict=True)
    return [
        {
            "box": [round(side, 1) for side in box],
            "score": round(score, 4),
            "class": number,
            **_drawn(found, i),
        }
        for i, (box, score, number) in enumerate(rows)
    ]


def _drawn(found: ImageDetections, index: int) -> Box:
    """What is drawn of a detection besides its box."""
    if found.detections.is_rotated:
        corners = corner_points(found.detections.chosen(np.array([index])))
        return {"outline": [[round(value, 1) for value in corners.flatten().tolist()]]}
    shape = found.shapes[index] if found.shapes else Shape()
    if shape.points is not None:
        return {"points": [[round(x, 1), round(y, 1), round(seen, 2)] for x, y, seen in shape.points.tolist()]}
    return {"outline": [polygon.flatten().tolist() for polygon in shape.polygons]} if shape.polygons else {}


def thumbnail(image: NDArray[np.uint8]) -> bytes:
    """A small JPEG of an image (HxWx3 uint8 BGR): less exact, then smaller, until it is small enough to embed."""
    import cv2

    side = min(LONGEST_SIDE, max(image.shape[:2]))
    while True:
        scale = side / max(image.shape[:2])
        size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
        small = image if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        for quality in QUALITIES:
            encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
            if len(encoded) <= MAX_BYTES:
                return encoded
        side = side * 3 // 4
