"""Learn how weights are rounded, biases and scales of activations so that every layer is given what it was in float.

Li et al., "BRECQ" (2021, arXiv 2102.05426) bring the output of one block after the other close to the float block's.
Here all are learned at once, in the whole network, so that one run forwards and backwards serves every block, early
ones are learned for what they do to late ones, and inputs are always those that the quantised network sees (Wei et al.,
"QDrop", 2022, arXiv 2203.05740, show what that is worth). The distance that passes are judged by has a share in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qexport.data.choice import learned_from
from qexport.optimisation.candidate import Candidate, batches
from qexport.optimisation.distillation import distilled
from qexport.optimisation.learned import Learner, unmoved
from qexport.optimisation.lone_threads import WORKERS, lone_threads
from qexport.programs.program import Program
from qexport.progress import Progress

STEPS = 64
"""Of learning, from `WORKERS` batches each."""
RATE_OF_WEIGHTS = 0.02
"""In steps of a weight's scale, for each step of learning."""
RATE_OF_SCALES = 0.002
"""Of a scale, as a share of it."""
RATE_OF_BIASES = 0.001
BETAS = (0.9, 0.99)
"""Of Adam: few steps, so that the second moment has to forget sooner than by default."""
MAX_NUMBERS = 2**28
"""Of all values of a batch: about three times as many are kept for the way back, of each batch in work."""


class Reconstruction:
    """A `WeightPass`: weights, biases and scales of activations are learned."""

    name = "reconstruction"

    def requires(self, candidate: Candidate, /) -> str:
        """Layers with integer weights, and values that fit into memory several times."""
        if not any(candidate.plan.is_quantised(value.weight) for value in candidate.program.values.values()):
            return "no layer has integer weights"
        needed = _numbers(candidate.program)
        return f"its values are {needed / 2**20:.0f} million numbers, which is too many" if needed > MAX_NUMBERS else ""

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Learn from each image as often as from the others."""
        images = learned_from(images)
        given = list(batches(candidate.program, images))
        if not given:
            return candidate
        learner = Learner(candidate)
        rates = zip(learner.parameters, (RATE_OF_WEIGHTS, RATE_OF_BIASES, RATE_OF_SCALES), strict=True)
        optimiser = torch.optim.Adam([{"params": each, "lr": rate} for each, rate in rates], betas=BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _share)
        learned = [each for group in learner.parameters for each in group]
        with progress.step("learning rounding and scales", STEPS) as advance, lone_threads() as pool:
            for drawn in _drawn(len(given)):
                found = pool.map(partial(_gradients, learner, candidate, learned), [given[index] for index in drawn])
                for parameter, *slopes in zip(learned, *found, strict=True):
                    parameter.grad = torch.stack(slopes).mean(dim=0)
                optimiser.step()
                schedule.step()
                learner.bound()
                advance()
        return learner.result()

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """No integer is more than a step from where the weight was, and no scale that is tied to others has moved."""
        return unmoved(before, after)


def _gradients(learner: Learner, candidate: Candidate, learned: Sequence[Tensor], batch: Tensor) -> tuple[Tensor, ...]:
    """Of what is lost in one batch."""
    with torch.no_grad():
        real = learner.real(batch)
    lost = distilled(candidate, learner.watched, real, learner.quantised(batch))
    return torch.autograd.grad(lost, learned, materialize_grads=True)


def _numbers(program: Program) -> int:
    return sum(math.prod(value.shape) for value in program.values.values())


def _share(step: int) -> float:
    """Of the rate, by a cosine that ends at zero."""
    return (1 + math.cos(math.pi * step / STEPS)) / 2


def _drawn(count: int) -> Iterator[list[int]]:
    """For each step the batches to learn from, by chance; none comes again before all others came."""
    generator = torch.Generator().manual_seed(0)
    rounds = -(-STEPS * WORKERS // count)
    order = [index for _ in range(rounds) for index in torch.randperm(count, generator=generator).tolist()]
    return (order[start : start + WORKERS] for start in range(0, STEPS * WORKERS, WORKERS))
