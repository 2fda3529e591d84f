"""What calibration keeps of a value: extremes and a histogram, never scales.

The histogram's limit is always a power of two and its bins are symmetric about zero, so widening it merges bins
pairwise without error: the result depends neither on the order of the images nor on how they are split into runs,
and its size does not depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

BINS = 8192
"""Bins over [-limit, limit]; at least a quarter of them lie within the values' range."""
MIN_LIMIT = 2.0**-16
Number = TypeVar("Number", np.int64, np.float64)


@dataclass(frozen=True)
class Statistics:
    """Statistics of one value over all calibration images.

    Attributes:
        minimum, maximum: exact extremes over every element of every image.
        limit: the histogram covers [-limit, limit].
        counts: int64 of shape (BINS,), elements sampled into each bin.
        lowest, highest: sums over images of each image's minimum and maximum.
        images: how many those are of; 0 where nobody counted.
        importance: float64 of shape (BINS,), over the elements in each bin the sum of the squared gradient of the
            outputs, see `qexport.calibration.importance`; None where it was not measured.
    """

    minimum: float
    maximum: float
    limit: float
    counts: NDArray[np.int64]
    lowest: float = 0.0
    highest: float = 0.0
    images: int = 0
    importance: NDArray[np.float64] | None = None

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
    counts = np.repeat(np.array([0, 1], dtype=np.int64), BINS // 2)
    return Statistics(0.0, 1.0, 1.0, counts, lowest=0.0, highest=1.0, images=1)


def limit_for(peak: float) -> float:
    """Return the smallest power of two that is at least `peak`."""
    return max(MIN_LIMIT, 2.0 ** math.ceil(math.log2(peak))) if peak > 0 else MIN_LIMIT


def widen(sums: NDArray[Number], limit: float, wanted: float) -> NDArray[Number]:
    """Return the same histogram over the larger limit `wanted`; both limits are powers of two."""
    while limit < wanted:
        pairs = sums.reshape(-1, 2).sum(axis=1)
        sums = np.zeros(BINS, dtype=sums.dtype)
        sums[BINS // 4 : BINS // 4 + BINS // 2] = pairs
        limit *= 2
    return sums


def merge(parts: Iterable[Statistics]) -> Statistics:
    """Combine statistics of one value from several runs over different images."""
    every = list(parts)
    if not every:
        raise ValueError("nothing to merge")
    limit = max(s.limit for s in every)
    important = [widen(s.importance, s.limit, limit) for s in every if s.importance is not None]
    return Statistics(
        minimum=min(s.minimum for s in every),
        maximum=max(s.maximum for s in every),
        limit=limit,
        counts=np.sum([widen(s.counts, s.limit, limit) for s in every], axis=0),
        lowest=math.fsum(s.lowest for s in every),
        highest=math.fsum(s.highest for s in every),
        images=sum(s.images for s in every),
        importance=np.sum(important, axis=0) if len(important) == len(every) else None,
    )


def together(parts: Iterable[Statistics]) -> Statistics:
    """Combine statistics of several values over the same images, for the one scale that they must share.

    Their mean extremes are the widest of any of them.
    """
    every = list(parts)
    merged = merge(every)
    counted = [s for s in every if s.images]
    if len(counted) < len(every):
        return replace(merged, lowest=0.0, highest=0.0, images=0)
    lowest, highest = min(s.lowest / s.images for s in every), max(s.highest / s.images for s in every)
    return replace(merged, lowest=lowest, highest=highest, images=1)
