"""The range whose integers lose the least information about a value's distribution.

Migacz, "8-bit Inference with TensorRT" (NVIDIA, 2017): the Kullback-Leibler divergence of the histogram, with what is
clipped added to its ends, from the histogram that its integers can tell apart. There the magnitudes of symmetric
integers; here the levels are those of the runtime's own integers, and each bound of an asymmetric range moves alone.
"""

from __future__ import annotations

import math

import numpy as np

from qexport.calibration.statistics import BINS, Statistics
from qexport.planning.arithmetic import Quantiser, quantise
from qexport.planning.least_error import Cost, cheapest
from qexport.planning.ranges import Range, minmax


def entropy(statistics: Statistics, quantiser: Quantiser) -> Range:
    """The range with the least divergence; nothing is clipped where integers are finer than the histogram."""
    extremes = minmax(statistics)
    if quantiser.parameters(*extremes)[0] <= 2 * statistics.limit / BINS:
        return extremes
    return cheapest(divergence(statistics, quantiser), statistics, quantiser)


def divergence(statistics: Statistics, quantiser: Quantiser) -> Cost:
    """Return what gives a range's divergence; infinite where steps are narrower than bins, which tell nothing then."""
    counts = statistics.counts.astype(np.float64)
    counts[BINS // 2 - 1 : BINS // 2 + 1] = 0  # zero is exact with every scale, and half of all elements after a ReLU
    seen = np.flatnonzero(counts)
    counts, centres, kind = counts[seen], statistics.centres[seen], quantiser.kind

    def cost(candidate: Range) -> float:
        scale, zero_point = quantiser.parameters(*candidate)
        lowest, highest = ((bound - zero_point) * scale for bound in (kind.low - 0.5, kind.high + 0.5))
        first, last = np.searchsorted(centres, lowest), np.searchsorted(centres, highest)
        if scale < 2 * statistics.limit / BINS or first == last:
            return math.inf
        kept = counts[first:last]
        level = quantise(centres[first:last], scale, zero_point, kind) - kind.low
        told = (np.bincount(level, kept) / np.maximum(np.bincount(level), 1))[level]
        whole = kept.copy()
        whole[0] += counts[:first].sum()
        whole[-1] += counts[last:].sum()
        share = whole / whole.sum()
        return float(share @ np.log(share / (told / told.sum())))

    return cost
