"""What a model makes of its parameters alone is a constant of the program: no value, nothing to calibrate."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import TinyDecode, captured, seeded, synthetic_statistics
from torch import Tensor, nn

from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TFLITE
from qexport.planning.weights import weight_array

Made = Callable[["Blocks", Tensor], Tensor]


def layer_scale(blocks: Blocks, x: Tensor) -> Tensor:
    return x * blocks.gamma.reshape(1, -1, 1, 1)


def expanded_shift(blocks: Blocks, x: Tensor) -> Tensor:
    return x + blocks.gamma.view(1, -1, 1, 1).expand(1, 4, 2, 2).mean(dim=(2, 3), keepdim=True)


def squashed_gate(blocks: Blocks, x: Tensor) -> Tensor:
    return x * blocks.gamma.sigmoid()[None, :, None, None]


def standardised_weight(blocks: Blocks, x: Tensor) -> Tensor:
    weight = blocks.kernel - blocks.kernel.mean(dim=(1, 2, 3), keepdim=True)
    return nn.functional.conv2d(x, weight / weight.std(dim=(1, 2, 3), keepdim=True), blocks.gamma, padding=1)


def branches_joined(blocks: Blocks, x: Tensor) -> Tensor:
    return nn.functional.conv2d(x, blocks.kernel + nn.functional.pad(blocks.point, (1, 1, 1, 1)), padding=1)


class Blocks(nn.Module):
    """A block between a convolution and the head."""

    def __init__(self, made: Made) -> None:
        super().__init__()
        self.stem, self.box, self.cls = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.gamma = nn.Parameter(torch.zeros(4))
        self.kernel, self.point = nn.Parameter(torch.zeros(4, 4, 3, 3)), nn.Parameter(torch.zeros(4, 4, 1, 1))
        self.made, self.decode = made, TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        inner = self.made(self, self.stem(images).relu())
        decoded: Tensor = self.decode(self.box(inner), self.cls(inner))
        return decoded


BLOCKS = (layer_scale, expanded_shift, squashed_gate, standardised_weight, branches_joined)


@pytest.mark.parametrize("made", BLOCKS)
def test_the_program_is_the_models_and_every_value_comes_from_the_image(made: Made) -> None:
    module = seeded(Blocks(made))
    program = captured(module)
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(program.graph(images), module(images))
    assert [value.name for value in program.values.values() if not value.inputs] == ["images"]


@pytest.mark.parametrize("made", BLOCKS)
@pytest.mark.parametrize("profile", [TFLITE, ONNXRUNTIME, OPENVINO], ids=lambda profile: profile.name)
def test_it_can_be_planned(made: Made, profile: object) -> None:
    program = captured(seeded(Blocks(made)))
    plan = make_plan(program, synthetic_statistics(program.values), profile)  # type: ignore[arg-type]
    assert {value.name for value in program.values.values() if value.weight} <= plan.integer | {"stem"}


@pytest.mark.parametrize("made", [standardised_weight, branches_joined])
def test_a_computed_weight_is_a_layers_weight(made: Made) -> None:
    module = seeded(Blocks(made))
    program = captured(module)
    kernel, point = (getattr(module, name).detach().numpy() for name in ("kernel", "point"))
    (layer,) = (value for value in program.values.values() if value.weight.startswith("folded_"))
    if made is branches_joined:
        expected = kernel.copy()
        expected[:, :, 1:2, 1:2] += point
    else:
        centred = kernel - kernel.mean(axis=(1, 2, 3), keepdims=True)
        expected = centred / centred.std(axis=(1, 2, 3), keepdims=True, ddof=1)
    np.testing.assert_allclose(weight_array(program, layer.weight), expected, rtol=1e-5, atol=1e-6)
    assert layer.macs == 8 * 8 * 4 * 4 * 9
