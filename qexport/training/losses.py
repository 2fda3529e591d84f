"""What a student is trained by: what it loses of the float program's outputs and features, labels, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qexport.optimisation.distillation import distilled
from qexport.programs.program import Program
from qexport.training.images import Batch, pieces
from qexport.training.student import Student

Labelled = Callable[[Program, Sequence[Tensor], Mapping[str, Tensor]], Tensor]
"""The program, its raw outputs in the order of `RawNames.all` (n first, float32) and a batch's targets, on
one device → a scalar, the mean over the images."""


def loss(student: Student, batch: Batch, labels: float = 0.0, labelled: Labelled | None = None) -> Tensor:
    """What a batch costs, with gradients, on the student's device.

    The float program is the teacher: its raw outputs, of every branch that the program has, and what its layers read.
    It is the mean of what each image costs alone: what a batch is cut into, and how many processes share it, does not
    matter.

    Args:
        labels: share of the labelled loss, 0..1.
        labelled: has to be given where that is not 0, with a batch that has targets.
    """
    pixels, count = batch.pixels.to(student.device), len(batch.pixels)
    seen = student.seen(pixels)
    total, program, names = seen[0].new_zeros(()), student.candidate.program, student.learner.watched
    if labels < 1:
        with torch.no_grad():
            real = student.learner.real(pixels)
        pairs = zip(_by_image(real, count), _by_image(seen, count), strict=True)
        far = torch.stack([distilled(student.candidate, names, one, other) for one, other in pairs]).mean()
        total = total + (1 - labels) * far
    if labels > 0 and labelled and batch.targets is not None:
        raw = [seen[names.index(name)] for name in program.raw.all]
        total = total + labels * by_labels(labelled, program, raw, batch).mean()
    return total


def by_labels(labelled: Labelled, program: Program, raw: Sequence[Tensor], batch: Batch) -> Tensor:
    """The labelled loss of each image of a batch alone, (n,), on the device of `raw`."""
    lost = []
    for one, outputs in zip(pieces(batch, 1), _by_image(raw, len(batch.pixels)), strict=True):
        targets = {name: each.to(raw[0].device) for name, each in (one.targets or {}).items()}
        lost.append(labelled(program, outputs, targets))
    return torch.stack(lost)


def _by_image(values: Sequence[Tensor], count: int) -> Iterator[tuple[Tensor, ...]]:
    """Values of `count` images, of one after the other; what all images have in common is each one's."""
    if count == 1:
        return iter([tuple(values)])
    parts = ([each] * count if len(each) % count else each.chunk(count) for each in values)
    return zip(*parts, strict=True)
