"""Quantise/dequantise pairs in few operators: what NumPy's arithmetic gives, with and without gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qexport.planning.arithmetic import dequantise, quantise
from qexport.planning.plan import TensorQuant
from qexport.simulation.fused import Fused

REAL = torch.linspace(-9, 9, 4001)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize(
    "tensor",
    [
        TensorQuant("int8", (0.03,), (-5,)),
        TensorQuant("int8", (1 / 256,), (-128,), rule="fixed"),
        TensorQuant("uint8", (0.07,), (41,)),
        TensorQuant("int16", (2.7182e-4,), (0,)),
    ],
    ids=lambda tensor: tensor.dtype,
)
def test_an_activation_is_rounded_to_its_steps(tensor: TensorQuant, gradients: bool) -> None:
    given = REAL.clone().requires_grad_(gradients)
    seen = Fused(tensor, "a")(given)
    (scale,), (point,) = tensor.scale, tensor.zero_point
    expected = dequantise(quantise(REAL.numpy(), scale, point, tensor.kind), scale, point)
    apart = np.abs(seen.detach().numpy() - expected)
    assert (apart > 1e-5).mean() < 2e-3  # on the very edge between two steps
    assert apart.max() < 1.001 * scale
    if gradients:
        seen.sum().backward()
        assert given.grad is not None
        inside = (REAL / scale + point > tensor.kind.low - 0.4) & (REAL / scale + point < tensor.kind.high + 0.4)
        assert given.grad[inside].eq(1).all()
        assert given.grad[(REAL / scale + point).abs() > 256 * 129].eq(0).all()
    assert torch.equal(REAL, torch.linspace(-9, 9, 4001))


def test_a_weight_is_rounded_once_until_it_is_forgotten() -> None:
    weight, fused = torch.tensor([[0.26, -9.0], [1.0, 0.5]]), Fused(TensorQuant("int8", (0.05, 0.5), (0, 0), 0), "w")
    assert fused(weight).tolist() == [pytest.approx([0.25, -6.35]), [1.0, 0.5]]
    weight[0, 0] = 0.11
    assert float(fused(weight)[0, 0]) == pytest.approx(0.25)
    fused.forget()
    assert float(fused(weight)[0, 0]) == pytest.approx(0.1)
