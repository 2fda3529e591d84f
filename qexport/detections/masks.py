"""Masks of the objects in an image from their coefficients and the prototypes, with NumPy and nothing else.

Bolya et al., "YOLACT: Real-time Instance Segmentation" (2019): an object's mask is a weighted sum of prototypes,
cropped to its box.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qexport.detections.placement import Placement

Floats = NDArray[np.float32]


def instance_masks(
    coefficients: Floats, prototypes: Floats, boxes: Floats, imgsz: tuple[int, int]
) -> NDArray[np.bool_]:
    """Return what belongs to each object, (n, height, width) at the size of the input.

    Args:
        coefficients: (n, k), the `extras` values of `qexport.decode.Detections`.
        prototypes: (height, width, k) of the same image, the last of the file's outputs without its batch.
        boxes: (n, 4), x1 y1 x2 y2 in pixels of the input.
        imgsz: (height, width) of the input in pixels.
    """
    found = np.zeros((len(boxes), *imgsz), dtype=bool)
    for mask, weights, box in zip(found, coefficients, boxes, strict=True):
        x1, y1, x2, y2 = box
        rows, columns = np.arange(imgsz[0]), np.arange(imgsz[1])
        inside = ((rows >= y1) & (rows < y2))[:, None] & ((columns >= x1) & (columns < x2))
        mask[:] = (_interpolated(prototypes @ weights, imgsz) > 0) & inside
    return found


def image_masks(
    coefficients: Floats, prototypes: Floats, boxes: Floats, placement: Placement
) -> Iterator[NDArray[np.bool_]]:
    """Which pixels of the image belong to each object, (height, width) of the image, one mask at a time.

    Args:
        coefficients, prototypes, boxes: as for `instance_masks`, boxes in pixels of the input.
        placement: where the image lies in the input.
    """
    (height, width), (left, top) = placement.inner, placement.corner
    y, x = np.arange(placement.imgsz[0])[:, None], np.arange(placement.imgsz[1])
    for weights, (x1, y1, x2, y2) in zip(coefficients, boxes, strict=True):
        inside = (y >= y1) & (y < y2) & (x >= x1) & (x < x2)
        logits = np.where(inside, _interpolated(prototypes @ weights, placement.imgsz), np.float32(-1))
        yield _interpolated(logits[top : top + height, left : left + width], placement.size) > 0


def _interpolated(small: Floats, size: tuple[int, int]) -> Floats:
    """Bilinear interpolation of (h, w) to another size; centres of corner pixels lie where those of corners do."""
    for axis, (count, target) in enumerate(zip(small.shape, size, strict=True)):
        place = np.clip((np.arange(target) + 0.5) * (count / target) - 0.5, 0, count - 1)
        first = np.minimum(place.astype(np.int64), count - 2) if count > 1 else np.zeros(target, np.int64)
        second = np.minimum(first + 1, count - 1)
        share = (place - first).astype(np.float32)[:, None]
        rotated = small if axis == 0 else small.T
        along = rotated[first] * (1 - share) + rotated[second] * share
        small = along if axis == 0 else along.T
    return small
