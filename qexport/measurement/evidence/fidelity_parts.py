"""What fidelity is made of, as plain data that a report holds: what is found or lost, and how far edges move."""

from __future__ import annotations

from dataclasses import dataclass

Interval = tuple[float, float]
"""The two ends of a 95 % interval."""
ALL, SMALL, MEDIUM, LARGE = "all", "small", "medium", "large"
"""Sizes of objects by the area of their box in pixels of the image, as COCO has them: up to 32², up to 96², above."""


@dataclass(frozen=True)
class MatchedBoxes:
    """The float file's confident boxes of one size beside the boxes that they pair with, in pixels of the image.

    Attributes:
        size: of the float file's box: `ALL` or one of COCO's.
        boxes: how many the float file has.
        matched: how many of them the other file has: same class, IoU at least 0.5, whatever its score.
        mean_iou: of the pairs; None where there are none.
        edge_error, edge_error_p95: how far each of the four edges lies from the float file's: mean and 95th percentile.
    """

    size: str
    boxes: int
    matched: int
    mean_iou: float | None
    edge_error: float | None
    edge_error_p95: float | None


@dataclass(frozen=True)
class FidelityParts:
    """What stands behind one artifact's fidelity.

    Attributes:
        interval: 95 % interval of fidelity itself.
        at_50: fidelity at an IoU of 0.5 alone: what is found, lost and ranked otherwise, wherever edges lie; None of a
            classifier, as its interval.
        matched: of all sizes, then of each that occurs; () of a classifier.
        resamples: how many the intervals are of.
    """

    interval: Interval
    at_50: float | None
    at_50_interval: Interval | None
    matched: tuple[MatchedBoxes, ...]
    resamples: int
