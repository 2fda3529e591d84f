"""Score thresholds of a quantised model as plain data, for reports and metadata: `equating` finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MIN_COUNT = 10
"""Confident detections of the float model from which a class has a threshold of its own."""


@dataclass(frozen=True)
class Thresholds:
    """What to use where a threshold of the float model is in use; scores are 0..1.

    Attributes:
        reference: the float model's threshold.
        everything: one threshold for all classes.
        classes: by class number, as text, of each class that the float model finds; `everything` where that is fewer
            than `MIN_COUNT` times.
        shift: mean over pairs of the quantised score minus the float one.
        images: how many these figures are from.
        count: by class number, how often the float model finds it with a score of `reference` or more.
    """

    reference: float
    everything: float
    classes: Mapping[str, float]
    shift: float
    images: int
    count: Mapping[str, int]


def to_metadata(found: Thresholds) -> dict[str, Any]:
    """The entry "thresholds" of an artifact's metadata: plain numbers, as the noun has them."""
    return asdict(found)
