"""Non-maximum suppression with NumPy and nothing else, for boxes and for turned boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def suppressed(boxes: Floats, classes: NDArray[np.integer], iou: float, most: int | None = None) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: rows to keep of boxes (n, 4) that are sorted by score, best first.

    Args:
        most: how many are kept at most.
    """
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left) and (most is None or len(kept) < most):
        best, left = left[0], left[1:]
        kept.append(int(best))
        rival = (classes[left] == classes[best]) & (_overlaps(boxes[best], boxes[left]) > iou)
        left = left[~rival]
    return np.array(kept, dtype=np.int64)


def suppressed_rotated(boxes: Floats, classes: NDArray[np.integer], iou: float) -> NDArray[np.int64]:
    """Rows to keep of turned boxes (n, 5), centre, size and angle in radians, that are sorted by score, best first.

    A row goes where any better one of its class overlaps it, kept or not, as Ultralytics does it: Fast NMS of Bolya et
    al., "YOLACT: Real-time Instance Segmentation" (2019).
    """
    rivals = (classes[:, None] == classes) & (rotated_overlaps(boxes) > iou)
    return np.flatnonzero(~np.triu(rivals, 1).any(axis=0))


def rotated_overlaps(boxes: Floats, others: Floats | None = None) -> Floats:
    """Overlap 0..1 of every turned box (n, 5) with every one of `others` (m, 5), or of themselves: (n, m).

    One minus the Hellinger distance of the Gaussians that the boxes stand for: Llerena et al., "Gaussian Bounding Boxes
    and Probabilistic Intersection-over-Union for Object Detection" (2021).
    """
    tiny = np.float32(1e-7)
    others = boxes if others is None else others
    one, other = _covariances(boxes), _covariances(others)
    x, y = (boxes[:, None, axis] - others[None, :, axis] for axis in (0, 1))
    sums = [first[:, None] + second for first, second in zip(one, other, strict=True)]
    product = sums[0] * sums[1] - sums[2] ** 2
    apart = (sums[0] * y**2 + sums[1] * x**2) / 4 - sums[2] * x * y / 2
    areas, other_areas = (np.maximum(a * b - c**2, 0) for a, b, c in (one, other))
    spread = np.log(product / (4 * np.sqrt(areas[:, None] * other_areas) + tiny) + tiny) / 2
    bhattacharyya = np.clip(apart / (product + tiny) + spread, tiny, 100)
    result: Floats = 1 - np.sqrt(1 - np.exp(-bhattacharyya) + tiny)
    return result


def overlaps(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of every box (n, 4) with every one of `others` (m, 4), corners: (n, m)."""
    found = np.zeros((len(boxes), len(others)), np.float32)
    for row, box in enumerate(boxes):
        found[row] = _overlaps(box, others)
    return found


def _covariances(boxes: Floats) -> tuple[Floats, Floats, Floats]:
    """Variances along x and y, and their covariance, of the Gaussians of turned boxes (n, 5)."""
    across, along = (boxes[:, 2:4] ** 2 / 12).T
    cos, sin = np.cos(boxes[:, 4]), np.sin(boxes[:, 4])
    return across * cos**2 + along * sin**2, across * sin**2 + along * cos**2, (across - along) * cos * sin


def _overlaps(one: Floats, others: Floats) -> Floats:
    """Intersection over union of one box (4,) with others (n, 4)."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(one[2:] - one[:2])
    result: Floats = shared / np.maximum(areas - shared, 1e-7)
    return result
