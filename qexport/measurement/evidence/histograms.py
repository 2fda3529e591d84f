"""What calibration saw of the values that quantisation hurts most, and the range that the plan gave them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qexport.calibration.calibrate import UNIT_INTERVAL
from qexport.calibration.statistics import Statistics, merge
from qexport.measurement.evidence.layers import Decibels
from qexport.measurement.evidence.parts import Histogram
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.program import Program, observed_sources

MAX_BINS = 64
WORST = 8


def worst_histograms(
    program: Program, plan: QuantPlan, statistics: Mapping[str, Statistics], sqnr: Decibels
) -> tuple[Histogram, ...]:
    """Histograms of the quantised values of lowest SQNR, the lowest first.

    Of what moves data they are those of the values that it holds; values that calibration does not watch, such as
    sigmoids, have none.
    """
    measured = [(decibels, name) for name, decibels in sqnr.items() if decibels is not None]
    found: list[Histogram] = []
    for decibels, name in sorted(measured):
        sources = observed_sources(program, name)
        watched = all(s in statistics and program.values[s].operation not in UNIT_INTERVAL for s in sources)
        if len(found) < WORST and watched and plan.is_quantised(name):
            edges, counts = rebinned(merge(statistics[source] for source in sources))
            low, high = chosen_range(plan.tensors[name])
            found.append(Histogram(name, edges, counts, low, high, round(decibels, 2)))
    return tuple(found)


def rebinned(statistics: Statistics, most: int = MAX_BINS) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Merge bins, always as many as a power of two, until those between the extremes are at most `most`.

    Returns:
        Edges and counts; nothing is estimated.
    """
    seen = np.flatnonzero(statistics.counts)
    first, last = (int(seen[0]), int(seen[-1])) if len(seen) else (0, 0)
    merged = 1
    while last // merged - first // merged >= most:
        merged *= 2
    start, stop = first // merged, last // merged + 1
    counts = statistics.counts.reshape(-1, merged).sum(axis=1)[start:stop]
    edges = statistics.edges[start * merged : stop * merged + 1 : merged]
    return tuple(float(edge) for edge in edges), tuple(int(count) for count in counts)


def chosen_range(tensor: TensorQuant) -> tuple[float, float]:
    """The real numbers of a quantised value's lowest and highest integer."""
    kind = tensor.kind
    (scale,), (zero_point,) = tensor.scale, tensor.zero_point
    return (kind.low - zero_point) * scale, (kind.high - zero_point) * scale
