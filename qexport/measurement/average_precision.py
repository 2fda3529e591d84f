"""Average precision of weighted images: what a bootstrap needs, without matching or sorting anything again.

The same figure as `ultralytics.utils.metrics.ap_per_class`, which is COCO's 101-point interpolation (Lin et al.,
"Microsoft COCO", 2014) with the value behind the last recall taken as zero. Between two correct detections precision
only falls, so its envelope is a step function of recall, and a correct detection adds its step's height times the
interpolation points that its recall passes. An image of weight k counts like k copies of it, to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
Weights = NDArray[np.integer]
"""How often each image counts: one row for each resample, one column for each image."""

POINTS = np.linspace(0.0, 1.0, 101)
_WIDTHS = np.diff(POINTS, prepend=0.0) / 2 + np.diff(POINTS, append=1.0) / 2
PASSED = np.concatenate(([0.0], np.cumsum(_WIDTHS)))
"""Area of the trapezoidal rule's first n points, for n from 0 to 101."""
PERFECT = float(PASSED[100])
"""What detections come to that are all right, and first: the last point is half lost."""
EPSILON = 1e-16
"""Ultralytics adds it to the number of labels."""
BLOCK = 2**20
"""Elements (resamples x detections, or x images) that are worked on at once."""


@dataclass(frozen=True)
class ImageScores:
    """One image's detections and labels, as a validator matched them.

    Attributes:
        correct: (n, thresholds) bool, whether a detection is right at each IoU threshold.
        confidence, classes: (n,) of the detections.
        labels: (m,) classes of the labels.
    """

    correct: NDArray[np.bool_]
    confidence: NDArray[np.floating]
    classes: NDArray[Any]
    labels: NDArray[Any]


Scores = Mapping[str, ImageScores]
"""By image name, in the validator's order."""


@dataclass(frozen=True)
class ClassScores:
    """One class over all images, detections by falling confidence.

    Attributes:
        number: the class.
        correct: (n, thresholds) bool.
        image: (n,) column of each detection's image.
        labels: (images,) how many labels of the class each image has.
    """

    number: int
    correct: NDArray[np.bool_]
    image: NDArray[np.integer]
    labels: NDArray[np.integer]


def at_first_threshold(classes: Sequence[ClassScores]) -> tuple[ClassScores, ...]:
    """The same matches at the least IoU threshold alone, which is 0.5."""
    return tuple(replace(each, correct=each.correct[:, :1]) for each in classes)


def by_class(scores: Scores, images: Sequence[str]) -> tuple[ClassScores, ...]:
    """Sort detections, once, into the classes that have labels; `images` are the columns of weights to come.

    Equal confidences keep the order that Ultralytics' own sort gives them, for which it promises none. Scores are read
    once for each of their arrays: of many images all of them at once take more than what is made here.
    """
    column = {name: index for index, name in enumerate(images)}
    columns = np.array([column[name] for name in scores], dtype=np.int32)
    order = np.argsort(-np.concatenate([each.confidence for each in scores.values()]))
    classes = np.concatenate([each.classes for each in scores.values()])
    order = order[np.argsort(classes[order], kind="stable")]  # one class behind the other
    classes = classes[order]
    correct = np.concatenate([each.correct for each in scores.values()])[order]
    image = np.repeat(columns, [len(each.classes) for each in scores.values()])[order]
    labels = np.concatenate([each.labels for each in scores.values()])
    labelled = np.repeat(columns, [len(each.labels) for each in scores.values()])
    numbers = np.unique(labels)
    places = zip(np.searchsorted(classes, numbers), np.searchsorted(classes, numbers, "right"), strict=True)
    return tuple(
        ClassScores(
            int(number),
            correct[start:end],
            image[start:end],
            np.bincount(labelled[labels == number], minlength=len(images)),
        )
        for number, (start, end) in zip(numbers, places, strict=True)
    )


def average_precision(one: ClassScores, weights: Weights) -> FloatArray:
    """Average precision of a class, mean over the IoU thresholds.

    Returns:
        (resamples,), not a number where a resample has no label of the class.
    """
    rows = max(1, BLOCK // max(1, len(one.image), weights.shape[1]))
    blocks = [_block(one, weights[start : start + rows]) for start in range(0, len(weights), rows)]
    return np.concatenate(blocks)


def _block(one: ClassScores, weights: Weights) -> FloatArray:
    labels = weights @ one.labels
    right = np.flatnonzero(one.correct.any(axis=1))
    counted = weights[:, one.image]
    found = np.cumsum(counted, axis=1, dtype=np.int32)[:, right]
    counted = counted[:, right]
    total = np.zeros(len(weights))
    for threshold in one.correct[right].T:
        total += _area(counted[:, threshold], found[:, threshold], labels)
    return np.where(labels > 0, total / one.correct.shape[1], np.nan)


def _area(counted: Weights, found: Weights, labels: Weights) -> FloatArray:
    """Area below the envelope of precision over recall.

    Args:
        counted: (resamples, right) weight of each correct detection.
        found: (resamples, right) weighted number of detections up to and with it.
        labels: (resamples,).
    """
    true = np.cumsum(counted, axis=1, dtype=np.int32)
    precision = true / np.maximum(found, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    passed = PASSED[np.searchsorted(POINTS, true / (labels[:, None] + EPSILON))]
    area: FloatArray = (envelope * np.diff(passed, axis=1, prepend=0.0)).sum(axis=1)
    return area


def mean_average_precision(classes: Sequence[ClassScores], weights: Weights) -> FloatArray:
    """Mean over the classes that have labels in a resample, (resamples,); 0 where none has."""
    total, labelled = np.zeros(len(weights)), np.zeros(len(weights))
    for one in classes:
        figure = average_precision(one, weights)
        seen = ~np.isnan(figure)
        total[seen] += figure[seen]
        labelled += seen
    return total / np.maximum(labelled, 1)


def figure_once(classes: Sequence[ClassScores], images: int) -> float:
    """Mean average precision with every image counted once."""
    return float(mean_average_precision(classes, np.ones((1, images), dtype=np.int64))[0])


def validator_figures(classes: Sequence[ClassScores]) -> tuple[float, float]:
    """mAP50-95 and mAP50 as Ultralytics' validators have them, to the last digit.

    It is `ultralytics.utils.metrics.ap_per_class` (8.4) with one threshold after the other: that one holds the curves
    of all thresholds, and others besides, which of many images take more memory than everything else.
    """
    from ultralytics.utils.metrics import compute_ap

    found = np.array([[_interpolated(one, right, compute_ap) for right in one.correct.T] for one in classes])
    return (float(found.mean()), float(found[:, 0].mean())) if len(found) else (0.0, 0.0)


def _interpolated(one: ClassScores, right: NDArray[np.bool_], compute_ap: Any) -> float:
    if not len(right):
        return 0.0
    true = right.cumsum()
    return float(compute_ap(true / (one.labels.sum() + EPSILON), true / np.arange(1, len(right) + 1))[0])


def class_precisions(classes: Sequence[ClassScores]) -> Iterator[tuple[int, int, float]]:
    """(class, labels, average precision) with every image counted once."""
    for one in classes:
        once = np.ones((1, len(one.labels)), dtype=np.int64)
        yield one.number, int(one.labels.sum()), float(average_precision(one, once)[0])
