"""What is told of a pass over weights: read with reports, where torch is not needed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


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
        return "kept" if self.kept else first if first in ("refused", "not run") else "reverted"


def not_run(names: Iterable[str], reason: str) -> tuple[PassRecord, ...]:
    """Records of passes that are of no use here."""
    return tuple(PassRecord(name, False, reason=f"not run: {reason}") for name in names)
