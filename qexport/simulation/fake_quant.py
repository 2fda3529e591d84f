"""Fake quantisation that can be trained through: the values of a quantise/dequantise pair, with gradients.

Forward it is `Pair`, bit for bit. Backward rounding counts as the identity inside the range and as a constant outside
of it (the clipped straight-through estimator: Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013), and the scale has the gradient of Esser et al., "Learned Step Size Quantization" (2020), with a zero
point that stays as in Bhalgat et al., "LSQ+" (2020).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qexport.planning.plan import TensorQuant
from qexport.simulation.insert import Make
from qexport.simulation.rewrite import DTYPES, operations

LEARNED = frozenset({"own", "shared"})
"""Rules of scales that training may move: no kernel prescribes them, and nothing else follows from them."""


class FakeQuant(nn.Module):
    """A tensor as readers of its integers see it, with gradients: a module for `insert`.

    Attributes:
        scale: float32, (1,) or (channels,); a parameter where it is learned. It must stay positive.
    """

    scale: Tensor

    def __init__(self, tensor: TensorQuant, scale: Tensor) -> None:
        super().__init__()
        self.tensor = tensor
        if isinstance(scale, nn.Parameter):
            self.scale = scale
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_points", torch.tensor(tensor.zero_point, dtype=torch.int64))

    def forward(self, real: Tensor) -> Tensor:
        """Return `real` rounded to what its integers stand for, of its shape."""
        seen: Tensor = _FakeQuantise.apply(real, self.scale, self.zero_points, self.tensor)  # type: ignore[no-untyped-call]
        return seen


def fake_quantisers(learn_scales: bool = True) -> Make:
    """A maker for `insert` of `FakeQuant`; tensors of one group have one scale between them.

    Args:
        learn_scales: let scales be parameters where the plan's rule allows it, fixed ones never.
    """
    scales: dict[str, Tensor] = {}

    def make(tensor: TensorQuant, name: str) -> FakeQuant:
        key = tensor.group or name
        if key not in scales:
            scale = torch.tensor(tensor.scale, dtype=torch.float32)
            scales[key] = nn.Parameter(scale) if learn_scales and tensor.rule in LEARNED else scale
        return FakeQuant(tensor, scales[key])

    return make


class _FakeQuantise(torch.autograd.Function):
    """(real, scale, zero points, what the plan says) → real as its integers stand for it."""

    @staticmethod
    def forward(ctx: Any, real: Tensor, scale: Tensor, zero_points: Tensor, tensor: TensorQuant) -> Tensor:
        ctx.save_for_backward(real, scale, zero_points)
        ctx.tensor = tensor
        limits = tensor.kind.low, tensor.kind.high, DTYPES[tensor.dtype]
        if tensor.axis is None:
            numbers = (float(scale), int(zero_points), *limits)
            integers = operations.quantize_per_tensor(real, *numbers)
            seen: Tensor = operations.dequantize_per_tensor(integers, *numbers)
        else:
            rest = (scale, zero_points, tensor.axis, *limits)
            seen = operations.dequantize_per_channel(operations.quantize_per_channel(real, *rest), *rest)
        return seen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (gradient,) = gradients
        real, scale, zero_points = ctx.saved_tensors
        tensor: TensorQuant = ctx.tensor
        shape = [1] * real.dim()
        if tensor.axis is not None:
            shape[tensor.axis] = -1
        offset = zero_points.view(shape)
        steps = real / scale.view(shape)
        low, high = tensor.kind.low - offset, tensor.kind.high - offset
        inside = (steps > low) & (steps < high)
        of_real = gradient * inside if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_real, None, None, None
        slope = torch.where(inside, torch.round(steps) - steps, torch.minimum(torch.maximum(steps, low), high))
        others = [axis for axis in range(real.dim()) if axis != tensor.axis]
        of_scale = (gradient * slope).sum(dim=others).view_as(scale)
        return of_real, of_scale * _damping(real, tensor, zero_points), None, None


def _damping(real: Tensor, tensor: TensorQuant, zero_points: Tensor) -> Tensor:
    """What keeps the steps of a scale in proportion to those of what it scales: 1 / sqrt(count * steps to the end).

    Esser et al., section 2.2: the count is of a layer's weights, for activations of one image's features.
    """
    count = real.numel() / (real.shape[0] if tensor.axis is None else real.shape[tensor.axis])
    reach = torch.maximum(zero_points - tensor.kind.low, tensor.kind.high - zero_points)
    return 1 / torch.sqrt(count * reach.to(torch.float32))
