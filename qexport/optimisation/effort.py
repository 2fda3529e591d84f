"""How much is done to make a quantised program lose less, by name; names are known without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Effort:
    """What `--effort` stands for.

    Attributes:
        passes: names of passes over the weights, in the order in which they run.
        ranges: the range estimator where none is asked for, None for the one that suits the precision.
        repairs: whether values are kept in float where a bound on the loss is not met.
        views: whether few images are seen in other pictures, too.
    """

    name: str
    passes: tuple[str, ...] = ()
    ranges: str | None = None
    repairs: bool = False
    views: bool = True


FAST = ("score-shift",)
BALANCED = ("equalisation", "weight-scales", "adaptive-rounding", "score-shift")
BEST = ("mixed-precision", *BALANCED)
"""What is quantised at all comes before how; whole steps are chosen behind the scales that they are whole in, and the
scores are moved last."""
AUTO = "auto"
EFFORTS: Mapping[str, Effort] = {
    effort.name: effort
    for effort in (
        Effort("none", views=False),
        Effort("fast", FAST, AUTO),
        Effort("balanced", BALANCED, AUTO),
        Effort("best", BEST, AUTO, repairs=True),
    )
}
DEFAULT_EFFORT = "balanced"
"""Where nobody says how much."""
