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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate, batch_count, batches, changed_parameters
from qexport.optimisation.confidences import Factor, Peaks, peaks, score_levels
from qexport.optimisation.distance import Distance, raw_outputs, shift_margin
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
"""Of a class in a level, below which it has the level's shift."""
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
        program, images = candidate.program, take(images, count=MAX_IMAGES)
        exact = raw_outputs(candidate.reference)
        quantised = raw_outputs(program, insert(program, candidate.plan, Fused))
        seen = {name: _Seen() for name in program.raw.scores}
        count = batch_count(program, images)
        with torch.no_grad(), progress.step("measuring shifts of scores", count) as advance:
            for batch in batches(program, images):
                found = peaks(program, exact(batch), quantised(batch), LEAST)
                for level in found:
                    for name, factor in level.factors.items():
                        seen[name].add(level, factor, program.values[name].shape[1])
                advance()
        return candidate.with_parameters(_moved(program, seen))

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


@dataclass
class _Seen:
    """What was seen of a level's classes: sum of weighted differences, sum of weights and number of peaks."""

    sums: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def add(self, level: Peaks, factor: Factor, classes: int) -> None:
        """Take in the peaks of a batch, and what the output that is looked at has there."""
        weight = level.real.to(torch.float64) * (-factor.real.to(torch.float64)).sigmoid()
        lost = (factor.real - factor.approximate).to(torch.float64).clamp(-LARGEST, LARGEST)
        each = torch.stack((weight * lost, weight, torch.ones_like(weight)), dim=1)
        self.sums = self.sums + torch.zeros(classes, 3, dtype=torch.float64).index_add_(0, factor.channels, each)


def _moved(program: Program, seen: Mapping[str, _Seen]) -> dict[str, Tensor]:
    """Biases of scores with the shifts of their levels and classes; levels that share a bias are one."""
    of_bias: dict[str, Tensor] = {}
    for name, path in _biases(program).items():
        of_bias[path] = of_bias.get(path, torch.zeros((), dtype=torch.float64)) + seen[name].sums
    every = torch.stack([sums.sum(dim=0) for sums in of_bias.values()]).sum(dim=0)
    overall = _shrunk(every, torch.zeros((), dtype=torch.float64))
    moved = {}
    for path, sums in of_bias.items():
        level = _shrunk(sums.sum(dim=0), overall)
        shift = torch.where(sums[:, 2] >= MIN_PEAKS, _shrunk(sums, level), level)
        bias = program.graph.parameter(path)
        moved[path] = (bias.to(torch.float64) + shift.view_as(bias)).to(bias.dtype)
    return moved


def _shrunk(sums: Tensor, expected: Tensor) -> Tensor:
    """The weighted mean of differences, (…, 3) to (…), as far as there are many; otherwise what is expected."""
    differences, weights, count = sums.unbind(dim=-1)
    mean = torch.where(weights > 0, differences / weights.clamp(min=1e-12), expected)
    return (count * mean + PRIOR * expected) / (count + PRIOR)
