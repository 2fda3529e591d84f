"""Scales of weights by the error that they make in a layer's outputs, in plans of every runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import captured, demo_images, lowering, seeded, synthetic_statistics
from hard_numbers import SIZE, Layers
from torch import Tensor, nn
from torch.nn import functional

from qexport.optimisation.candidate import Candidate, batches
from qexport.optimisation.weight_scales import WeightScales, _importance
from qexport.planning.given_plan import check_rules
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import (
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TFLITE,
    TFLITE_INT16,
    TFLITE_INTEGER,
    RuntimeProfile,
    for_saturating_cpus,
)
from qexport.programs.program import Program
from qexport.progress import Silent

IMAGES = demo_images("train", 3)
PROFILES = (
    TFLITE,
    TFLITE_INTEGER,
    TFLITE_INT16,
    replace(ONNXRUNTIME, float_stem=0.0),
    for_saturating_cpus(ONNXRUNTIME),
    OPENVINO,
    TENSORRT,
)


def uneven() -> Layers:
    """Weights of which a few are far larger than the others, in inputs of very different size."""
    module: Any = seeded(Layers())
    generator = torch.Generator().manual_seed(3)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.weight.data *= torch.rand(layer.weight.shape, generator=generator) ** 3
    found: Layers = module
    return found


@pytest.fixture(scope="module")
def program() -> Program:
    return captured(uneven(), SIZE)


def planned(program: Program, profile: RuntimeProfile) -> Candidate:
    return Candidate(program, make_plan(program, synthetic_statistics(program.values), profile), program)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_scales_keep_the_rules_of_every_runtime(profile: RuntimeProfile, program: Program) -> None:
    given, chosen = planned(program, profile), WeightScales()
    assert chosen.requires(given) == ""
    made = chosen(given, IMAGES, Silent())
    assert chosen.ensures(given, made) == ""
    check_rules(made.plan, program, profile, Path("plan.json"))
    changed = [name for name, each in made.plan.tensors.items() if each != given.plan.tensors[name]]
    assert len(changed) > 2
    for name in changed:
        old, new = given.plan.tensors[name], made.plan.tensors[name]
        assert new.axis is not None
        assert [profile.stored(scale) for scale in new.scale] == list(new.scale)
        if old.rule == "derived":
            assert all(one >= other for one, other in zip(new.scale, old.scale, strict=True))
    own = [name for name in changed if given.plan.tensors[name].rule == "own"]
    pairs = [(made.plan.tensors[name].scale, given.plan.tensors[name].scale) for name in own]
    assert not own or min(new / old for each in pairs for new, old in zip(*each, strict=True)) < 0.99


def test_the_error_of_outputs_falls_where_inputs_are_large(program: Program) -> None:
    """Of the first layer, with torch's functions: its inputs are the pixels, which are integers already."""
    given = planned(program, OPENVINO)
    made = WeightScales()(given, IMAGES, Silent())
    weight, images = program.graph.parameter("first.weight"), torch.cat(list(batches(program, IMAGES)))

    def error(plan: QuantPlan) -> Tensor:
        """By output channel."""
        scale = torch.tensor(plan.tensors["first.weight"].scale).view(-1, 1, 1, 1)
        lost = weight - (weight / scale).round().clamp(-127, 127) * scale
        moments = images.square().mean(dim=(0, 2, 3))
        return (lost.square() * moments.view(1, -1, 1, 1)).sum(dim=(1, 2, 3))

    before, after = error(given.plan), error(made.plan)
    assert (after <= before * (1 + 1e-5)).all()
    assert float(after.sum()) < 0.9 * float(before.sum())
    best = torch.stack([error(scaled(given.plan, factor)) for factor in np.linspace(0.9, 1.1, 401)]).amin(dim=0)
    assert float(after.sum()) < 1.2 * float(best.sum())


def scaled(plan: QuantPlan, factor: float) -> QuantPlan:
    tensor = plan.tensors["first.weight"]
    scale = tuple(each * factor for each in tensor.scale)
    return replace(plan, tensors={**plan.tensors, "first.weight": replace(tensor, scale=scale)})


def test_each_weight_counts_as_much_as_its_own_input() -> None:
    """A depthwise layer and one of two groups, by torch's gradients."""
    moments = np.arange(1.0, 5.0)
    for shape, groups in (((4, 1, 3, 3), 4), ((6, 2, 1, 1), 2)):
        weight = torch.zeros(shape, requires_grad=True)
        # The slope of an output by a weight is what the weight meets: one pixel, of each channel its moment.
        given = torch.zeros(1, 4, 3, 3)
        given[0, :, 1, 1] = torch.from_numpy(moments)
        functional.conv2d(given, weight, groups=groups).sum().backward()
        assert weight.grad is not None
        found = _importance(moments, np.zeros(shape, np.float32)).reshape(*shape[:2], -1)
        np.testing.assert_allclose(found.max(axis=2), weight.grad.flatten(2).amax(dim=2).numpy())


def test_a_bias_still_fits_its_sums(program: Program) -> None:
    """Next to no weights: their scales follow from a bias that INT32 has to hold, and only grow."""
    module: Any = uneven()
    module.point.weight.data[3] *= 1e-9
    module.point.bias.data[3] = 50.0
    faint = captured(module, SIZE)
    given = planned(faint, TFLITE)
    assert given.plan.tensors["point.weight"].rule == "derived"
    made = WeightScales()(given, IMAGES, Silent())
    tensor, source = made.plan.tensors["point.weight"], faint.values["point_conv"].inputs[0]
    assert 50.0 / (tensor.scale[3] * made.plan.tensors[source].scale[0]) <= 2**30 * 1.01
    assert WeightScales().ensures(made, given).startswith("the scale of ")


@pytest.mark.parametrize(
    ("format", "precision", "runtime"),
    [
        ("tflite", "int8", "litert_torch"),
        ("openvino", "int8", "openvino"),
    ],
)
def test_files_obey_the_scales(format: str, precision: str, runtime: str, program: Program, tmp_path: Path) -> None:
    pytest.importorskip(runtime)
    from qexport.backends.registry import find_backend
    from qexport.steps.plan import make_target
    from qexport.verification.constants import check_biases
    from qexport.verification.verify import check_plan

    profile = make_target(format, precision).profile
    assert profile is not None
    made = WeightScales()(planned(program, replace(profile, float_stem=0.0)), IMAGES, Silent())
    backend = find_backend(format)
    path = tmp_path / f"a{backend.info.suffix}"
    backend.lower(lowering(program, precision, made.plan), path)
    stored = backend.read(path)
    assert check_plan(program, made.plan, stored) > 5
    assert check_biases(program, made.plan, stored) > 2 * bool(profile.integer_bias) - 1
