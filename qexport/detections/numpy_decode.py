"""Turn the outputs of a file, raw or decoded, into what it found, with NumPy and nothing else.

The arithmetic is that of the program's float decode, `qexport.programs.torch_decode`, and nothing here imports torch.
What devices call is in `qexport.decode`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

from qexport.detections.detections import Detections, Floats, corners_of
from qexport.detections.layout import CENTRE, CORNERS, ROTATED, UNIT_CENTRE, HeadLayout
from qexport.detections.suppression import suppressed, suppressed_rotated

MAX_CANDIDATES = 2048
"""Boxes that are looked at for overlaps, best first; a trained model has hundreds."""


def dequantised(values: NDArray[np.number], scale: float, zero_point: int) -> Floats:
    """(integers - zero point) · scale, as float32; floats stay what they are, whatever is said of their scale."""
    if not np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32)
    return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def quantised(values: Floats, scale: float, zero_point: int, dtype: DTypeLike) -> NDArray[np.integer]:
    """The integers of a type that are next to values / scale + zero point."""
    limits = np.iinfo(np.dtype(dtype))
    integers: NDArray[np.integer] = np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max).astype(dtype)
    return integers


def scale_to_pixels(output: Floats, layout: HeadLayout) -> None:
    """Multiply the coordinates of a decoded output by the input's width and height, in place.

    Args:
        output: (batch, n, 6 + k) of an end-to-end head, (batch, 4 + classes + k, anchors) of a one-to-many head, with
            coordinates in 0..1: see `qexport.detections.file_form`.
    """
    height, width = layout.imgsz
    values_last = output if layout.end2end else output.swapaxes(1, 2)
    values_last[..., :4] *= np.array([width, height, width, height], dtype=np.float32)
    if layout.extras == "keypoints":
        first, values = 6 if layout.end2end else 4 + layout.classes, layout.shape[1]
        values_last[..., first::values] *= width
        values_last[..., first + 1 :: values] *= height


def decoded(raw: Sequence[Floats], layout: HeadLayout) -> Floats:
    """Decode raw outputs into what the float file of the same model gives.

    Args:
        raw: outputs in the file's order. A detector's are (batch, height, width, channels): distances of each level to
            left, top, right, bottom in strides; class logits of each level; then what else it says, and prototypes of
            masks, which do not count here. A classifier's are its logits (batch, classes).

    Returns:
        (batch, n, 6 + k) for an end-to-end head, n being `max_detections`: x1, y1, x2, y2 in pixels, score, class, k
        further values; fewer rows where there are fewer anchors. (batch, 4 + classes + k, anchors) for a one-to-many
        head: centre, size, class scores, further values. (batch, classes) probabilities of a classifier.
    """
    levels = len(layout.strides)
    if not levels:
        return _softmax(raw[0])
    points, strides = anchor_points(layout)
    distances, logits = _flattened(raw[:levels]), _flattened(raw[levels : 2 * levels])
    if layout.reg_max > 1:
        distances = _expectation(distances, layout.reg_max)
    rest = np.zeros((*logits.shape[:2], 0), dtype=np.float32)
    if layout.extras:
        rest = _extras(_flattened(raw[2 * levels : 3 * levels]), points, strides, layout)
    boxes = _located(distances, rest, points, layout) * strides
    if layout.end2end:
        return _best(boxes, logits, rest, layout.max_detections)
    together = np.concatenate((boxes, sigmoid(logits), rest), axis=-1)
    return np.ascontiguousarray(together.transpose(0, 2, 1), dtype=np.float32)


def detections(
    raw: Sequence[Floats], layout: HeadLayout, confidence: float = 0.25, iou: float = 0.7
) -> list[Detections]:
    """Decode raw outputs and return what was found in each image, overlaps of one class suppressed where needed.

    Args:
        raw: as for `decoded`.
        confidence: least score.
        iou: intersection over union from which of two boxes of a class the worse one goes (one-to-many heads).
    """
    return [detections_in(image, layout, confidence, iou) for image in decoded(raw, layout)]


def detections_in(image: Floats, layout: HeadLayout, confidence: float = 0.25, iou: float = 0.7) -> Detections:
    """What one image of a decoded output says, of any head but a classifier's, best first.

    Args:
        image: rows of detections, or columns of anchors: see `decoded`. Boxes of RT-DETR are centre and size in 0..1.
    """
    if layout.end2end:
        rows = image[np.argsort(-image[:, 4], kind="stable")]
        kept = rows[rows[:, 4] >= confidence]
        boxes = _corners(kept[:, :4], layout)
        return Detections(boxes, kept[:, 4], kept[:, 5].astype(np.int64), kept[:, 6:], detected_format(layout))
    end = 4 + (layout.classes or len(image) - 4)
    classes, anchors = np.nonzero(image[4:end] >= confidence)
    scores = image[4:end][classes, anchors]
    order = np.argsort(-scores, kind="stable")[:MAX_CANDIDATES]
    classes, anchors, scores = classes[order], anchors[order], scores[order]
    boxes, rest = _corners(image[:4, anchors].T, layout), image[end:, anchors].T
    if layout.box_format == ROTATED:
        chosen = suppressed_rotated(np.concatenate((boxes, rest), axis=1), classes, iou)
    else:
        chosen = suppressed(boxes, classes, iou, layout.max_detections)
    chosen = chosen[: layout.max_detections]
    return Detections(boxes, scores, classes, rest, detected_format(layout)).chosen(chosen)


def as_columns(image: NDArray[np.floating], layout: HeadLayout) -> NDArray[np.float32]:
    """An image's output as `qexport.decode` has it: RT-DETR's own export has a row for each query, not a column."""
    values = 4 + layout.classes
    queries = layout.box_format == CENTRE and not layout.extras and image.shape[0] != values == image.shape[1]
    return np.ascontiguousarray(image.T if queries and layout.classes else image, dtype=np.float32)


def detected_format(layout: HeadLayout) -> str:
    """How detections of a head write a box: rotated ones stay as they are, all others become corners."""
    return ROTATED if layout.box_format == ROTATED else CORNERS


def _corners(boxes: Floats, layout: HeadLayout) -> Floats:
    """Boxes (n, 4) of a decoded output as corners in pixels; rotated ones stay centre and size."""
    if layout.box_format not in (CENTRE, UNIT_CENTRE):
        return boxes
    height, width = layout.imgsz if layout.box_format == UNIT_CENTRE else (1, 1)
    return (corners_of(boxes) * np.array([width, height, width, height], np.float32)).astype(np.float32)


def _located(distances: Floats, rest: Floats, points: Floats, layout: HeadLayout) -> Floats:
    """Boxes in strides: corners for an end-to-end head, else centre and size; turned ones always the latter."""
    before, after = distances[..., :2], distances[..., 2:]
    if layout.extras == "angles":
        (x, y), cos, sin = np.moveaxis((after - before) / 2, -1, 0), np.cos(rest[..., 0]), np.sin(rest[..., 0])
        rotated = np.stack((x * cos - y * sin, x * sin + y * cos), axis=-1)
        return np.concatenate((points + rotated, before + after), axis=-1)
    if layout.end2end:
        return np.concatenate((points - before, points + after), axis=-1)
    return np.concatenate((points + (after - before) / 2, before + after), axis=-1)


def _extras(raw: Floats, points: Floats, strides: Floats, layout: HeadLayout) -> Floats:
    """Further values of each anchor, (batch, anchors, k), as the output has them."""
    if layout.extras == "angles" and not layout.direct:
        return (sigmoid(raw) - np.float32(0.25)) * np.float32(np.pi)
    if layout.extras != "keypoints":
        return raw
    each = raw.reshape(*raw.shape[:2], *layout.shape)
    offsets = each[..., :2] if layout.direct else each[..., :2] * 2 - np.float32(0.5)
    pixels = (offsets + points[:, None]) * strides[:, None]
    return np.concatenate((pixels, sigmoid(each[..., 2:])), axis=-1).reshape(raw.shape)


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
    probabilities = _softmax(distances.reshape(*distances.shape[:2], 4, bins))
    result: Floats = (probabilities * np.arange(bins, dtype=np.float32)).sum(axis=-1)
    return result


def _softmax(logits: Floats) -> Floats:
    """Shares of the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Floats = weights / weights.sum(axis=-1, keepdims=True)
    return result


def _best(boxes: Floats, logits: Floats, rest: Floats, most: int) -> Floats:
    """The highest scores: first anchors by their best class, then (anchor, class) pairs among those."""
    count, classes = min(most, logits.shape[1]), logits.shape[2]
    anchors = np.argsort(-logits.max(axis=-1), axis=1, kind="stable")[:, :count]
    candidates = np.take_along_axis(logits, anchors[..., None], axis=1).reshape(len(logits), -1)
    pairs = np.argsort(-candidates, axis=1, kind="stable")[:, :count]
    chosen = np.take_along_axis(anchors, pairs // classes, axis=1)
    rows, following = (np.take_along_axis(each, chosen[..., None], axis=1) for each in (boxes, rest))
    scores = sigmoid(np.take_along_axis(candidates, pairs, axis=1))
    labels = (pairs % classes)[..., None]
    return np.concatenate((rows, scores[..., None], labels, following), axis=-1).astype(np.float32)
