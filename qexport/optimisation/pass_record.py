"""What is told of a pass over weights: read with reports, where torch is not needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

NOT_RUN = "not run"
NO_INTEGERS = "nothing is computed in integers"
"""Why no pass is run for a file of floats, which nobody expected."""


@dataclass(frozen=True)
class PassRecord:
    """What became of a pass.

    Attributes:
        kept: whether the candidate went on with it.
        before, after: mean distance from the float program (`qexport.optimisation.distance`) on the held-out images
            without and with it; None where it was not measured.
        noise: standard error of the difference of the two, image by image.
        images: how many images were held out.
        seconds: that the pass took, measuring included.
        reason: why it was kept, or not: one line.
    """

    name: str
    kept: bool
    before: float | None = None
    after: float | None = None
    images: int = 0
    seconds: float = 0.0
    reason: str = ""
    noise: float | None = None

    @property
    def outcome(self) -> str:
        """Whether it was kept, reverted, refused or not run."""
        first = self.reason.split(":")[0]
        return "kept" if self.kept else first if first in ("refused", NOT_RUN) else "reverted"


def gained_text(gain: float, noise: float) -> str:
    """By what share the distance has changed: 5.6 % nearer, give or take 3.3.

    Args:
        gain: mean logarithm of the ratio of two distances, above 0 where the later one is smaller.
        noise: its standard error.
    """
    return f"{100 * abs(gain):.1f} % {'farther' if gain < 0 else 'nearer'}, give or take {100 * noise:.1f}"


def not_run(names: Iterable[str], reason: str) -> tuple[PassRecord, ...]:
    """Records of passes that are of no use here."""
    return tuple(PassRecord(name, False, reason=f"{NOT_RUN}: {reason}") for name in names)
