"""Turn the raw outputs of an integer-only detector into boxes, scores and classes, with NumPy and nothing else.

For devices that run a `…_int8-full.tflite` file: run the interpreter, make floats of its outputs with `dequantised`,
and hand them to `detections`. The arithmetic is that of the float decode in `qexport.heads`, and nothing here imports
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MOST_DETECTIONS = 300


@dataclass(frozen=True)
class HeadLayout:
    """What has to be known of a detection head to decode its raw outputs.

    Attributes:
        strides: pixels in a cell of each level.
        imgsz: (height, width) of the input in pixels.
        classes: how many there are.
        reg_max: bins of each box side's distribution; 1 where the side is a plain number.
        end2end: every object is found once; otherwise overlaps have to be suppressed.
    """

    strides: tuple[int, ...]
    imgsz: tuple[int, int]
    classes: int
    reg_max: int
    end2end: bool


@dataclass(frozen=True)
class Detections:
    """What was found in one image, best first.

    Attributes:
        boxes: (n, 4) float32, x1 y1 x2 y2 in pixels of the input.
        scores: (n,) float32, 0..1.
        classes: (n,) int64.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[np.int64]


def layout_of(metadata: Mapping[str, Any]) -> HeadLayout:
    """Read the layout from the metadata that every integer-only file carries (`metadata.json` in the zip behind it)."""
    head = metadata["raw_outputs"]
    height, width = metadata["imgsz"]
    return HeadLayout(
        strides=tuple(head["strides"]),
        imgsz=(int(height), int(width)),
        classes=len(metadata["names"]),
        reg_max=int(head["reg_max"]),
        end2end=bool(metadata["end2end"]),
    )


def dequantised(integers: NDArray[np.integer], scale: float, zero_point: int) -> Floats:
    """(integers - zero point) · scale, as float32."""
    return (integers.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def decoded(boxes: Sequence[Floats], scores: Sequence[Floats], layout: HeadLayout) -> Floats:
    """Decode raw outputs into what the float file of the same model gives.

    Args:
        boxes: of each level (batch, height, width, 4 · reg_max), distances to left, top, right, bottom in strides.
        scores: of each level (batch, height, width, classes), logits.

    Returns:
        (batch, 300, 6) for an end-to-end head: x1, y1, x2, y2 in pixels, score, class; fewer rows where there are
        fewer anchors. (batch, 4 + classes, anchors) for a one-to-many head: centre, size, class scores.
    """
    points, strides = anchor_points(layout)
    distances, logits = _flattened(boxes), _flattened(scores)
    if layout.reg_max > 1:
        distances = _expectation(distances, layout.reg_max)
    first, second = (points - distances[..., :2]) * strides, (points + distances[..., 2:]) * strides
    if layout.end2end:
        return _best(np.concatenate((first, second), axis=-1), logits)
    located = np.concatenate(((first + second) / 2, second - first, sigmoid(logits)), axis=-1)
    return np.ascontiguousarray(located.transpose(0, 2, 1), dtype=np.float32)


def detections(
    boxes: Sequence[Floats],
    scores: Sequence[Floats],
    layout: HeadLayout,
    confidence: float = 0.25,
    iou: float = 0.7,
) -> list[Detections]:
    """Decode raw outputs and return what was found in each image, overlaps of one class suppressed where needed.

    Args:
        boxes, scores: as for `decoded`.
        confidence: least score.
        iou: intersection over union from which of two boxes of a class the worse one goes (one-to-many heads).
    """
    return [_found(image, layout, confidence, iou) for image in decoded(boxes, scores, layout)]


def _found(image: Floats, layout: HeadLayout, confidence: float, iou: float) -> Detections:
    if layout.end2end:
        kept = image[image[:, 4] >= confidence]
        return Detections(kept[:, :4], kept[:, 4], kept[:, 5].astype(np.int64))
    classes, anchors = np.nonzero(image[4:] >= confidence)
    scores = image[4:][classes, anchors]
    order = np.argsort(-scores, kind="stable")
    classes, anchors, scores = classes[order], anchors[order], scores[order]
    centre, half = image[:2, anchors].T, image[2:4, anchors].T / 2
    boxes: Floats = np.concatenate((centre - half, centre + half), axis=1, dtype=np.float32)
    kept_rows = suppressed(boxes, classes, iou)[:MOST_DETECTIONS]
    return Detections(boxes[kept_rows], scores[kept_rows], classes[kept_rows])


def suppressed(boxes: Floats, classes: NDArray[np.integer], iou: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression: rows to keep of boxes (n, 4) that are sorted by score, best first."""
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(int(best))
        rival = (classes[left] == classes[best]) & (_overlaps(boxes[best], boxes[left]) > iou)
        left = left[~rival]
    return np.array(kept, dtype=np.int64)


def _overlaps(one: Floats, others: Floats) -> Floats:
    """Intersection over union of one box (4,) with others (n, 4)."""
    sides = np.minimum(one[2:], others[:, 2:]) - np.maximum(one[:2], others[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1) + np.prod(one[2:] - one[:2])
    result: Floats = shared / np.maximum(areas - shared, 1e-7)
    return result


def anchor_points(layout: HeadLayout) -> tuple[Floats, Floats]:
    """Cell centres (anchors, 2) as x, y in strides, and the strides (anchors, 1) in pixels, level after level."""
    points, strides = [], []
    for stride in layout.strides:
        height, width = layout.imgsz[0] // stride, layout.imgsz[1] // stride
        y, x = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
        points.append(np.stack((x, y), axis=-1).reshape(-1, 2))
        strides.append(np.full((height * width, 1), stride, dtype=np.float32))
    return np.concatenate(points), np.concatenate(strides)


def sigmoid(logits: Floats) -> Floats:
    """1 / (1 + exp(-x)) without overflow."""
    small = np.exp(-np.abs(logits))
    result: Floats = np.where(logits >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
    return result


def _flattened(levels: Sequence[Floats]) -> Floats:
    """(batch, h, w, c) of each level to (batch, anchors, c)."""
    return np.concatenate([level.reshape(level.shape[0], -1, level.shape[-1]) for level in levels], axis=1)


def _expectation(distances: Floats, bins: int) -> Floats:
    """Expected value of the discretised distance distribution (Li et al., "Generalized Focal Loss", 2020)."""
    each = distances.reshape(*distances.shape[:2], 4, bins)
    weights = np.exp(each - each.max(axis=-1, keepdims=True))
    result: Floats = (weights @ np.arange(bins, dtype=np.float32)) / weights.sum(axis=-1)
    return result


def _best(boxes: Floats, logits: Floats) -> Floats:
    """The highest scores: first anchors by their best class, then (anchor, class) pairs among those."""
    count, classes = min(MOST_DETECTIONS, logits.shape[1]), logits.shape[2]
    anchors = np.argsort(-logits.max(axis=-1), axis=1, kind="stable")[:, :count]
    candidates = np.take_along_axis(logits, anchors[..., None], axis=1).reshape(len(logits), -1)
    pairs = np.argsort(-candidates, axis=1, kind="stable")[:, :count]
    chosen = np.take_along_axis(anchors, pairs // classes, axis=1)
    rows = np.take_along_axis(boxes, chosen[..., None], axis=1)
    scores = sigmoid(np.take_along_axis(candidates, pairs, axis=1))
    return np.concatenate((rows, scores[..., None], (pairs % classes)[..., None]), axis=-1).astype(np.float32)
