"""A rule of the gate: a bound on a figure of an artifact. Other packages register theirs as entry points."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qexport.errors import PluginError, UsageError
from qexport.measurement.evidence.fidelity_parts import Interval
from qexport.plugins import lookup, names
from qexport.reporting.report import ArtifactReport
from qexport.vocabulary import unknown

GROUP = "qexport.rules"
"""Entry points of `Rule` objects."""
SIZE = "size"
"""What a rule is of that needs no measurement."""
MAX_DIGITS = 6


@dataclass(frozen=True)
class NumberFormat:
    """How a figure is written: multiplied, with so many digits, and a unit."""

    digits: int
    unit: str = ""
    times: float = 1.0

    def text(self, value: float, digits: int | None = None) -> str:
        """The figure with its unit."""
        return f"{value * self.times:.{self.digits if digits is None else digits}f}{self.unit}"

    def pair(self, first: float, second: float) -> tuple[str, str]:
        """Both figures, with as many digits as it takes to tell them apart."""
        for digits in range(self.digits, MAX_DIGITS):
            texts = self.text(first, digits), self.text(second, digits)
            if texts[0] != texts[1]:
                return texts
        return self.text(first), self.text(second)

    def parsed(self, text: str) -> float:
        """A figure as people write it: with its unit as `text` has it, or without as it is measured.

        Raises:
            ValueError: it is no finite number.
        """
        bare = text.strip().removesuffix(self.unit.strip())
        figure = float(bare) / (self.times if bare != text.strip() else 1.0)
        if not math.isfinite(figure):
            raise ValueError(text)
        return figure


@dataclass(frozen=True)
class Rule:
    """One bound that can be set on a figure of an artifact.

    Attributes:
        name: that of the option, too; of another package's, that of `--rule NAME=BOUND`.
        words: what the figure is called.
        of: what has to be measured for it, "accuracy" or "latency"; "size" or "artifact" where nothing has. Warnings
            about it are shown with the figure.
        compares: whether it takes an FP32 file of the same run.
        labels: whether it takes evaluation images with labels.
        least: the bound is the least that the figure may be; otherwise the most.
        figure, interval: of an artifact; None where it was not measured, which no bound passes.
        shown: how figure and bound are written.
    """

    name: str
    words: str
    of: str
    compares: bool
    least: bool
    figure: Callable[[ArtifactReport], float | None]
    shown: NumberFormat
    interval: Callable[[ArtifactReport], Interval | None] = lambda _: None
    labels: bool = False


def find_rule(name: str) -> Rule:
    """Load the rule that another package registers as `name`.

    Raises:
        UsageError: none does.
        PluginError: the package that does is broken.
    """
    there = names(GROUP)
    if not there:
        raise UsageError(f"--rule {name} is none", "no package that is installed brings rules: leave it out")
    if name not in there:
        raise unknown(f"--rule {name}", name, there)
    found: Any = lookup(GROUP, name)
    if not isinstance(found, Rule) or found.name != name:
        raise PluginError(f"{name} in {GROUP}: {found!r} is no Rule of this name", "repair or uninstall its package")
    return found
