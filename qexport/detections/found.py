"""Detections of one image in the image's own pixels, and how those of two files pair up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qexport.detections.shapes import Shape, shapes_in

ROTATED_FIELDS = 5
"""Values of a turned box: centre x y, width, height, angle."""
SAME_OBJECT = 0.5
"""Intersection over union from which detections of one class are of the same object."""


@dataclass(frozen=True)
class Found:
    """What a file finds in one image.

    Attributes:
        path: the image file.
        size: width and height in pixels, EXIF orientation applied; (0, 0) of a classifier, which looks at a crop.
        boxes: (n, 4) corners x1 y1 x2 y2, or turned (n, 5) centre x y, width, height, angle; (0, 0) of a classifier.
        scores: (n,) confidence; of a classifier the probability of every class.
        classes: (n,).
        shapes: masks or keypoints, n of them or none at all.
    """

    path: Path
    size: tuple[int, int]
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    shapes: tuple[Shape, ...] = ()

    @property
    def has_boxes(self) -> bool:
        """Whether it is a detector's."""
        return self.boxes.shape[1] > 0

    def confident(self, least: float) -> Found:
        """The detections whose score is at least `least`."""
        kept = self.scores >= least
        shapes = tuple(shape for shape, drawn in zip(self.shapes, kept.tolist(), strict=False) if drawn)
        return Found(self.path, self.size, self.boxes[kept], self.scores[kept], self.classes[kept], shapes)


Findings = Mapping[str, Found]
"""By image name."""


def found_in(
    path: Path, prediction: Mapping[str, Tensor], batch: Mapping[str, Any], index: int, least: float = 1.0
) -> Found:
    """Bring a validator's detections from input pixels into those of the image, as its own `scale_preds` does.

    Args:
        prediction: `bboxes`, `conf` and `cls` of one image.
        batch: what the validator's data loader gave: input shape, original shape, and how one became the other.
        index: which image of the batch.
        least: confidence from which masks and keypoints are kept.
    """
    from ultralytics.utils.ops import scale_boxes

    boxes, shape = prediction["bboxes"].clone(), batch["ori_shape"][index]
    scaled = scale_boxes(
        batch["img"].shape[2:], boxes, shape, batch["ratio_pad"][index], xywh=boxes.shape[1] == ROTATED_FIELDS
    )
    assert isinstance(scaled, Tensor)
    size = int(shape[1]), int(shape[0])
    shapes = shapes_in(prediction, batch, index, least)
    return Found(path, size, scaled, prediction["conf"].clone(), prediction["cls"].clone(), shapes)


def pairs(one: Found, other: Found) -> list[tuple[int, int]]:
    """(index in `one`, index in `other`) of detections of the same class and object; each pairs at most once.

    As COCO's evaluation matches detections with labels (Lin et al., 2014): those of `other` choose by falling score,
    and each takes what it overlaps most of what is left. So whoever leaves out the least confident ones of `other`
    finds the same pairs among the rest. Turned boxes overlap by ProbIoU (Murrugarra-Llerena et al., 2021).
    """
    overlaps = _overlaps(one, other) * (one.classes[:, None] == other.classes[None])
    overlaps[overlaps < SAME_OBJECT] = 0.0
    found = []
    for index in other.scores.argsort(descending=True, stable=True).tolist():
        column = overlaps[:, index]
        if column.any():
            best = int(column.argmax())
            overlaps[best] = 0.0  # taken
            found.append((best, index))
    return found


def _overlaps(one: Found, other: Found) -> Tensor:
    from ultralytics.utils.metrics import batch_probiou, box_iou

    if not len(one.scores) or not len(other.scores):
        return torch.zeros(len(one.scores), len(other.scores))
    rotated = one.boxes.shape[1] == ROTATED_FIELDS
    return batch_probiou(one.boxes, other.boxes) if rotated else box_iou(one.boxes, other.boxes)


def corners(found: Found) -> Tensor:
    """(n, 4, 2) x y of the corners of turned boxes."""
    from ultralytics.utils.ops import xywhr2xyxyxyxy

    rotated: Tensor = xywhr2xyxyxyxy(found.boxes).reshape(-1, 4, 2)
    return rotated


def upright(found: Found) -> Tensor:
    """(n, 4) corners within the image; of turned boxes those of the upright box around each."""
    boxes = found.boxes
    if boxes.shape[1] == ROTATED_FIELDS:
        rotated = corners(found)
        boxes = torch.cat((rotated.amin(dim=1), rotated.amax(dim=1)), dim=1)
    width, height = found.size
    return torch.minimum(boxes.clamp(min=0), torch.tensor([width, height, width, height], dtype=boxes.dtype))
