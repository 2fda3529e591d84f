"""What a file finds in an image file, in the image's own pixels: what evidence is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qexport.detections.detections import NOTHING, Detections
from qexport.detections.layout import CORNERS, ROTATED
from qexport.measurement.shapes import Shape, shapes_in

ROTATED_FIELDS = 5
"""Values of a validator's rotated box: centre x y, width, height, angle."""


@dataclass(frozen=True)
class ImageDetections:
    """What a file finds in one image.

    Attributes:
        path: the image file.
        size: width and height in pixels, EXIF orientation applied; (0, 0) of a classifier, which looks at a crop.
        detections: boxes in pixels of the image; none of a classifier.
        shapes: masks or keypoints of the detections, as many or none at all.
        probabilities: (classes,) float32 of a classifier, None of other models.
    """

    path: Path
    size: tuple[int, int]
    detections: Detections
    shapes: tuple[Shape, ...] = ()
    probabilities: NDArray[np.float32] | None = None

    def confident(self, least: float) -> ImageDetections:
        """With the detections whose score is at least `least`."""
        kept = self.detections.scores >= least
        shapes = tuple(shape for shape, drawn in zip(self.shapes, kept.tolist(), strict=False) if drawn)
        return replace(self, detections=self.detections.chosen(kept), shapes=shapes)


DetectionsByImage = Mapping[str, ImageDetections]
"""By image name."""


def found_in(
    path: Path, prediction: Mapping[str, Tensor], batch: Mapping[str, Any], index: int, least: float = 1.0
) -> ImageDetections:
    """Bring a validator's detections from input pixels into those of the image, as its own `scale_preds` does.

    Args:
        prediction: `bboxes`, `conf` and `cls` of one image.
        batch: what the validator's data loader gave: input shape, original shape, and how one became the other.
        index: which image of the batch.
        least: confidence from which masks and keypoints are kept.
    """
    from ultralytics.utils.ops import scale_boxes

    boxes, shape = prediction["bboxes"].clone(), batch["ori_shape"][index]
    rotated = boxes.shape[1] == ROTATED_FIELDS
    scaled = scale_boxes(batch["img"].shape[2:], boxes, shape, batch["ratio_pad"][index], xywh=rotated)
    assert isinstance(scaled, Tensor)
    found = detections_of(scaled, prediction["conf"], prediction["cls"])
    return ImageDetections(path, (int(shape[1]), int(shape[0])), found, shapes_in(prediction, batch, index, least))


def detections_of(boxes: Tensor, scores: Tensor, classes: Tensor) -> Detections:
    """A copy of a validator's tensors as the noun: boxes are (n, 4) corners or rotated (n, 5), the rest is (n,)."""
    table = boxes.numpy().astype(np.float32)
    box_format = ROTATED if table.shape[1] == ROTATED_FIELDS else CORNERS
    numbers = scores.numpy().astype(np.float32), classes.numpy().astype(np.int64)
    return Detections(table[:, :4], *numbers, table[:, 4:], box_format)


def answer_in(path: Path, probabilities: Tensor) -> ImageDetections:
    """A classifier's answer: the probability of every class, (classes,)."""
    return ImageDetections(path, (0, 0), NOTHING, probabilities=probabilities.numpy().astype(np.float32))
