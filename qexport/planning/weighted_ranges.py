"""Range estimators that reckon with what an error of a value costs at the outputs: "weighted-mse" and "auto"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qexport.calibration.statistics import BINS, Statistics
from qexport.planning.arithmetic import Quantiser
from qexport.planning.entropy import entropy
from qexport.planning.least_error import Cost, cheapest, mse, squared_error
from qexport.planning.ranges import Range, RangeEstimator, average_minmax, minmax, percentile

MIN_BINS = 8.0
"""Bins that have to carry a value's importance, (sum w)^2 / sum w^2: fewer are a handful of elements' own affair."""
EVENLY = 0.02
"""Of the mean importance, what every element gets besides: no gradient on a few images is not proof of none."""
UNWEIGHTED = "percentile"
"""What is chosen where importance says nothing."""


def weighted_mse(statistics: Statistics, quantiser: Quantiser) -> Range:
    """The range with the least importance times squared error; the value needs importance."""
    return cheapest(weighted_error(statistics, quantiser), statistics, quantiser)


def weighted_error(statistics: Statistics, quantiser: Quantiser) -> Cost:
    """Return what gives importance times squared error of a range."""
    assert statistics.importance is not None
    counts = statistics.counts.astype(np.float64)
    evenly = EVENLY * statistics.importance.sum() / max(counts.sum(), 1.0)
    return squared_error(statistics, statistics.importance + evenly * counts, quantiser)


@dataclass(frozen=True)
class CheapestAtOutputs:
    """A range estimator that takes the range of others which costs least at the outputs.

    Attributes:
        estimators: by name; those of equal cost in this order.
        needs_importance: calibration has to measure it.
    """

    estimators: Mapping[str, RangeEstimator]
    needs_importance: bool = True

    def __call__(self, statistics: Statistics, quantiser: Quantiser) -> Range:
        """The range that is chosen."""
        return self.named(statistics, quantiser)[1]

    def named(self, statistics: Statistics, quantiser: Quantiser) -> tuple[str, Range]:
        """Whose range is chosen, and which that is."""
        if not has_importance(statistics):
            return UNWEIGHTED, percentile(statistics, quantiser)
        cost = weighted_error(statistics, quantiser)
        ranges = {name: estimate(statistics, quantiser) for name, estimate in self.estimators.items()}
        best = min(ranges, key=lambda name: cost(ranges[name]))
        return best, ranges[best]


def has_importance(statistics: Statistics) -> bool:
    """Whether enough of a value carries its importance for that to be judged by; zero, which is exact, left aside."""
    if statistics.importance is None:
        return False
    weights: NDArray[np.float64] = np.delete(statistics.importance, (BINS // 2 - 1, BINS // 2))
    weights = weights / max(weights.max(), np.finfo(np.float64).tiny)
    squares = float(weights @ weights)
    return squares > 0 and float(weights.sum()) ** 2 / squares >= MIN_BINS


WEIGHTED_MSE = CheapestAtOutputs({"weighted-mse": weighted_mse})
AUTO = CheapestAtOutputs(
    {
        "weighted-mse": weighted_mse,
        "mse": mse,
        "percentile": percentile,
        "entropy": entropy,
        "average-minmax": average_minmax,
        "minmax": minmax,
    }
)
"""Estimators of other packages are not among them: what is installed must not change a plan unasked."""
