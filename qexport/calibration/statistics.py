"""What calibration keeps of a value: extremes and a histogram, never scales.

The histogram's limit is always a power of two and its bins are symmetric about zero, so widening it merges bins
pairwise without error: the result depends neither on the order of the images nor on how they are split into runs,
and its size does not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BINS = 8192
"""Bins over [-limit, limit]; at least a quarter of them lie within the values' range."""
MIN_LIMIT = 2.0**-16


@dataclass(frozen=True)
class Statistics:
    """Statistics of one value over all calibration images.

    Attributes:
        minimum, maximum: exact extremes over every element of every image.
        limit: the histogram covers [-limit, limit].
        counts: int64 of shape (BINS,), elements sampled into each bin.
    """

    minimum: float
    maximum: float
    limit: float
    counts: NDArray[np.int64]

    @property
    def edges(self) -> NDArray[np.float64]:
        """Bin edges, shape (BINS + 1,)."""
        return np.arange(BINS + 1, dtype=np.float64) * (2 * self.limit / BINS) - self.limit

    @property
    def centres(self) -> NDArray[np.float64]:
        """Bin centres, shape (BINS,)."""
        return (np.arange(BINS, dtype=np.float64) + 0.5) * (2 * self.limit / BINS) - self.limit


def unit_interval() -> Statistics:
    """Statistics of a value that may be anything in 0..1."""
    return Statistics(0.0, 1.0, 1.0, np.repeat(np.array([0, 1], dtype=np.int64), BINS // 2))


def limit_for(peak: float) -> float:
    """Return the smallest power of two that is at least `peak`."""
    return max(MIN_LIMIT, 2.0 ** math.ceil(math.log2(peak))) if peak > 0 else MIN_LIMIT


def widen(counts: NDArray[np.int64], limit: float, wanted: float) -> NDArray[np.int64]:
    """Return the same histogram over the larger limit `wanted`; both limits are powers of two."""
    while limit < wanted:
        pairs = counts.reshape(-1, 2).sum(axis=1)
        counts = np.zeros(BINS, dtype=np.int64)
        counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
        limit *= 2
    return counts


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Combine statistics of several values that must share one scale, or of one value from several runs."""
    every = list(parts)
    if not every:
        raise ValueError("nothing to merge")
    limit = max(s.limit for s in every)
    return Statistics(
        minimum=min(s.minimum for s in every),
        maximum=max(s.maximum for s in every),
        limit=limit,
        counts=np.sum([widen(s.counts, s.limit, limit) for s in every], axis=0),
    )
