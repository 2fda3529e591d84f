"""What a quantised program loses of what the float program computes: a loss that needs no labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import parts
from qexport.planning.plan import QuantPlan

SHARE_OF_DISTANCE = 0.3
"""Of what is learned by: by its values alone scores fall, as what is uncertain is best left out; by the distance alone
there is too little to learn from, a few anchors in each image."""
SMALLEST = 1e-9


def distilled(candidate: Candidate, names: Sequence[str], real: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    """What is lost in one batch: logarithms, so that neither part nor any image outweighs the others.

    Args:
        names: values, all raw outputs among them.
        real, seen: those values of the float and of the quantised program, batch first.
    """
    program, place = candidate.program, names.index
    one, other = ([each[place(name)] for name in program.raw.all] for each in (real, seen))
    far = torch.stack(parts(program, one, other)).sum(dim=0).mean()
    lost = lost_power(candidate.plan, names, real, seen)
    return (lost + SMALLEST).log() + SHARE_OF_DISTANCE * far.log()


def lost_power(plan: QuantPlan, names: Sequence[str], real: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    """The error's share of a value's power, in the mean over values.

    A value that is next to nothing in an image counts as if it were a step of its scale everywhere.
    """
    shares = []
    for name, one, other in zip(names, real, seen, strict=True):
        tensor = plan.tensors[name]
        least = tensor.scale[0] ** 2 * one.numel() if not tensor.is_float else SMALLEST
        power = torch.dot(one.flatten(), one.flatten())
        shares.append(functional.mse_loss(other, one, reduction="sum") / (power + least))
    return torch.stack(shares).mean()
