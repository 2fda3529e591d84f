"""What stands behind quantised tensors: fake quantisation against gradients by hand, and any other module."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import TinyDetector, captured, demo_image, seeded, synthetic_statistics
from test_plan_check import Twice
from torch import Tensor, nn

from qexport.planning.plan import TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO, TFLITE, TFLITE_INT16, TFLITE_INTEGER, RuntimeProfile
from qexport.programs.captured_graph import copied
from qexport.programs.program import Program, every_output
from qexport.simulation.fake_quant import FakeQuant, fake_quantisers
from qexport.simulation.insert import insert
from qexport.simulation.rewrite import simulated


def gradients(tensor: TensorQuant, real: list[list[float]], upstream: list[list[float]]) -> tuple[Tensor, Tensor]:
    module = fake_quantisers()(tensor, "a")
    given = torch.tensor(real, requires_grad=True)
    module(given).backward(torch.tensor(upstream))
    assert given.grad is not None
    (scale,) = module.parameters()
    assert scale.grad is not None
    return given.grad, scale.grad


def test_gradients_of_an_activation_are_those_by_hand() -> None:
    # 0.6 is 1.2 steps of 0.5: rounding gives 1, so the scale's slope is 1 - 1.2. 100 is cut at (127 - 3) = 124 steps,
    # -100 at (-128 - 3) = -131: nothing depends on them but the scale. One image of three numbers.
    tensor = TensorQuant("int8", (0.5,), (3,))
    of_real, of_scale = gradients(tensor, [[0.6, 100.0, -100.0]], [[2.0, 3.0, 5.0]])
    assert of_real.tolist() == [[2.0, 0.0, 0.0]]
    expected = (2 * (1 - 1.2) + 3 * 124 + 5 * -131) / math.sqrt(3 * 131)
    assert of_scale.tolist() == pytest.approx([expected], rel=1e-5)


def test_gradients_of_a_weight_are_by_channel() -> None:
    # Steps of 0.1: 2.6 and -5.2; steps of 1: 200, which is cut at 127, and 0.25.
    tensor = TensorQuant("int8", (0.1, 1.0), (0, 0), 0)
    of_real, of_scale = gradients(tensor, [[0.26, -0.52], [200.0, 0.25]], [[1.0, 10.0], [100.0, 1000.0]])
    assert of_real.tolist() == [[1.0, 10.0], [0.0, 1000.0]]
    damping = math.sqrt(2 * 127)
    expected = [(1 * (3 - 2.6) + 10 * (-5 + 5.2)) / damping, (100 * 127 + 1000 * -0.25) / damping]
    assert of_scale.tolist() == pytest.approx(expected, rel=1e-4)


def test_where_all_is_cut_the_slope_is_that_of_the_output() -> None:
    """There the estimator is exact: the output is scale times the last step."""
    tensor, real = TensorQuant("uint8", (0.25,), (10,)), torch.full((1, 4), 1000.0)
    outputs = [float(FakeQuant(tensor, torch.tensor([scale]))(real).sum()) for scale in (0.25, 0.26)]
    _, of_scale = gradients(tensor, real.tolist(), [[1.0] * 4])
    assert float(of_scale) * math.sqrt(4 * 245) == pytest.approx((outputs[1] - outputs[0]) / 0.01, rel=1e-3)


@pytest.mark.parametrize("profile", [TFLITE, TFLITE_INTEGER, TFLITE_INT16, OPENVINO])
def test_forward_is_the_quantise_and_dequantise_pair(demo_program: Program, profile: RuntimeProfile) -> None:
    plan = make_plan(demo_program, synthetic_statistics(demo_program.values), profile)
    fake = insert(demo_program, plan, fake_quantisers())
    modules = [part for part in fake.modules() if isinstance(part, FakeQuant)]
    assert len(modules) >= sum(not tensor.is_float for tensor in plan.tensors.values()) > 50
    image = demo_image(demo_program.input.imgsz)
    with torch.no_grad():
        pairs = zip(every_output(simulated(demo_program, plan)(image)), every_output(fake(image)), strict=True)
        assert all(torch.equal(expected, actual) for expected, actual in pairs)


def test_fixed_scales_are_not_learned_and_groups_have_one(tiny: Program) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE)
    fake = insert(tiny, plan, fake_quantisers())
    modules = {name: part for name, part in fake.named_modules() if isinstance(part, FakeQuant)}
    learned = {name for name, part in modules.items() if isinstance(part.scale, nn.Parameter)}
    fixed = {name for name in tiny.values if "sigmoid" in name and tiny.values[name].region == "body"} | {"images"}
    assert len(fixed) == 4
    assert {f"behind_{name}" for name in fixed} == modules.keys() - learned
    groups = {modules[f"behind_{name}"].scale for name, tensor in plan.tensors.items() if tensor.group == "stem_mul"}
    assert len(groups) == 1
    assert not [p for p in insert(tiny, plan, fake_quantisers(learn_scales=False)).parameters() if p.requires_grad]


def test_scales_and_weights_learn_through_it(tiny: Program) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, "minmax")
    fake = insert(tiny, plan, fake_quantisers(), copied(tiny))
    for weight in fake.parameters():
        weight.requires_grad_(True)
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected, before = tiny.graph(images), tiny.graph.parameter("neck.weight").clone()
    learner = torch.optim.Adam(fake.parameters(), lr=1e-3)
    losses = []
    for _ in range(30):
        learner.zero_grad()
        loss = (fake(images) - expected).square().mean()
        loss.backward()
        learner.step()
        losses.append(float(loss.detach()))
    assert min(losses[-5:]) < 0.5 * losses[0]
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in fake.parameters())
    assert torch.equal(tiny.graph.parameter("neck.weight"), before)


class Kept(nn.Module):
    """Lets everything through and remembers how often."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def forward(self, tensor: Tensor) -> Tensor:
        self.runs += 1
        return tensor


@pytest.mark.parametrize("kind", [TinyDetector, Twice])
def test_any_module_stands_behind_what_is_quantised(kind: type[nn.Module]) -> None:
    program = captured(seeded(kind()))
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE)
    made: dict[str, Kept] = {}

    def make(tensor: TensorQuant, name: str) -> Kept:
        assert plan.tensors[name] is tensor
        assert name not in made  # a weight that two layers read has one
        return made.setdefault(name, Kept())

    graph = insert(program, plan, make)
    images = torch.rand(1, 3, 8, 8)
    assert torch.equal(graph(images), program.graph(images))
    assert made.keys() == {name for name, tensor in plan.tensors.items() if not tensor.is_float}
    uses = {value.weight: 0 for value in program.values.values() if value.weight}
    for value in program.values.values():
        if value.weight:
            uses[value.weight] += 1
    assert {name: kept.runs for name, kept in made.items()} == {name: uses.get(name, 1) for name in made}
