"""Range estimators by the names that `--ranges` takes and plans have in their reasons."""

from __future__ import annotations

from qexport.plugins import Functions

RANGES = Functions(
    "qexport.ranges",
    "range estimator",
    {
        "percentile": "qexport.planning.ranges:percentile",
        "minmax": "qexport.planning.ranges:minmax",
        "mse": "qexport.planning.ranges:least_error",
    },
)
"""Each is a `qexport.planning.ranges.RangeEstimator`; others come as entry points."""
