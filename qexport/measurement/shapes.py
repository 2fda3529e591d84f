"""What a detection looks like besides its box: the outline of its mask, its keypoints. For drawing only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MAX_POLYGONS = 3
"""Of one mask, the largest parts."""
MAX_CORNERS = 24
"""Of one polygon: it is drawn a few hundred pixels wide."""
HALF = 127
"""Grey above which an enlarged mask is set."""


@dataclass(frozen=True)
class Shape:
    """One detection's, in pixels of the image.

    Attributes:
        polygons: outline of the mask, each (n, 2) int32 x y; empty without a mask.
        points: (keypoints, 3) float32 x y and how sure it is that they can be seen; None without keypoints.
    """

    polygons: tuple[NDArray[np.int32], ...] = ()
    points: NDArray[np.float32] | None = None


def shapes_in(
    prediction: Mapping[str, Tensor], batch: Mapping[str, Any], index: int, least: float
) -> tuple[Shape, ...]:
    """Shapes of a validator's detections of one image; () where the task has none.

    Args:
        prediction: `conf`, and `masks` (n, height, width) of the input or `keypoints` (n, keypoints, 2 or 3) in its
            pixels.
        batch, index: as for `qexport.measurement.image_detections.found_in`.
        least: detections that are less confident have none: they are not drawn.
    """
    confident = (prediction["conf"] >= least).tolist()
    if "keypoints" in prediction:
        points = _seen(_scaled(prediction["keypoints"].float().clone(), batch, index).cpu().numpy())
        return tuple(Shape(points=each if kept else None) for each, kept in zip(points, confident, strict=True))
    if "masks" in prediction:
        masks = prediction["masks"]
        return tuple(_outline(masks[i], batch, index) if kept else Shape() for i, kept in enumerate(confident))
    return ()


def _seen(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, keypoints, 3): keypoints of two values are all seen."""
    if points.shape[-1] > 2:
        return np.asarray(points[..., :3], dtype=np.float32)
    return np.concatenate((points, np.ones_like(points[..., :1])), axis=-1).astype(np.float32)


def _outline(mask: Tensor, batch: Mapping[str, Any], index: int) -> Shape:
    """A mask's outline; masks of a quarter of the input's size are made as large first, for pixels have no edges."""
    import cv2
    import torch

    height, width = batch["img"].shape[2:]
    grey = cv2.resize(mask.cpu().numpy().astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_LINEAR)
    found, _ = cv2.findContours((grey > HALF).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for each in sorted(found, key=cv2.contourArea, reverse=True)[:MAX_POLYGONS]:
        contour = simplified(np.asarray(each)).reshape(-1, 2).astype(np.float32)
        if len(contour) > 2:
            scaled = _scaled(torch.from_numpy(contour + 0.5), batch, index)
            polygons.append(scaled.round().numpy().astype(np.int32))
    return Shape(tuple(polygons))


def simplified(contour: NDArray[Any]) -> NDArray[Any]:
    """A contour (n, 1, 2) of at most `MAX_CORNERS` corners (Douglas and Peucker, 1973), as near as that allows."""
    import cv2

    allowed = 1.0
    while len(contour) > MAX_CORNERS:
        contour = np.asarray(cv2.approxPolyDP(contour, allowed, closed=True))
        allowed *= 1.5
    return contour


def _scaled(coordinates: Tensor, batch: Mapping[str, Any], index: int) -> Tensor:
    """From pixels of the input to those of the image."""
    from ultralytics.utils.ops import scale_coords

    shape, ratio_pad = batch["ori_shape"][index], batch["ratio_pad"][index]
    scaled = scale_coords(batch["img"].shape[2:], coordinates, shape, ratio_pad)
    assert isinstance(scaled, Tensor)
    return scaled
