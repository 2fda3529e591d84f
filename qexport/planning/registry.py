"""Range estimators by the names that `--ranges` takes and plans have in their reasons."""

from __future__ import annotations

from qexport.plugins import Functions

RANGES = Functions(
    "qexport.ranges",
    "range estimator",
    {
        "percentile": "qexport.planning.ranges:percentile",
        "minmax": "qexport.planning.ranges:minmax",
        "average-minmax": "qexport.planning.ranges:average_minmax",
        "entropy": "qexport.planning.entropy:entropy",
        "mse": "qexport.planning.least_error:mse",
        "weighted-mse": "qexport.planning.weighted_ranges:WEIGHTED_MSE",
        "auto": "qexport.planning.weighted_ranges:AUTO",
    },
)
"""Each is a `qexport.planning.ranges.RangeEstimator`; others come as entry points."""

DEFAULT_RANGES = "percentile"
"""Where nobody says and integers have 8 bits."""


def needs_importance(name: str) -> bool:
    """Whether a range estimator says, by an attribute `needs_importance`, that calibration has to measure that.

    Raises:
        UsageError, PluginError: see `Functions.find`.
    """
    return bool(getattr(RANGES.find(name), "needs_importance", False))
