"""What a student is trained by: what it loses of the float program's outputs and features, labels, or both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from qexport.optimisation.distillation import distilled
from qexport.programs.program import Program
from qexport.training.images import Batch
from qexport.training.student import Student

Labelled = Callable[[Program, Sequence[Tensor], Mapping[str, Tensor]], Tensor]
"""The program, its raw outputs in the order of `RawNames.all` (n first, float32) and a batch's targets, on
one device → a scalar, the mean over the images."""


def loss(student: Student, batch: Batch, labels: float = 0.0, labelled: Labelled | None = None) -> Tensor:
    """What a batch costs, with gradients, on the student's device.

    The float program is the teacher: its raw outputs, of every branch that the program has, and what its layers read.

    Args:
        labels: share of the labelled loss, 0..1.
        labelled: has to be given where that is not 0, with a batch that has targets.
    """
    pixels = batch.pixels.to(student.device)
    seen = student.seen(pixels)
    total = seen[0].new_zeros(())
    if labels < 1:
        with torch.no_grad():
            real = student.learner.real(pixels)
        total = total + (1 - labels) * distilled(student.candidate, student.learner.watched, real, seen)
    if labels > 0 and labelled and batch.targets is not None:
        place, names = student.learner.watched.index, student.candidate.program.raw.all
        targets = {name: each.to(student.device) for name, each in batch.targets.items()}
        total = total + labels * labelled(student.candidate.program, [seen[place(name)] for name in names], targets)
    return total
