"""Score thresholds of a quantised model that do what 0.25 does with the float one: for all classes, and for each.

Scores of INT8 detectors fall, so that a threshold tuned on the float model loses detections. What replaces it leaves
precision as it is:

- Without labels the float model's detections are the truth. There precision equals recall, as many are gained as are
  lost, where as many are found. The threshold of equal counts is the equipercentile equating of scores (Braun and
  Holland, "Observed-score test equating", 1982); counts are smoothed, or the one score next to 0.25 would decide
  (von Davier, Holland and Thayer, "The Kernel Method of Test Equating", 2004, with a logistic kernel on logits).
- Against labels it is the threshold nearest to that one at which the float model's share is right, to within one
  detection: fewer than that is chance.

Equal scores have equal thresholds, and logits that are all off by one number move the threshold's by the same number.
No threshold is under `MIN_SCORE`: that one says that too few are found from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.detections.agreement import MIN_SCORE
from qexport.detections.detections import Detections
from qexport.detections.matching import CONFIDENCE, pairs
from qexport.detections.thresholds import MIN_COUNT, Thresholds

BANDWIDTH = 0.2
"""Of the kernel, in logits: 0.04 in scores about 0.25. A wider one would feel the end of scores at `MIN_SCORE`."""
MAX_SCORE = 1 - 1e-6
GRID = np.linspace(MIN_SCORE, 0.95, 171)
"""Thresholds that are tried against labels."""
BISECTIONS = 50
DIGITS = 3

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Side:
    """One model's detections in all images; `right` is None where nobody knows."""

    logits: NDArray[np.float64]
    classes: NDArray[np.int64]
    right: Flags | None

    def of(self, number: int) -> _Side:
        """Those of one class."""
        rows = self.classes == number
        return _Side(self.logits[rows], self.classes[rows], None if self.right is None else self.right[rows])

    def counted(self, threshold: float) -> tuple[float, float]:
        """Smoothed, how many lie above a threshold, a logit, and how many of those are right."""
        weights = (1 + np.tanh((self.logits - threshold) / (2 * BANDWIDTH))) / 2
        return float(weights.sum()), float(weights[self.right].sum()) if self.right is not None else 0.0


def thresholds(
    reference: Sequence[Detections], own: Sequence[Detections], right: tuple[Sequence[Flags], Sequence[Flags]] | None
) -> Thresholds | None:
    """Find the thresholds of `own` that stand for 0.25 of `reference`, image by image the same ones.

    Args:
        reference, own: of the float and the quantised model, with all scores from `MIN_SCORE` on at least.
        right: of either side and each image which detections, (n,), agree with a label; None without labels.

    Returns:
        None where the float model finds nothing with confidence, or the other one has none of it.
    """
    shifts = [shift for two in zip(reference, own, strict=True) for shift in _shifts(*two)]
    if not shifts:
        return None
    real, other = (_side(each, right[i] if right else None) for i, each in enumerate((reference, own)))
    everything = _equivalent(real, other)
    numbers, counts = np.unique(real.classes[real.logits >= _logit(CONFIDENCE)], return_counts=True)
    count = {str(number): int(seen) for number, seen in zip(numbers.tolist(), counts, strict=True)}
    classes = {
        name: _equivalent(real.of(int(name)), other.of(int(name))) if seen >= MIN_COUNT else everything
        for name, seen in count.items()
    }
    shift = round(float(np.mean(shifts)), DIGITS)
    return Thresholds(CONFIDENCE, everything, classes, shift, len(reference), count)


def _shifts(reference: Detections, own: Detections) -> list[float]:
    """Differences of scores of pairs in one image."""
    real, other = reference.confident(CONFIDENCE), own.confident(MIN_SCORE)
    return [float(other.scores[j]) - float(real.scores[i]) for i, j in pairs(real, other)]


def _side(images: Sequence[Detections], right: Sequence[Flags] | None) -> _Side:
    scores = np.concatenate([each.scores for each in images]).astype(np.float64)
    kept = scores >= MIN_SCORE
    classes = np.concatenate([each.classes for each in images])[kept]
    return _Side(_logit(scores[kept]), classes, None if right is None else np.concatenate(list(right))[kept])


def _equivalent(real: _Side, own: _Side) -> float:
    """The threshold of one side that stands for 0.25 of the other."""
    count, agreed = real.counted(_logit(CONFIDENCE))
    found = _of_equal_count(count, own)
    if real.right is not None and own.right is not None:
        found = _equally_right(agreed / count, count, own, found)
    return round(float(1 / (1 + np.exp(-found))), DIGITS)


def _of_equal_count(count: float, own: _Side) -> float:
    """The logit above which so many are found, by bisection: the smoothed count falls as it rises."""
    low, high = _logit(MIN_SCORE), _logit(1.0)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if own.counted(middle)[0] >= count else (low, middle)
    return float(low)


def _equally_right(share: float, count: float, own: _Side, start: float) -> float:
    """The logit nearest to `start` above which a share is right; from half to twice the count is found there."""
    tried = [start, *sorted(_logit(GRID), key=lambda logit: abs(logit - start))]
    apart: dict[float, float] = {}
    for logit in tried:
        found, agreed = own.counted(logit)
        if found and count / 2 <= found <= 2 * count:
            if abs(agreed - share * found) < 1:
                return float(logit)
            apart[float(logit)] = abs(agreed / found - share)
    return min(apart, key=apart.__getitem__, default=start)


def _logit(score: Any) -> Any:
    bounded = np.clip(score, MIN_SCORE, MAX_SCORE)
    return np.log(bounded / (1 - bounded))
