"""Choose the real range that a value's integers shall span, from its statistics.

Clipping a few extremes buys finer steps for everything else. Every method returns (low, high) with low <= 0 <= high.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qexport.calibration.statistics import Statistics
from qexport.planning.arithmetic import Quantiser

Range = tuple[float, float]
RangeEstimator = Callable[[Statistics, Quantiser], Range]
"""What is to be spanned, from what was seen and from what it is going to be quantised with; `registry` names them."""

DEFAULT_PERCENTILE = 99.997

SILU_FLOOR = -6.25
"""Below this the sigmoid is less than half of its step of 1/256: SiLU is zero there in any case."""

LOGIT_FLOOR = -8.0
"""Class logits below this are scores below 0.0004, which no threshold tells apart."""


def minmax(statistics: Statistics, _: Quantiser | None = None) -> Range:
    """The extremes over all images: nothing is clipped."""
    return min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)


def percentile(statistics: Statistics, _: Quantiser | None = None, percent: float = DEFAULT_PERCENTILE) -> Range:
    """The range that leaves (100 - percent) % of the elements outside on either side.

    A symmetric quantiser spans the wider side on both, and so leaves no more outside.

    McKinstry et al., "Discovering Low-Precision Networks Close to Full-Precision Networks" (2018).
    """
    total = np.cumsum(statistics.counts)
    outside = total[-1] * (1 - percent / 100)
    edges = statistics.edges
    low = edges[int(np.searchsorted(total, outside, side="right"))]
    high = edges[int(np.searchsorted(total, total[-1] - outside, side="left")) + 1]
    least, most = minmax(statistics)
    return float(np.clip(low, least, 0.0)), float(np.clip(high, 0.0, most))


def average_minmax(statistics: Statistics, _: Quantiser | None = None) -> Range:
    """The mean over images of each image's extremes, which no single image decides; nothing is clipped if unknown.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference" (2018)
    average the extremes of batches.
    """
    low, high = minmax(statistics)
    if not statistics.images:
        return low, high
    lowest, highest = statistics.lowest / statistics.images, statistics.highest / statistics.images
    return float(np.clip(lowest, low, 0.0)), float(np.clip(highest, 0.0, high))


def above(chosen: Range, floor: float) -> Range:
    """Raise the lower bound to `floor`, for a value whose reader is flat below it."""
    return max(chosen[0], floor), chosen[1]
