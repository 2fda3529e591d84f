"""Decoded outputs by hand: a few objects among faint background, as each kind of head writes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qexport.detections.layout import HeadLayout

Array = NDArray[np.float32]

STRIDES, IMGSZ, CLASSES, KEYPOINTS = (8, 16, 32), (160, 224), 6, (3, 3)
EXTRAS = {"": 0, "coefficients": 8, "keypoints": 9, "angles": 1}
SIDE = {8: 24.0, 16: 48.0, 32: 96.0}
"""Mean side of a box on each level, in pixels."""


def layout(head: str, extras: str = "") -> HeadLayout:
    """The layout of a head at the scenes' size."""
    shape = {"keypoints": KEYPOINTS, "coefficients": (1, 8), "angles": (1, 1)}.get(extras, (0, 0))
    rows = head in ("end2end", "queries")
    return HeadLayout(STRIDES, IMGSZ, CLASSES, end2end=rows, extras=extras, shape=shape, head=head)


def columns(seed: int, extras: str, faint: bool = False) -> Array:
    """(4 + classes + k, anchors): two objects on each level, with scores from 0.3 to 0.9 unless they are faint."""
    generator = np.random.default_rng(seed)
    parts = []
    for number, stride in enumerate(STRIDES):
        y, x = (axis.ravel() * stride + stride / 2 for axis in np.mgrid[: IMGSZ[0] // stride, : IMGSZ[1] // stride])
        count = len(x)
        sides = SIDE[stride] * generator.uniform(0.7, 1.3, (2, count)) * np.array([[1.5], [0.7]])
        scores = generator.uniform(0.0002, 0.0009, (CLASSES, count))
        chosen = np.array([count // 4, 3 * count // 4 + 1])
        best = generator.uniform(0.03, 0.2, 2) if faint else np.array([0.3 + 0.1 * number, 0.9 - 0.1 * number])
        scores[generator.integers(0, CLASSES, 2), chosen] = best
        parts.append(np.concatenate((np.stack((x, y)), sides, scores, rest_of(generator, extras, x, y, sides))))
    return np.concatenate(parts, axis=1).astype(np.float32)


def rest_of(generator: np.random.Generator, extras: str, x: Array, y: Array, sides: Array) -> Array:
    """What else is said of each anchor (k, anchors)."""
    count = len(x)
    if extras == "coefficients":
        return generator.normal(0, 1, (8, count)).astype(np.float32)
    if extras == "angles":
        return generator.uniform(0.3, 1.2, (1, count)).astype(np.float32)
    if extras == "keypoints":
        places = generator.uniform(-0.5, 0.5, (3, 2, count)) * sides + np.stack((x, y))
        return np.concatenate((places, np.full((3, 1, count), 0.9)), axis=1).reshape(9, count).astype(np.float32)
    return np.zeros((0, count), np.float32)


def written(image: Array, at: HeadLayout) -> Array:
    """Columns as a head's output: as they are, or its best rows."""
    if not at.end2end:
        return image
    scores = image[4 : 4 + CLASSES]
    order = np.argsort(-scores.ravel(), kind="stable")[:100]
    classes, anchors = np.unravel_index(order, scores.shape)
    boxes = image[:4, anchors].T
    if at.head == "queries":
        boxes = boxes / np.array([IMGSZ[1], IMGSZ[0], IMGSZ[1], IMGSZ[0]])
    elif at.extras != "angles":
        boxes = np.concatenate((boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2), axis=1)
    rows = (boxes, scores[classes, anchors][:, None], classes[:, None], image[4 + CLASSES :, anchors].T)
    return np.concatenate(rows, axis=1).astype(np.float32)


def noisy(image: Array, extras: str, seed: int) -> Array:
    """The same with as much noise as INT8 was seen to add at most: 2 % of a side, 0.3 of a logit, 2 % of the rest."""
    generator = np.random.default_rng(seed)
    made, end = image.astype(np.float64), 4 + CLASSES
    made[:4] += generator.normal(0, 0.02, made[:4].shape) * np.tile(image[2:4], (2, 1))
    logits = np.log(made[4:end] / (1 - made[4:end])) + generator.normal(0, 0.3, made[4:end].shape)
    made[4:end] = 1 / (1 + np.exp(-logits))
    spread = {"keypoints": 0.5, "coefficients": 0.1, "angles": 0.03}.get(extras, 0.0)
    rest = generator.normal(0, spread, made[end:].shape)
    if extras == "keypoints":
        rest[2::3] = 0
    made[end:] += rest
    return made.astype(np.float32)
