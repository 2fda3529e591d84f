"""Score thresholds of a quantised model that do what 0.25 does with the float one: for all classes, and for each.

Scores of INT8 detectors fall, so that a threshold tuned on the float model loses detections. What replaces it leaves
precision as it is:

- Against labels: of the numbers of best detections from half as many as the float model's to twice as many, the one
  nearest to it of which the float model's share is right, to within one detection.
- Without labels the float model's detections are the truth. There precision equals recall, as many are gained as are
  lost, where as many are found: the threshold of equal counts, which is equipercentile equating of scores (Braun and
  Holland, "Observed-score test equating", 1982).

The threshold lies between two neighbouring scores where 0.25 lies between the float model's, so that equal scores
have equal thresholds. No threshold is under `MIN_SCORE`: that one says that too few are found from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.detections.agreement import MIN_SCORE
from qexport.detections.detections import Detections
from qexport.detections.matching import CONFIDENCE, pairs

MIN_COUNT = 10
"""Confident detections of the float model from which a class has a threshold of its own."""
DIGITS = 4

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Thresholds:
    """What to use where the float model's threshold is 0.25; scores are 0..1.

    Attributes:
        everything: one threshold for all classes.
        classes: by class number, as text, of each class that the float model finds; `everything` where that is fewer
            than `MIN_COUNT` times.
        shift: mean over pairs of the quantised score minus the float one.
        images: how many these figures are from.
        count: by class number, how often the float model finds it with a score of 0.25 or more.
    """

    everything: float
    classes: Mapping[str, float]
    shift: float
    images: int
    count: Mapping[str, int]


def to_metadata(found: Thresholds) -> dict[str, Any]:
    """The entry "thresholds" of an artifact's metadata: plain numbers, as the noun has them."""
    return asdict(found)


@dataclass(frozen=True)
class _Side:
    """One model's detections in all images by falling score; `right` is None where nobody knows."""

    scores: NDArray[np.floating]
    classes: NDArray[np.int64]
    right: Flags | None

    def of(self, number: int) -> _Side:
        """Those of one class."""
        rows = self.classes == number
        return _Side(self.scores[rows], self.classes[rows], None if self.right is None else self.right[rows])


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
    numbers, counts = np.unique(real.classes[real.scores >= CONFIDENCE], return_counts=True)
    count = {str(number): int(seen) for number, seen in zip(numbers.tolist(), counts, strict=True)}
    classes = {
        name: _equivalent(real.of(int(name)), other.of(int(name))) if seen >= MIN_COUNT else everything
        for name, seen in count.items()
    }
    return Thresholds(everything, classes, round(float(np.mean(shifts)), DIGITS), len(reference), count)


def _shifts(reference: Detections, own: Detections) -> list[float]:
    """Differences of scores of pairs in one image."""
    real, other = reference.confident(CONFIDENCE), own.confident(MIN_SCORE)
    return [float(other.scores[j]) - float(real.scores[i]) for i, j in pairs(real, other)]


def _side(images: Sequence[Detections], right: Sequence[Flags] | None) -> _Side:
    scores = np.concatenate([each.scores for each in images])
    classes = np.concatenate([each.classes for each in images])
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] >= MIN_SCORE]
    flags = None if right is None else np.concatenate(list(right))[order]
    return _Side(scores[order], classes[order], flags)


def _equivalent(real: _Side, own: _Side) -> float:
    """The threshold of one side that stands for 0.25 of the other, which has something from there on."""
    count = int((real.scores >= CONFIDENCE).sum())
    number = count if real.right is None or own.right is None else _equally_right(real.right[:count], own.right)
    above, below = _around(real.scores, count)
    place = (CONFIDENCE - below) / (above - below)
    if number > len(own.scores):
        return MIN_SCORE
    above, below = _around(own.scores, number)
    return round(below + place * (above - below), DIGITS)


def _around(scores: NDArray[np.floating], number: int) -> tuple[float, float]:
    """The lowest of so many best scores, and the next one."""
    return float(scores[number - 1]), float(scores[number]) if number < len(scores) else MIN_SCORE


def _equally_right(real: Flags, own: Flags) -> int:
    """How many of the best are to be taken so that the same share of them is right; see above."""
    count = len(real)
    numbers = np.arange((count + 1) // 2, min(2 * count, len(own)) + 1)
    if not len(numbers):
        return count
    apart = np.abs(np.cumsum(own)[numbers - 1] - real.mean() * numbers)
    equal = numbers[apart < 1 - 1e-9]
    if not len(equal):
        return int(numbers[(apart / numbers).argmin()])
    return int(equal[np.abs(equal - count).argmin()])
