"""Which of its two neighbours each weight becomes so that a layer's output moves least.

With inputs x and rounding errors e of one output channel the output moves by e x, in the mean square by e M e with
M = E[x x^T]: errors may cancel, and rounding every weight to its nearest neighbour lets none. Weights are rounded one
after the other, and those that are left take up the error (Frantar et al., "GPTQ: Accurate Post-Training Quantization
for Generative Pre-trained Transformers", 2022, with the order by the diagonal and blocks of columns), but none goes
further than its two neighbours (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020).
What comes out is improved by single weights until none is left that helps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qexport.planning.plan import TensorQuant

DAMPING = 0.1
"""Of the mean of the diagonal, which is added to it (Frantar et al., section 3.3, take 0.01): with it less is lost on
images that were not seen, above all where few were."""
MAX_DAMPING = 10.0
COLUMNS = 128
"""Weights that are rounded before the others hear of it, by one product of matrices."""
MAX_FLIPS = 64
"""Weights of an output channel that are turned over afterwards: most have none left long before."""
WHOLE = 1e-4
"""Weights that are less than so many steps from a whole number are that number: float32 gives no more."""
LEAST_GAIN = 1e-5
"""Of a channel's error: what a turned weight has to take from it, above float32's own noise."""


def scale_like(weight: Tensor, quant: TensorQuant) -> Tensor:
    """A weight's scales, float32, on its device, of a shape that they can be multiplied with it in."""
    shape = [1] * weight.dim()
    assert quant.axis is not None
    shape[quant.axis] = -1
    return torch.tensor(quant.scale, dtype=torch.float32, device=weight.device).view(shape)


def adaptively_rounded(steps: Tensor, moments: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return whole numbers between `low` and `high`, of the shape of `steps`.

    No row's error is larger than with the nearest numbers.

    Args:
        steps: (groups, rows, columns) float32, weights in steps of their scales.
        moments: (groups, columns, columns) float32, sums of x x^T over what the columns are multiplied with.
        low, high: the neighbours of each of `steps`, whole numbers; where both are one there is no choice.
    """
    nearest = torch.minimum(torch.maximum(steps.round(), low), high)
    found = _successively(steps, moments, low, high)
    better = output_error(found - steps, moments) < output_error(nearest - steps, moments)
    return _turned(torch.where(better[..., None], found, nearest), steps, moments, low, high)


def output_error(errors: Tensor, moments: Tensor) -> Tensor:
    """What each row's output moves by, squared and summed as in `moments`: (groups, rows)."""
    return ((errors @ moments) * errors).sum(dim=-1)


def _successively(steps: Tensor, moments: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Round column by column, those with the largest inputs first."""
    order = moments.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    factor = _factor(_ordered(moments, order))
    columns = order[:, None, :].expand_as(steps)
    left, low, high = (each.gather(-1, columns) for each in (steps, low, high))
    count = steps.shape[-1]
    rounded = torch.empty_like(left)
    for start in range(0, count, COLUMNS):
        end = min(start + COLUMNS, count)
        block, errors = left[..., start:end].clone(), torch.empty_like(left[..., start:end])
        for index in range(end - start):
            column = start + index
            real = block[..., index]
            whole = torch.minimum(torch.maximum(real.round(), low[..., column]), high[..., column])
            error = (real - whole) / factor[:, column, column, None]
            block[..., index + 1 :] -= error[..., None] * factor[:, None, column, column + 1 : end]
            rounded[..., column], errors[..., index] = whole, error
        left[..., end:] -= errors @ factor[:, start:end, end:]
    return torch.empty_like(rounded).scatter_(-1, columns, rounded)


def _ordered(moments: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in another order, group by group."""
    rows = moments.gather(1, order[:, :, None].expand_as(moments))
    return rows.gather(2, order[:, None, :].expand_as(moments))


def _factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the inverse; inputs that are never seen, or always alike, are damped more."""
    diagonal = moments.diagonal(dim1=-2, dim2=-1)
    mean = diagonal.mean(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    damping = DAMPING
    while True:
        damped = moments + torch.diag_embed((damping * mean).expand_as(diagonal))
        lower, failed = torch.linalg.cholesky_ex(damped / mean[..., None])
        if not failed.any():
            factor, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed.any():
            found: Tensor = factor
            return found
        if damping > MAX_DAMPING:
            return torch.eye(diagonal.shape[-1]).expand_as(moments)
        damping *= 10


def _turned(whole: Tensor, steps: Tensor, moments: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Turn single weights over to their other neighbour, in every row the one that helps most."""
    whole, diagonal = whole.clone(), moments.diagonal(dim1=-2, dim2=-1)[:, None, :]
    errors = whole - steps
    pull = errors @ moments
    least = LEAST_GAIN * (pull * errors).sum(dim=-1)
    groups = torch.arange(len(moments))[:, None]
    for _ in range(min(MAX_FLIPS, 2 * steps.shape[-1])):
        turn = low + high - 2 * whole
        gain, best = (-turn * (2 * pull + turn * diagonal)).max(dim=-1)
        turned = torch.where(gain > least, turn.gather(-1, best[..., None])[..., 0], 0)
        if not turned.any():
            break
        whole.scatter_add_(-1, best[..., None], turned[..., None])
        pull += turned[..., None] * moments[groups, best]
    return whole
