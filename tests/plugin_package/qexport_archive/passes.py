"""The pass "idle"."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qexport.optimisation.candidate import Candidate
    from qexport.progress import Progress


class Idle:
    """Changes nothing, and is reverted for it."""

    name = "idle"

    def requires(self, candidate: Candidate) -> str:
        """Nothing is."""
        return ""

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress) -> Candidate:
        """Return what was given."""
        return candidate

    def ensures(self, before: Candidate, after: Candidate) -> str:
        """Nothing of its own."""
        return ""
