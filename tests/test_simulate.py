"""The simulated program against integer arithmetic done by hand in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TinyDetector, captured, seeded, synthetic_statistics
from numpy.typing import NDArray
from torch import Tensor, nn

from qexport.detections.layout import HeadLayout
from qexport.errors import ConversionError
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.captured_graph import copied, module_of
from qexport.programs.program import Program
from qexport.simulation.rewrite import simulated

Array = NDArray[np.float64]


class Steps(nn.Module):
    """Stands in for a decode: passes both raw outputs on."""

    layout = HeadLayout(strides=(1,), imgsz=(4, 4), classes=2, head="one2many")

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.cat((boxes.flatten(1), scores.flatten(1)), dim=1)


class OneLayer(nn.Module):
    """A convolution with SiLU, small enough to compute by hand, and two 1x1 convolutions as raw outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        self.box = nn.Conv2d(4, 4, 1)
        self.cls = nn.Conv2d(4, 2, 1)
        self.act = nn.SiLU(inplace=True)
        self.decode = Steps()

    def forward(self, images: Tensor) -> Tensor:
        value = self.act(self.layer(images))
        decoded: Tensor = self.decode(self.box(value), self.cls(value))
        return decoded


@pytest.fixture(scope="module")
def layer() -> Program:
    return captured(seeded(OneLayer()), (4, 4))


def per_tensor(scale: float, zero_point: int) -> TensorQuant:
    return TensorQuant("int8", (scale,), (zero_point,), why="by hand")


def convolution(real: Array, weight: Array, bias: Array) -> Array:
    """A 3x3 or 1x1 convolution with same padding, from its definition."""
    size = weight.shape[2]
    padded = np.pad(real, ((0, 0), (size // 2,) * 2, (size // 2,) * 2))
    height, width = real.shape[1:]
    out = np.zeros((len(weight), height, width))
    for row in range(height):
        for column in range(width):
            window = padded[:, row : row + size, column : column + size]
            out[:, row, column] = (weight * window).sum(axis=(1, 2, 3)) + bias
    return out


def through(real: Array, scale: float, zero_point: int) -> Array:
    """Quantise to INT8 and back, from the definition."""
    integers = np.clip(np.round(real / scale) + zero_point, -128, 127)
    back: Array = (integers - zero_point) * scale
    return back


def weight_through(weight: Array) -> tuple[Array, list[float]]:
    scales = np.abs(weight).max(axis=(1, 2, 3)) / 127
    by_channel = scales[:, None, None, None]
    return np.clip(np.round(weight / by_channel), -127, 127) * by_channel, [float(np.float32(s)) for s in scales]


def test_a_convolution_with_silu_is_the_integer_arithmetic_by_hand(layer: Program) -> None:
    module = seeded(OneLayer())
    weights = {name: p.double().numpy() for name, p in module.named_parameters()}
    scales = {
        "images": (1 / 255, -128),
        "layer_conv": (0.05, 10),
        "layer_sigmoid": (1 / 256, -128),
        "layer_mul": (0.02, -100),
        "box_conv": (0.04, 3),
        "cls_conv": (0.03, -7),
    }
    tensors = {name: per_tensor(*pair) for name, pair in scales.items()}
    stored = {}
    for name in ("layer", "box", "cls"):
        stored[name], per_channel = weight_through(weights[f"{name}.weight"])
        tensors[f"{name}.weight"] = TensorQuant("int8", tuple(per_channel), (0,) * len(per_channel), 0, why="by hand")
    integer = frozenset(scales) - {"images"}
    plan = QuantPlan("by hand", layer.fingerprint, integer, tensors)

    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        actual = simulated(layer, plan)(images).numpy()[0]
        exact = layer.graph(images).numpy()[0]

    pixels = through(images[0].double().numpy(), *scales["images"])
    value = through(convolution(pixels, stored["layer"], weights["layer.bias"]), *scales["layer_conv"])
    gate = through(1 / (1 + np.exp(-value)), *scales["layer_sigmoid"])
    product = through(value * gate, *scales["layer_mul"])
    boxes = through(convolution(product, stored["box"], weights["box.bias"]), *scales["box_conv"])
    scores = through(convolution(product, stored["cls"], weights["cls.bias"]), *scales["cls_conv"])
    expected = np.concatenate((boxes.ravel(), scores.ravel()))

    # A sum in the middle between two integers may round either way in float32: one step, in few places.
    steps = np.abs(actual - expected) / np.repeat([0.04, 0.03], [64, 32])
    assert (steps > 0.01).mean() < 0.05
    assert steps.max() < 1.01
    assert np.abs(actual - exact).max() > 0.02  # the float program is another one


def test_an_all_float_plan_is_the_float_program(layer: Program) -> None:
    plan = QuantPlan("float", layer.fingerprint, frozenset(), dict.fromkeys(layer.values, TensorQuant("float32")))
    images = torch.rand(1, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(simulated(layer, plan)(images), layer.graph(images))


class Shared(OneLayer):
    """One value with two readers: box is to run in integers, cls in float."""

    def forward(self, images: Tensor) -> Tensor:
        value = self.layer(images)
        decoded: Tensor = self.decode(self.box(value), self.cls(value))
        return decoded


@pytest.mark.parametrize("written_in_integers", [False, True])
def test_float_readers_of_a_float_value_keep_it_exact(written_in_integers: bool) -> None:
    program = captured(seeded(Shared()), (4, 4))
    coarse = per_tensor(0.5, 0)
    tensors = {name: TensorQuant("float32") for name in program.values}
    tensors |= {"layer_conv": coarse, "box_conv": per_tensor(0.001, 0)}
    integer = {"box_conv", "layer_conv"} if written_in_integers else {"box_conv"}
    plan = QuantPlan("by hand", program.fingerprint, frozenset(integer), tensors)
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    module = seeded(Shared())
    assert isinstance(module, Shared)
    with torch.no_grad():
        actual = simulated(program, plan)(images)[0, 64:]
        value = module.layer(images)
        rounded = torch.fake_quantize_per_tensor_affine(value, 0.5, 0, -128, 127)
        exact, coarsened = module.cls(value).flatten(), module.cls(rounded).flatten()
    assert not torch.allclose(exact, coarsened, atol=1e-2)
    torch.testing.assert_close(actual, coarsened if written_in_integers else exact)


def test_integer_readers_of_a_float_value_see_its_integers() -> None:
    program = captured(seeded(Shared()), (4, 4))
    tensors = {name: TensorQuant("float32") for name in program.values}
    tensors |= {"layer_conv": per_tensor(0.5, 0), "box_conv": per_tensor(0.04, 0)}
    plan = QuantPlan("by hand", program.fingerprint, frozenset({"box_conv"}), tensors)
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    module = seeded(Shared())
    assert isinstance(module, Shared)
    with torch.no_grad():
        actual = simulated(program, plan)(images)[0, :64]
        coarse = torch.fake_quantize_per_tensor_affine(module.layer(images), 0.5, 0, -128, 127)
        expected = torch.fake_quantize_per_tensor_affine(module.box(coarse), 0.04, 0, -128, 127)
    torch.testing.assert_close(actual, expected.flatten())


def test_the_program_itself_is_left_alone(tiny: Program) -> None:
    before = str(module_of(tiny).graph)
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE)
    names = set(module_of(tiny).state_dict())
    shared = simulated(tiny, plan)
    assert shared.get_parameter("stem.weight") is module_of(tiny).get_parameter("stem.weight")  # no copy is made
    simulation = simulated(tiny, plan, copied(tiny))
    with torch.no_grad():
        simulation.get_parameter("stem.weight").zero_()
    assert str(module_of(tiny).graph) == before
    assert set(module_of(tiny).state_dict()) == names
    assert float(tiny.graph.parameter("stem.weight").abs().sum()) > 1


def test_each_quantised_value_passes_through_integers_once(tiny: Program) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE)
    nodes = list(simulated(tiny, plan).graph.nodes)
    wanted = {name for name in tiny.values if plan.is_quantised(name)}
    found = [n.args[0].name for n in nodes if "quantized_decomposed.quantize_per_tensor" in str(n.target)]
    assert sorted(found) == sorted(wanted)
    weights = [n for n in nodes if "quantized_decomposed.quantize_per_channel" in str(n.target)]
    assert len(weights) == 6


def test_a_value_quantised_to_16_bits_has_16_bits(layer: Program) -> None:
    tensors = {name: TensorQuant("float32") for name in layer.values}
    tensors["cls_conv"] = TensorQuant("int16", (0.001,), (0,), why="by hand")
    plan = QuantPlan("by hand", layer.fingerprint, frozenset({"cls_conv"}), tensors)
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        exact, actual = layer.graph(images)[0, 64:], simulated(layer, plan)(images)[0, 64:]
    assert float(exact.abs().max()) > 0.2  # beyond 127 steps
    torch.testing.assert_close(actual, torch.round(exact * 1000) / 1000, atol=1e-6, rtol=1e-6)


def test_a_plan_of_another_program_is_refused(tiny: Program) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE)
    with pytest.raises(ConversionError, match="made for another program"):
        simulated(captured(seeded(TinyDetector(), seed=1)), plan)
    with pytest.raises(ConversionError, match="made for another program"):
        simulated(tiny, replace(plan, program="0" * 64))


def test_a_copy_may_be_changed(tiny: Program) -> None:
    graph = copied(tiny)
    with torch.no_grad():
        graph.get_parameter("stem.weight").fill_(7)
    assert float(tiny.graph.parameter("stem.weight").max()) < 7
