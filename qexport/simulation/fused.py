"""A quantise/dequantise pair in few operators of PyTorch's: for measuring, where converters have no say.

It rounds real / scale as a product with the scale's inverse, so that an element on the very edge between two steps may
fall on the other side than in `Pair`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qexport.planning.plan import TensorQuant
from qexport.simulation.fake_quant import fake_quantised


class Fused(nn.Module):
    """A tensor as readers of its integers see it: a maker for `insert`.

    Gradients pass straight through where nothing is clipped; scales have none. Weights are rounded once: who changes
    them afterwards calls `forget`.
    """

    def __init__(self, tensor: TensorQuant, name: str) -> None:
        super().__init__()
        self.tensor, self.name = tensor, name
        self._rounded: Tensor | None = None
        self.register_buffer("scales", torch.tensor(tensor.scale, dtype=torch.float32), persistent=False)
        points = torch.tensor(tensor.zero_point, dtype=torch.int32)
        self.register_buffer("zero_points", points, persistent=False)
        self.scales: Tensor
        self.zero_points: Tensor

    def forget(self) -> None:
        """Round the weight again when it is next read."""
        self._rounded = None

    def forward(self, real: Tensor) -> Tensor:
        """Return `real` rounded to what its integers stand for, of its shape."""
        tensor, kind = self.tensor, self.tensor.kind
        if tensor.axis is None:
            scale, point = tensor.scale[0], tensor.zero_point[0]
            if torch.is_grad_enabled() and real.requires_grad:
                return fake_quantised(real, self.scales, kind.low - point, kind.high - point)
            return (real * (1 / scale)).round_().clamp_(kind.low - point, kind.high - point).mul_(scale)
        if self._rounded is None or real.requires_grad:
            self._rounded = torch.fake_quantize_per_channel_affine(
                real, self.scales, self.zero_points, tensor.axis, kind.low, kind.high
            )
        return self._rounded
