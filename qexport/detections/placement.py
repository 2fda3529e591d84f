"""Where an image lies in the network's input, and the way back: from the input's pixels to the image's."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from qexport.detections.detections import Detections, Floats
from qexport.detections.layout import HeadLayout

PADDING = 114
"""The grey of what no image covers."""


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input.

    Attributes:
        size: (height, width) of the image.
        imgsz: (height, width) of the input.
        inner: (height, width) of what the image is scaled to.
        corner: (x, y) of that one's upper left corner in the input.
        scale: (x, y) pixels of the input for one of the image; the same twice where proportions stay.
    """

    size: tuple[int, int]
    imgsz: tuple[int, int]
    inner: tuple[int, int]
    corner: tuple[int, int]
    scale: tuple[float, float]

    @property
    def margins(self) -> tuple[int, int, int, int]:
        """Pixels above, below, left and right of the scaled image."""
        (height, width), (left, top) = self.inner, self.corner
        return top, self.imgsz[0] - height - top, left, self.imgsz[1] - width - left


def letterboxed(size: tuple[int, int], imgsz: tuple[int, int]) -> Placement:
    """As large as it fits without distortion, in the middle: `LetterBox(imgsz, auto=False)` of Ultralytics.

    Args:
        size: (height, width) of the image.
        imgsz: (height, width) of the input.
    """
    scale = min(imgsz[0] / size[0], imgsz[1] / size[1])
    # A very thin image must keep one pixel, or nothing could scale it.
    height, width = max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)
    # An odd margin puts its extra pixel at the bottom or right, which the 0.1 decides in Ultralytics too.
    corner = round((imgsz[1] - width) / 2 - 0.1), round((imgsz[0] - height) / 2 - 0.1)
    return Placement(size, imgsz, (height, width), corner, (scale, scale))


def stretched(size: tuple[int, int], imgsz: tuple[int, int]) -> Placement:
    """All of the input, whatever becomes of proportions, as RT-DETR takes it; sizes as for `letterboxed`."""
    return Placement(size, imgsz, imgsz, (0, 0), (imgsz[1] / size[1], imgsz[0] / size[0]))


def in_image(found: Detections, placement: Placement, layout: HeadLayout) -> Detections:
    """Detections in pixels of the input as those in pixels of the image.

    Corners and keypoints are within the image; rotated boxes may reach out of it, as Ultralytics has them. Scores,
    classes, angles and coefficients of masks stay.
    """
    boxes, extras = found.boxes, found.extras
    scale, corner = np.array(placement.scale, np.float32), np.array(placement.corner, np.float32)
    if found.is_rotated:
        boxes = np.concatenate(((boxes[:, :2] - corner) / scale, boxes[:, 2:] / scale), axis=1)
    else:
        boxes = _points_in_image(boxes.reshape(-1, 2, 2), placement).reshape(-1, 4)
    if layout.extras == "keypoints":
        each = extras.reshape(-1, *layout.shape)
        extras = np.concatenate((_points_in_image(each[..., :2], placement), each[..., 2:]), axis=-1)
        extras = extras.reshape(len(found.extras), -1)
    return replace(found, boxes=boxes.astype(np.float32), extras=extras.astype(np.float32))


def _points_in_image(points: Floats, placement: Placement) -> Floats:
    """Points (..., 2), x and y, none of them outside of the image."""
    corner, scale = np.array(placement.corner, np.float32), np.array(placement.scale, np.float32)
    inside: Floats = np.clip((points - corner) / scale, 0, np.array(placement.size[::-1], np.float32))
    return inside
