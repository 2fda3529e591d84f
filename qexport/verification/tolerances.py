"""How far a file may be from what was planned, and how many differences are named."""

from __future__ import annotations

from collections.abc import Sequence

SCALE_TOLERANCE = 1e-5
"""Relative: float32's rounding; scales of channels of zeros are below `SMALLEST_SCALE` and free."""
BIAS_TOLERANCE = 1e-5
"""The same of the scale of an integer bias, or of a bias that fills its integers."""
HALF_A_STEP = 0.51
"""A weight lies at most half a step from its integer; the rest is float rounding."""
COVERAGE_TOLERANCE = 0.005
"""Shares of multiply-accumulates that are this far apart at most are the same."""
MAX_LISTED = 3


def listed(lines: Sequence[str], separator: str = "; ") -> str:
    """The first of many, and how many more there are, in one line."""
    more = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return f"{separator.join(lines[:MAX_LISTED])}{more}"
