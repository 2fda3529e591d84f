"""Non-maximum suppression with NumPy and nothing else, for upright and for rotated boxes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qexport.detections.detections import Floats
from qexport.detections.matching import overlaps, rotated_overlaps


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
        rival = (classes[left] == classes[best]) & (overlaps(boxes[[best]], boxes[left])[0] > iou)
        left = left[~rival]
    return np.array(kept, dtype=np.int64)


def suppressed_rotated(boxes: Floats, classes: NDArray[np.integer], iou: float) -> NDArray[np.int64]:
    """Rows to keep of rotated boxes (n, 5), centre, size and angle in radians, that are sorted by score, best first.

    A row goes where any better one of its class overlaps it, kept or not, as Ultralytics does it: Fast NMS of Bolya et
    al., "YOLACT: Real-time Instance Segmentation" (2019).
    """
    rivals = (classes[:, None] == classes) & (rotated_overlaps(boxes) > iou)
    return np.flatnonzero(~np.triu(rivals, 1).any(axis=0))
