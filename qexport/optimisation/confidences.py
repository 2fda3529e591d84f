"""What quantising does to the confidence of objects: each is where the float program sees one most clearly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, max_pool2d

from qexport.planning.ranges import LOGIT_FLOOR
from qexport.programs.program import Program

NEIGHBOURS = 1
"""Anchors on each side that an anchor is taken together with: which of two neighbours wins says nothing of what is
found."""
CONFIDENT = 0.25
"""Score from which detections are shown where nobody sets a threshold."""


@dataclass(frozen=True)
class Factor:
    """What one raw output says at peaks: (peaks,) its channel, its logits of the float and the quantised program."""

    channels: Tensor
    real: Tensor
    approximate: Tensor


@dataclass(frozen=True)
class Peaks:
    """Anchors of one level whose float score no neighbour exceeds, class by class.

    Attributes:
        images: (peaks,) which of the batch.
        real, approximate: (peaks,) scores in 0..1: the float program's, and the quantised program's largest in the
            neighbourhood.
        factors: of each raw output whose sigmoids' product is the score, by name; the quantised program's are those of
            its largest score.
    """

    images: Tensor
    real: Tensor
    approximate: Tensor
    factors: dict[str, Factor]

    @property
    def difference(self) -> Tensor:
        """(peaks,) what the quantised program's scores, in 0..1, are more than the float program's."""
        return self.approximate - self.real


def has_levels(program: Program) -> bool:
    """Whether raw outputs are boxes and scores of cells, level by level, and known to be."""
    layout, names = program.layout, program.raw
    return bool(layout.strides) and len(names.boxes) == len(names.scores) and not layout.classifier


def score_levels(program: Program) -> tuple[tuple[str, ...], ...]:
    """Raw outputs whose sigmoids, multiplied, are the scores of a level; none where that cannot be said.

    Of a head that nobody has told us, those that say something of the same cells belong together: one of them has the
    classes, others are of any class, as YOLOX's objectness (Ge et al., 2021) or FCOS' centreness (Tian et al., 2019).
    """
    names, values = program.raw, program.values
    if has_levels(program) or not program.guessed:
        return tuple((name,) for name in names.scores) if has_levels(program) else ()
    cells = dict.fromkeys(values[name].shape[2:] for name in names.scores)
    levels = tuple(tuple(name for name in names.scores if values[name].shape[2:] == each) for each in cells)
    boxes = {values[name].shape[2:] for name in names.boxes}
    of_classes = (sum(values[name].shape[1] > 1 for name in level) for level in levels)
    known = all(len(each) == 2 and each in boxes for each in cells) and all(count <= 1 for count in of_classes)
    return levels if known else ()


def log_scores(level: Sequence[Tensor]) -> Tensor:
    """Logarithms (n, classes, h, w) of the scores of a level, of its raw outputs: small ones stay apart from 0."""
    first, *others = (logsigmoid(logits.clamp(min=LOGIT_FLOOR)) for logits in level)
    return sum(others, first)


def peaks(program: Program, real: Sequence[Tensor], approximate: Sequence[Tensor], least: float) -> Iterator[Peaks]:
    """Yield the peaks of each level in the order of `score_levels`.

    Args:
        real, approximate: raw outputs in the order of `RawNames.all`.
        least: float score from which an anchor is an object, over 0 and under 1.
    """
    one, other = dict(zip(program.raw.all, real, strict=True)), dict(zip(program.raw.all, approximate, strict=True))
    for level in score_levels(program):
        scores = log_scores([one[name] for name in level])
        chosen = (scores >= math.log(least)) & (scores == _largest(scores)[0])
        there = torch.where(chosen)
        found, places = _largest(log_scores([other[name] for name in level]))
        place = places[chosen]
        near = *there[:2], place // scores.shape[3], place % scores.shape[3]
        factors = {name: _factor(one[name], other[name], there, near) for name in level}
        yield Peaks(there[0], scores[chosen].exp(), found[chosen].exp(), factors)


def _factor(real: Tensor, approximate: Tensor, there: Sequence[Tensor], near: Sequence[Tensor]) -> Factor:
    """What an output has at peaks, and near them: one of any class has a single channel."""
    channels = there[1] if real.shape[1] > 1 else torch.zeros_like(there[1])
    logits = [
        each.clamp(min=LOGIT_FLOOR)[at[0], channels, at[2], at[3]] for each, at in ((real, there), (approximate, near))
    ]
    return Factor(channels, *logits)


def _largest(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of each anchor's neighbourhood, and its place in the rows of the level."""
    reach = 2 * NEIGHBOURS + 1
    largest, places = max_pool2d(scores, reach, 1, NEIGHBOURS, return_indices=True)
    return largest, places


def confidence_shift(program: Program, real: Sequence[Tensor], approximate: Sequence[Tensor]) -> Tensor:
    """Return (images, 2) float64: the sum of what confident peaks' scores have become more, and how many they are."""
    sums = torch.zeros(len(real[0]), 2, dtype=torch.float64)
    for level in peaks(program, real, approximate, CONFIDENT):
        each = torch.stack((level.difference, torch.ones_like(level.difference)), dim=1)
        sums.index_add_(0, level.images, each.to(torch.float64))
    return sums
