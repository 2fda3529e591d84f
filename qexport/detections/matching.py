"""Which detections of two sides are of the same object: overlap of boxes, upright or rotated, and two ways to match.

They answer two questions. `best_overlaps`: which of one side's has the other side at all? Each is looked for by
itself, so two may find the same one: what a second copy of an object costs is another matter, and no order of scores,
which drift, decides anything. `pairs`: which goes with which, as COCO counts? Each is taken once, the most confident
choose first, and what nobody takes is lost or gained.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qexport.detections.detections import Detections, Floats

CONFIDENCE = 0.25
"""Score from which a detection counts: of the two sides of a comparison, and of the float model as fidelity's truth."""
SAME_OBJECT = 0.5
"""Overlap from which two boxes of a class are of one object."""
TINY = np.float32(1e-7)
"""Keeps what is divided by, and logarithms, from zero."""


def best_overlaps(one: Detections, other: Detections) -> tuple[NDArray[np.intp], Floats]:
    """Whether the other side has each of one's detections at all, however confident and taken or not.

    Returns:
        (n,) row of the one of its class in `other` that it overlaps most, and how much; 0 and 0.0 where there is none.
    """
    if not len(other.scores):
        return np.zeros(len(one.scores), np.intp), np.zeros(len(one.scores), np.float32)
    shared = class_overlaps(one, other)
    best = shared.argmax(axis=1)
    return best, shared[np.arange(len(best)), best]


def pairs(one: Detections, other: Detections) -> list[tuple[int, int]]:
    """(row in `one`, row in `other`) of detections of one class and object; each pairs at most once.

    As COCO's evaluation matches detections with labels (Lin et al., "Microsoft COCO", 2014): those of `other` choose
    by falling score, and each takes what it overlaps most of what is left. So whoever leaves out the least confident
    ones of `other` finds the same pairs among the rest.
    """
    shared = class_overlaps(one, other)
    shared[shared < SAME_OBJECT] = 0.0
    found = []
    for row in np.argsort(-other.scores, kind="stable").tolist():
        column = shared[:, row]
        if column.any():
            best = int(column.argmax())
            shared[best] = 0.0  # taken
            found.append((best, row))
    return found


def class_overlaps(one: Detections, other: Detections) -> Floats:
    """(n, m) overlaps 0..1 of boxes of one class, 0 for other classes; rotated ones by ProbIoU.

    Raises:
        ValueError: boxes of one side are rotated, those of the other are not.
    """
    if not len(one.scores) or not len(other.scores):
        return np.zeros((len(one.scores), len(other.scores)), np.float32)
    if one.box_format != other.box_format:
        raise ValueError(f"boxes of two kinds do not overlap: {one.box_format}, {other.box_format}")
    if one.is_rotated:
        area = rotated_overlaps(one.rotated_boxes, other.rotated_boxes)
    else:
        area = overlaps(one.boxes, other.boxes)
    found: Floats = area * (one.classes[:, None] == other.classes[None])
    return found


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of every box (n, 4) with every one of `others` (m, 4), corners: (n, m)."""
    (x1, y1, x2, y2), (u1, v1, u2, v2) = boxes.T[:, :, None], others.T
    width, height = np.minimum(x2, u2) - np.maximum(x1, u1), np.minimum(y2, v2) - np.maximum(y1, v1)
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    areas = (u2 - u1) * (v2 - v1) + (x2 - x1) * (y2 - y1)
    result: Floats = shared / np.maximum(areas - shared, TINY)
    return result


def rotated_overlaps(boxes: Floats, others: Floats | None = None) -> Floats:
    """Overlap 0..1 of every rotated box (n, 5) with every one of `others` (m, 5), or of themselves: (n, m).

    One minus the Hellinger distance of the Gaussians that the boxes stand for: Llerena et al., "Gaussian Bounding Boxes
    and Probabilistic Intersection-over-Union for Object Detection" (2021).
    """
    others = boxes if others is None else others
    one, other = _covariances(boxes), _covariances(others)
    x, y = (boxes[:, None, axis] - others[None, :, axis] for axis in (0, 1))
    sums = [first[:, None] + second for first, second in zip(one, other, strict=True)]
    product = sums[0] * sums[1] - sums[2] ** 2
    apart = (sums[0] * y**2 + sums[1] * x**2) / 4 - sums[2] * x * y / 2
    areas, other_areas = (np.maximum(a * b - c**2, 0) for a, b, c in (one, other))
    spread = np.log(product / (4 * np.sqrt(areas[:, None] * other_areas) + TINY) + TINY) / 2
    bhattacharyya = np.clip(apart / (product + TINY) + spread, TINY, 100)
    result: Floats = 1 - np.sqrt(1 - np.exp(-bhattacharyya) + TINY)
    return result


def _covariances(boxes: Floats) -> tuple[Floats, Floats, Floats]:
    """Variances along x and y, and their covariance, of the Gaussians of rotated boxes (n, 5)."""
    across, along = (boxes[:, 2:4] ** 2 / 12).T
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    return across * cos**2 + along * sin**2, across * sin**2 + along * cos**2, (across - along) * cos * sin
