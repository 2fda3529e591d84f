"""The range estimator "three-sigma"."""

from __future__ import annotations

import numpy as np

from qexport import Quantiser, Statistics


def three_sigma(statistics: Statistics, quantiser: Quantiser) -> tuple[float, float]:
    """Three standard deviations about the mean, within the extremes."""
    weights = statistics.counts / max(statistics.counts.sum(), 1)
    mean = float(weights @ statistics.centres)
    sigma = float(np.sqrt(weights @ (statistics.centres - mean) ** 2))
    low, high = max(statistics.minimum, mean - 3 * sigma), min(statistics.maximum, mean + 3 * sigma)
    return min(low, 0.0), max(high, 0.0)
