"""Move the biases that scores come from by what quantising takes from the scores of what is confidently found.

A detection is a maximum over anchors; noise in front of a maximum and wide steps lower it, so that the scores of all
objects fall while the background, nearly all of the anchors, stays where it is: means over all of them, as bias
correction takes (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, section
4.2), say nothing of it. The difference is measured where the float program sees something, in logits, weighted by the
slope of the score, s (1 - s), or s (1 - f) for each factor f where the score is a product, as YOLOX's of objectness and
class. It is shrunk towards the mean of many where few were seen (James and Stein, "Estimation with Quadratic Loss",
1961).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate, batch_count, batches, changed_parameters
from qexport.optimisation.confidences import CONFIDENT, Factor, Peaks, peaks, score_levels
from qexport.optimisation.distance import Distance, raw_outputs, shift_margin
from qexport.optimisation.passes import CrossFit
from qexport.programs.program import Program
from qexport.progress import Progress
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

MAX_IMAGES = 40
LEAST = 0.1
"""Float score from which an anchor is an object: less says little of what is shown, and there are many of it."""
PRIOR = 32.0
"""So many peaks say as much as what is expected without them: of all nothing, of a level the shift of all, of a class
that of its level."""
MIN_PEAKS = 16
"""Of a class in a level, below which it has the shift of all such classes there."""
MIN_FOLDS = 2
"""With peaks or without, of which one can be left out."""
LARGEST = 4.0
"""Differences of logits are cut there: an object that is lost altogether is not found again by moving all others."""


class ScoreShift:
    """A `WeightPass`: nothing but biases of the layers that write raw scores is changed."""

    name = "score-shift"

    def requires(self, candidate: Candidate, /) -> str:
        """Levels of boxes and scores, the scores by layers with biases."""
        if not score_levels(candidate.program):
            return "the program has no levels of boxes and scores"
        return "" if _biases(candidate.program) else "no layer that writes scores has a bias"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Measure the shift on images, and move biases by as much."""
        folds = _seen(candidate, [take(images, count=MAX_IMAGES)], progress)
        return _moved(candidate, _shifts(candidate.program, folds))

    def cross_fitted(
        self, candidate: Candidate, folds: Sequence[Sequence[Path]], progress: Progress, /
    ) -> CrossFit | None:
        """Measure the shift on all folds, and on all but each what of that fold's own would be left.

        What is left is that of raw outputs as they were, with the bias' shift added: where a fold is small and they are
        in integers, nobody runs the program once more for it.
        """
        seen = [fold for fold in _seen(candidate, folds, progress) if fold.batches]
        if len(seen) < MIN_FOLDS:
            return None
        program = candidate.program
        before, after = list[Tensor](), list[Tensor]()
        for fold in seen:
            others = _shifts(program, [other for other in seen if other is not fold])
            before += [_left(program, batch, {}) for batch in fold.batches]
            after += [_left(program, batch, others) for batch in fold.batches]
        moved = _moved(candidate, _shifts(program, seen))
        return CrossFit(moved, torch.cat(before).numpy(), torch.cat(after).numpy())

    def gained(self, before: Distance, after: Distance, /) -> tuple[float, float]:
        """How much nearer to nothing the mean shift is: that of one object is noise, which a bias cannot undo."""
        return shift_margin(before, after)

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """The plan and all other parameters are the same."""
        if before.plan.tensors != after.plan.tensors:
            return "the plan has changed"
        allowed = set(_biases(before.program).values())
        others = (path for path in changed_parameters(before.program, after.program) if path not in allowed)
        return next((f"{path} has changed, which is no bias of scores" for path in others), "")


def _biases(program: Program) -> dict[str, str]:
    """Path of the bias that each level's scores have, by the scores' name; levels without one are left out."""
    return {name: bias for name in program.raw.scores if (bias := program.values[name].bias)}


@dataclass(frozen=True)
class _Batch:
    """The peaks of each level, and how many images they are of."""

    images: int
    levels: tuple[Peaks, ...]


@dataclass(frozen=True)
class _Fold:
    """What was seen of images that are left out together.

    Attributes:
        sums: of each raw output with scores, by name, (classes, 3): weighted differences, weights and numbers of peaks.
    """

    batches: tuple[_Batch, ...]
    sums: Mapping[str, Tensor]


def _seen(candidate: Candidate, folds: Sequence[Sequence[Path]], progress: Progress) -> list[_Fold]:
    """Run both programs over all images."""
    program = candidate.program
    exact, quantised = raw_outputs(candidate.reference), raw_outputs(program, insert(program, candidate.plan, Fused))
    count, found = sum(batch_count(program, fold) for fold in folds), []
    with torch.no_grad(), progress.step("measuring shifts of scores", count) as advance:
        for fold in folds:
            seen = []
            for batch in batches(program, fold):
                seen.append(_Batch(len(batch), tuple(peaks(program, exact(batch), quantised(batch), LEAST))))
                advance()
            found.append(_Fold(tuple(seen), _sums(program, seen)))
    return found


def _sums(program: Program, seen: Sequence[_Batch]) -> dict[str, Tensor]:
    sums = {name: torch.zeros(program.values[name].shape[1], 3, dtype=torch.float64) for name in program.raw.scores}
    for level in (level for batch in seen for level in batch.levels):
        for name, factor in level.factors.items():
            sums[name].index_add_(0, factor.channels, _weighted(level, factor))
    return sums


def _weighted(level: Peaks, factor: Factor) -> Tensor:
    """Of each peak what the output has lost there, weighted, the weight, and one: (peaks, 3)."""
    weight = level.real.to(torch.float64) * (-factor.real.to(torch.float64)).sigmoid()
    lost = (factor.real - factor.approximate).to(torch.float64).clamp(-LARGEST, LARGEST)
    return torch.stack((weight * lost, weight, torch.ones_like(weight)), dim=1)


def _shifts(program: Program, folds: Iterable[_Fold]) -> dict[str, Tensor]:
    """What is added to each bias, (classes,) by path, for its level and classes; levels that share one are one."""
    of_bias: dict[str, list[Tensor]] = {}
    for fold in folds:
        for name, path in _biases(program).items():
            of_bias.setdefault(path, []).append(fold.sums[name])
    summed = {path: torch.stack(each).sum(dim=0) for path, each in of_bias.items()}
    every = torch.stack([sums.sum(dim=0) for sums in summed.values()]).sum(dim=0)
    overall = _shrunk(every, torch.zeros((), dtype=torch.float64))
    shifts = {}
    for path, sums in summed.items():
        level, many = _shrunk(sums.sum(dim=0), overall), sums[:, 2] >= MIN_PEAKS
        # Of classes seen too seldom only what they lost themselves: with that of others, which have it back, it is not
        # made up for on average.
        shifts[path] = torch.where(many, _shrunk(sums, level), _shrunk(sums[~many].sum(dim=0), level))
    return shifts


def _moved(candidate: Candidate, shifts: Mapping[str, Tensor]) -> Candidate:
    biases = {path: candidate.program.graph.parameter(path) for path in shifts}
    return candidate.with_parameters(
        {path: (old.to(torch.float64) + shifts[path].view_as(old)).to(old.dtype) for path, old in biases.items()}
    )


def _left(program: Program, batch: _Batch, shifts: Mapping[str, Tensor]) -> Tensor:
    """What `confidence_shift` would be of a batch with biases moved: (images, 2)."""
    biases, sums = _biases(program), torch.zeros(batch.images, 2, dtype=torch.float64)
    for level in batch.levels:
        logs = torch.zeros_like(level.real, dtype=torch.float64)
        for name, factor in level.factors.items():
            shift = shifts.get(biases.get(name, ""))
            moved = factor.approximate.to(torch.float64)
            logs += logsigmoid(moved if shift is None else moved + shift[factor.channels])
        gained = logs.exp() - level.real.to(torch.float64)
        each = torch.stack((gained, torch.ones_like(gained)), dim=1)[level.real >= CONFIDENT]
        sums.index_add_(0, level.images[level.real >= CONFIDENT], each)
    return sums


def _shrunk(sums: Tensor, expected: Tensor) -> Tensor:
    """The weighted mean of differences, (…, 3) to (…), as far as there are many; otherwise what is expected."""
    differences, weights, count = sums.unbind(dim=-1)
    mean = torch.where(weights > 0, differences / weights.clamp(min=1e-12), expected)
    return (count * mean + PRIOR * expected) / (count + PRIOR)
