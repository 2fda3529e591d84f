"""Detections: what was found in one image, the one noun that decoding makes and every comparison takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qexport.detections.layout import CORNERS, ROTATED

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels; centre, width and height of rotated ones. Pixels are those of the
            network's input, as `qexport.detections.numpy_decode` makes them, or of the image, in evidence of accuracy.
        scores: (n,) float32, 0..1.
        classes: (n,) int64.
        extras: (n, k) float32: mask coefficients (see `masks`), keypoints in the pixels of the boxes, each with its
            visibility 0..1 where the model has it, or the angle in radians; k is 0 where there is nothing.
        box_format: CORNERS, or ROTATED, whose angle is the first of the extras.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]
    extras: Floats
    box_format: str = CORNERS

    @property
    def further(self) -> Floats:
        """`extras`, by the name that programs on devices may know."""
        return self.extras

    @property
    def is_rotated(self) -> bool:
        """Whether boxes are centre and size, with an angle."""
        return self.box_format == ROTATED

    @property
    def rotated_boxes(self) -> Floats:
        """(n, 5) centre, width, height and angle of rotated boxes."""
        return np.concatenate((self.boxes, self.extras[:, :1]), axis=1)

    def chosen(self, rows: NDArray[np.bool_] | NDArray[np.integer]) -> Detections:
        """Those of some rows, in that order, or those that a mask (n,) is true of."""
        return Detections(self.boxes[rows], self.scores[rows], self.classes[rows], self.extras[rows], self.box_format)

    def confident(self, least: float) -> Detections:
        """Those whose score is at least `least`."""
        return self.chosen(self.scores >= least)


NOTHING = Detections(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
)
"""No detections, as of a classifier."""


def corners_of(boxes: Floats) -> Floats:
    """(n, 4) corners x1 y1 x2 y2 of boxes (n, 4) that are centre, width and height."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate((centre - half, centre + half), axis=1)


def corner_points(found: Detections) -> Floats:
    """(n, 4, 2) x y of the corners of rotated boxes, one after the other around each."""
    centre, (width, height) = found.boxes[:, :2], (found.boxes[:, axis, None] / 2 for axis in (2, 3))
    cos, sin = np.cos(found.extras[:, :1]), np.sin(found.extras[:, :1])
    along = np.concatenate((width * cos, width * sin), axis=1)
    across = np.concatenate((-height * sin, height * cos), axis=1)
    corners = (centre + along + across, centre + along - across, centre - along - across, centre - along + across)
    return np.stack(corners, axis=1)


def upright_boxes(found: Detections, size: tuple[int, int]) -> Floats:
    """(n, 4) corners within the image; of rotated boxes those of the upright box around each.

    Args:
        size: width and height of the image in pixels.
    """
    boxes = found.boxes
    if found.is_rotated:
        points = corner_points(found)
        boxes = np.concatenate((points.min(axis=1), points.max(axis=1)), axis=1)
    return np.clip(boxes, 0, np.array([*size, *size], np.float32))
