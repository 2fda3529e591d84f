"""How scores move: a file may find every object of the float file and still believe less in each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qexport.detections.agreement import MIN_SCORE
from qexport.detections.detections import Detections
from qexport.detections.equating import Flags, thresholds
from qexport.detections.matching import pairs
from qexport.detections.thresholds import Thresholds
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.evidence.parts import ConfidenceShift
from qexport.measurement.image_detections import DetectionsByImage

EDGES = np.linspace(-0.5, 0.5, 41)
"""Bin edges of the histogram of shifts; what lies beyond counts into the outermost bins."""


def confidence_shift(reference: DetectionsByImage, own: DetectionsByImage, least: float) -> ConfidenceShift | None:
    """Compare scores of detections that pair up; None where none do.

    The float file's detections count from `least` on, the other file's whatever their score: one that falls below the
    threshold is the very shift that is looked for. A classifier has no detections: there the probabilities of the
    class that the float file answers are compared, one pair an image.
    """
    two: list[tuple[float, float]] = []
    for name, found in reference.items():
        expected, actual = found.probabilities, own[name].probabilities
        if expected is not None and actual is not None:
            answer = int(expected.argmax())
            two.append((float(expected[answer]), float(actual[answer])))
            continue
        kept, other = found.detections.confident(least), own[name].detections
        two += [(float(kept.scores[i]), float(other.scores[j])) for i, j in pairs(kept, other)]
    return summary(two) if two else None


def evaluated_thresholds(reference: Accuracy, own: Accuracy) -> Thresholds | None:
    """Thresholds that stand for the float file's; None of classifiers, and where nothing is found.

    Where images have labels, what agrees with them is what the validator matched at an overlap of 0.5.
    """
    names = [name for name, found in reference.found.items() if found.probabilities is None]
    if not names:
        return None
    labelled = any(len(reference.scores[name].labels) for name in names if name in reference.scores)
    (real, right), (other, right_too) = (_counted(each, names, labelled) for each in (reference, own))
    return thresholds(real, other, (right, right_too) if labelled else None)


def _counted(accuracy: Accuracy, names: Sequence[str], labelled: bool) -> tuple[list[Detections], list[Flags]]:
    """Of each image the detections that thresholds are found by, and which of them, (n,), agree with a label."""
    found, right = list[Detections](), list[Flags]()
    for name in names:
        every = accuracy.found[name].detections
        kept = every.scores >= MIN_SCORE
        found.append(every.chosen(kept))
        if labelled:
            right.append(accuracy.scores[name].correct[kept, 0])
    return found, right


def summary(two: Sequence[tuple[float, float]]) -> ConfidenceShift:
    """Describe pairs of (float score, score), of which there must be one at least."""
    real, approximate = np.array(two, dtype=np.float64).T
    moved = approximate - real
    low, middle, high = np.percentile(moved, (5, 50, 95))
    counts, _ = np.histogram(np.clip(moved, EDGES[0], EDGES[-1]), bins=EDGES)
    return ConfidenceShift(
        matched=len(two),
        mean_float=float(real.mean()),
        mean=float(approximate.mean()),
        shift=float(moved.mean()),
        p05=float(low),
        p50=float(middle),
        p95=float(high),
        bins=tuple(round(float(edge), 4) for edge in EDGES),
        counts=tuple(int(count) for count in counts),
    )
