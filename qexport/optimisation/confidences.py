"""What quantising does to the confidence of objects: each is where the float program sees one most clearly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qexport.planning.ranges import LOGIT_FLOOR
from qexport.programs.program import Program

NEIGHBOURS = 1
"""Anchors on each side that an anchor is taken together with: which of two neighbours wins says nothing of what is
found."""
CONFIDENT = 0.25
"""Score from which detections are shown where nobody sets a threshold."""


@dataclass(frozen=True)
class Peaks:
    """Anchors of one level whose float score no neighbour exceeds, class by class.

    Attributes:
        images, classes: (peaks,) which of the batch, and which class.
        real, approximate: (peaks,) logits: the float program's, and the quantised program's largest in the
            neighbourhood.
    """

    images: Tensor
    classes: Tensor
    real: Tensor
    approximate: Tensor

    @property
    def difference(self) -> Tensor:
        """(peaks,) what the quantised program's scores, in 0..1, are more than the float program's."""
        return self.approximate.sigmoid() - self.real.sigmoid()


def has_levels(program: Program) -> bool:
    """Whether raw outputs are boxes and scores of cells, level by level."""
    layout, names = program.layout, program.raw
    return bool(layout.strides) and len(names.boxes) == len(names.scores) and not layout.classifier


def peaks(program: Program, real: Sequence[Tensor], approximate: Sequence[Tensor], least: float) -> Iterator[Peaks]:
    """Yield the peaks of each level in the order of `RawNames.scores`.

    Args:
        real, approximate: raw outputs in the order of `RawNames.all`, of a program that has levels.
        least: float score from which an anchor is an object, over 0 and under 1.
    """
    one, other = dict(zip(program.raw.all, real, strict=True)), dict(zip(program.raw.all, approximate, strict=True))
    for name in program.raw.scores:
        logits = one[name].clamp(min=LOGIT_FLOOR)
        chosen = (logits >= math.log(least / (1 - least))) & (logits == _largest(logits))
        images, classes, _, _ = torch.where(chosen)
        yield Peaks(images, classes, logits[chosen], _largest(other[name].clamp(min=LOGIT_FLOOR))[chosen])


def _largest(logits: Tensor) -> Tensor:
    return torch.max_pool2d(logits, 2 * NEIGHBOURS + 1, 1, NEIGHBOURS)


def confidence_shift(program: Program, real: Sequence[Tensor], approximate: Sequence[Tensor]) -> Tensor:
    """Return (images, 2) float64: the sum of what confident peaks' scores have become more, and how many they are."""
    sums = torch.zeros(len(real[0]), 2, dtype=torch.float64)
    for level in peaks(program, real, approximate, CONFIDENT) if has_levels(program) else ():
        each = torch.stack((level.difference, torch.ones_like(level.difference)), dim=1)
        sums.index_add_(0, level.images, each.to(torch.float64))
    return sums
