"""The range whose quantisation error costs least: the search, the error, and the estimator "mse".

Bounds are shrunk on their own, as in Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient
Inference" (2019); those of a symmetric quantiser both together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from qexport.calibration.statistics import BINS, Statistics
from qexport.planning.arithmetic import Quantiser
from qexport.planning.ranges import Range, minmax

STEPS = 24
"""Candidates for a bound, evenly spread from its extreme to zero."""
FINER, TIMES = 4, 2
"""Into how many steps each of those is divided near the best one, and how often."""

Cost = Callable[[Range], float]
Shares = tuple[float, float]


def mse(statistics: Statistics, quantiser: Quantiser) -> Range:
    """The range with the least mean squared error, quantised as the value is going to be."""
    return cheapest(squared_error(statistics, statistics.counts.astype(np.float64), quantiser), statistics, quantiser)


def squared_error(statistics: Statistics, weights: NDArray[np.float64], quantiser: Quantiser) -> Cost:
    """Return what gives the sum of weight times squared error, elements being evenly spread within their bins.

    The integral over a bin is exact for steps of any width, those that are narrower than a bin included: in steps,
    the error of what rounds to n is f = t - n, whose square has the integral n / 12 + f^3 / 3; beyond the outermost
    integers it grows on.

    Args:
        weights: (BINS,), of all elements of a bin together.
    """
    starts = _coarser(weights)
    sums = np.add.reduceat(weights, starts[:-1]) if len(starts) > 1 else np.zeros(0)
    edges = statistics.edges[starts]
    density = sums / np.diff(edges)

    def cost(candidate: Range) -> float:
        scale, zero_point = quantiser.parameters(*candidate)
        steps = edges / scale
        within = np.clip(steps, quantiser.kind.low - zero_point, quantiser.kind.high - zero_point)
        whole = np.rint(within)
        rounded, cut = within - whole, steps - within
        integral = whole / 12 + (rounded * rounded * rounded + cut * cut * cut) / 3
        return float(density @ np.diff(integral)) * scale**3

    return cost


def _coarser(weights: NDArray[np.float64]) -> NDArray[np.intp]:
    """Bin edges, by number, between the first and the last bin with weight: the farther from zero the fewer."""
    seen = np.flatnonzero(weights)
    if not len(seen):
        return np.array([BINS // 2])
    every = np.arange(seen[0], seen[-1] + 2)
    away = np.abs(every - BINS // 2)
    kept = (away <= 128) | ((away <= 512) & (away % 4 == 0)) | (away % 16 == 0)
    kept[[0, -1]] = True
    edges: NDArray[np.intp] = every[kept]
    return edges


def cheapest(cost: Cost, statistics: Statistics, quantiser: Quantiser) -> Range:
    """The range within the extremes for which `cost` is least, the extremes' own if nothing beats them."""
    low, high = minmax(statistics)
    peak = max(-low, high)

    def at(shares: Shares) -> Range:
        if quantiser.symmetric:
            return max(low, -peak * shares[0]), min(high, peak * shares[0])
        return low * shares[0], high * shares[1]

    def moved(best: Shares, side: int, offsets: NDArray[np.float64]) -> Shares:
        candidates = [best, *(_with(best, side, best[side] + offset) for offset in offsets.tolist())]
        return min(candidates, key=lambda shares: cost(at(shares)))

    sides = (0,) if quantiser.symmetric else (0, 1)
    best: Shares = (1.0, 1.0)
    for _ in sides:
        for side in sides:
            best = moved(best, side, np.linspace(1, 0, STEPS + 1) - best[side])
    near = np.arange(1 - FINER, FINER) / FINER / STEPS
    for number in range(TIMES):
        for side in sides:
            best = moved(best, side, near / FINER**number)
    chosen = at(best)
    return float(chosen[0]), float(chosen[1])


def _with(shares: Shares, side: int, share: float) -> Shares:
    share = min(max(share, 0.0), 1.0)
    return (share, shares[1]) if side == 0 else (shares[0], share)
