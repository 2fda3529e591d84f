"""Fake quantisation that can be trained through: the values of a quantise/dequantise pair, with gradients.

Forward it is `Pair`, bit for bit. Backward rounding counts as the identity inside the range and as a constant outside
of it (the clipped straight-through estimator: Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013), and the scale has the gradient of Esser et al., "Learned Step Size Quantization" (2020), with a zero
point that stays as in Bhalgat et al., "LSQ+" (2020). Inside is what rounds to a number that the type has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from qexport.planning.plan import TensorQuant
from qexport.simulation.insert import Make

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

    def forward(self, real: Tensor) -> Tensor:
        """Return `real` rounded to what its integers stand for, of its shape."""
        shape = [1] * real.dim()
        if self.tensor.axis is not None:
            shape[self.tensor.axis] = -1
        return fake_quantised(real, self.scale.view(shape), *limits_of(self.tensor), _damping(real, self.tensor))


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


def limits_of(tensor: TensorQuant) -> tuple[int, int]:
    """The lowest and the highest integer in steps from the one that stands for zero."""
    return tensor.kind.low - tensor.zero_point[0], tensor.kind.high - tensor.zero_point[0]


def fake_quantised(real: Tensor, scale: Tensor, low: int, high: int, damping: float = 1.0) -> Tensor:
    """Return `real` in whole steps of `scale` from `low` to `high`, float32, of its shape, with gradients for both.

    No value is fetched from another device than the CPU.

    Args:
        scale: float32, one number or what can be multiplied with `real`.
        damping: what the scale's gradient is multiplied with.
    """
    seen: Tensor = _FakeQuantise.apply(real.to(torch.float32), scale, low, high, damping)  # type: ignore[no-untyped-call]
    return seen


class _FakeQuantise(torch.autograd.Function):
    """Four passes forward and three backward: operators of PyTorch's own keep masks and integers, for four times that.

    The scale's slope is (rounded - real) / scale inside and the limit outside, which is (rounded - passed) / scale
    everywhere, with the real value where a gradient passes and zero elsewhere for `passed`: two products of vectors.
    """

    @staticmethod
    def forward(ctx: Any, real: Tensor, scale: Tensor, low: int, high: int, damping: float) -> Tensor:
        seen: Tensor = (real * scale.reciprocal()).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(real, seen, scale)
        ctx.rest = low, high, damping
        return seen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        real, seen, scale = ctx.saved_tensors
        low, high, damping = ctx.rest
        of_real = _inside(gradient, real, scale, low - 0.5, high + 0.5)
        if not ctx.needs_input_grad[1]:
            return of_real, None, None, None, None
        if scale.numel() == 1:
            slope = _dot(gradient, seen) - _dot(of_real, real)
        else:
            slope = (gradient * seen - of_real * real).sum_to_size(scale.shape)
        return of_real, (slope / scale).view_as(scale) * damping, None, None, None


def _inside(gradient: Tensor, real: Tensor, scale: Tensor, low: float, high: float) -> Tensor:
    """The gradient where `real` is between the two, in steps of `scale`."""
    if scale.numel() == 1 and scale.device.type == "cpu":
        step = float(scale)
        passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, real, low * step, high * step)
        return passed
    return gradient * ((real > low * scale) & (real < high * scale))


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return torch.dot(one.flatten(), other.flatten())


def _damping(real: Tensor, tensor: TensorQuant) -> float:
    """What keeps the steps of a scale in proportion to those of what it scales: 1 / sqrt(count * steps to the end).

    Esser et al., section 2.2: the count is of a layer's weights, for activations of one image's features.
    """
    count = real.numel() / (real.shape[0] if tensor.axis is None else real.shape[tensor.axis])
    return 1 / math.sqrt(count * max(map(abs, limits_of(tensor))))
