"""How far figures would move with other images of the same kind: the bootstrap.

Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979): images are drawn with replacement, as many as there
are, and every figure is computed anew; its interval is the middle 95 % of what comes out (the percentile interval).
Resamples are the same for every artifact, so that the interval of a difference is a paired one: images that are hard
for both files do not widen it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from qexport.measurement.average_precision import FloatArray
from qexport.measurement.evidence.fidelity_parts import Interval

RESAMPLES = 1000
SEED = 0
BLOCK = 50
"""Resamples that are drawn at once: the generator gives 64 bits for each number."""
TAILS = (2.5, 97.5)
"""Percentiles of a 95 % interval."""

TOLERANCE = 1e-9
"""Within which two figures are the same: sums of the same numbers in another order."""


@dataclass(frozen=True)
class Intervals:
    """95 % intervals of one artifact's figures.

    Attributes:
        map: of its own mAP50-95 (or top-1 accuracy), 0..1.
        drop: of the float file's figure minus its own; None without a float file.
        retention: of its own divided by the float file's; None, too, where the float file scores nothing.
        resamples: how many there were.
    """

    map: Interval
    drop: Interval | None
    retention: Interval | None
    resamples: int


def resample_weights(images: int, resamples: int = RESAMPLES) -> NDArray[np.uint16]:
    """How often each image is drawn in each resample: (resamples, images), every row adding up to `images`."""
    generator, shares = np.random.default_rng(SEED), np.full(images, 1 / images)
    drawn = np.empty((resamples, images), np.uint16)
    for start in range(0, resamples, BLOCK):
        block = drawn[start : start + BLOCK]
        block[:] = generator.multinomial(images, shares, size=len(block))
    return drawn


def interval(samples: FloatArray) -> Interval | None:
    """The middle 95 % of the samples that are numbers; None where there are none."""
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return None
    low, high = np.percentile(finite, TAILS)
    return float(low), float(high)


def corrected_interval(samples: FloatArray, figure: float) -> Interval:
    """The bias-corrected interval of a figure, which it never leaves out.

    Efron, "Nonparametric standard errors and confidence intervals" (1981): where resamples lie higher than the figure,
    as those of a mean over classes do when rare classes drop out of them, percentiles further down are taken.
    """
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return figure, figure
    same = np.isclose(finite, figure, rtol=0, atol=TOLERANCE)
    below = (np.count_nonzero((finite < figure) & ~same) + np.count_nonzero(same) / 2) / len(finite)
    normal, least = NormalDist(), 0.5 / len(finite)
    bias = normal.inv_cdf(min(max(below, least), 1 - least))
    tails = [100 * normal.cdf(2 * bias + normal.inv_cdf(tail / 100)) for tail in TAILS]
    low, high = np.percentile(finite, tails)
    return min(float(low), figure), max(float(high), figure)


def intervals(samples: FloatArray, reference: FloatArray | None) -> Intervals:
    """Intervals of a figure from its resamples, (resamples,), and the float file's on the same ones."""
    own = interval(samples)
    assert own is not None
    if reference is None:
        return Intervals(own, None, None, len(samples))
    retained = np.divide(samples, reference, out=np.full(len(samples), np.nan), where=reference > 0)
    return Intervals(own, interval(reference - samples), interval(retained), len(samples))
