"""Choose the real range that a value's integers shall span, from its statistics.

Clipping a few extremes buys finer steps for everything else. Every method returns (low, high) with low <= 0 <= high.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qexport.calibration.statistics import Statistics
from qexport.planning.arithmetic import Quantiser, dequantise, quantise

Range = tuple[float, float]
RangeEstimator = Callable[[Statistics, Quantiser], Range]
"""What is to be spanned, from what was seen and from what it is going to be quantised with; `registry` names them."""
FloatArray = NDArray[np.float64]

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


def least_error(statistics: Statistics, quantiser: Quantiser, steps: int = 24) -> Range:
    """The range with the least mean squared error of the histogram, quantised as its values are going to be.

    Candidates shrink either bound on its own, as in Choukroun et al., "Low-bit Quantization of Neural Networks for
    Efficient Inference" (2019); those of a symmetric quantiser both together.
    """
    seen = np.flatnonzero(statistics.counts)
    centres, weights = statistics.centres[seen], statistics.counts[seen].astype(np.float64)
    low, high = minmax(statistics)
    shares = np.linspace(1, 1 / steps, steps)

    def error(candidate: Range) -> float:
        scale, zero_point = quantiser.parameters(*candidate)
        rounded = dequantise(quantise(centres, scale, zero_point, quantiser.kind), scale, zero_point)
        return float(weights @ (centres - rounded) ** 2)

    if quantiser.symmetric:
        peak = max(-low, high)
        best = min(((max(low, -peak * f), min(high, peak * f)) for f in shares), key=error)
    else:
        best = (low, high)
        for _ in range(2):
            best = min(((low * f, best[1]) for f in shares), key=error)
            best = min(((best[0], high * f) for f in shares), key=error)
    return float(best[0]), float(best[1])


def above(chosen: Range, floor: float) -> Range:
    """Raise the lower bound to `floor`, for a value whose reader is flat below it."""
    return max(chosen[0], floor), chosen[1]
