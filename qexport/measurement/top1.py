"""Top-1 accuracy of weighted images: a classifier's counterpart of `qexport.measurement.average_precision`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from qexport.measurement.average_precision import FloatArray, Scores, Weights


def top1(scores: Scores, images: Sequence[str], weights: Weights) -> FloatArray:
    """Share of right answers in each resample, (resamples,); `images` are the columns of the weights."""
    right = np.array([bool(scores[name].correct.item()) for name in images])
    share: FloatArray = weights @ right / weights.sum(axis=1)
    return share


def class_shares(scores: Scores) -> Iterator[tuple[int, int, float]]:
    """(class, images of it, share of them that is answered rightly)."""
    labels = np.array([each.labels.item() for each in scores.values()])
    right = np.array([bool(each.correct.item()) for each in scores.values()])
    for number in np.unique(labels):
        of_class = right[labels == number]
        yield int(number), len(of_class), float(of_class.mean())
