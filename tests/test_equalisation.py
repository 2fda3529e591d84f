"""Factors that move from layer to layer: the float function stays, and what is between layers has even channels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TinyDecode, captured, demo_images, seeded
from hard_numbers import SIZE, picture, seen
from torch import Tensor, nn
from torch.nn import functional

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.equalisation import Equalisation
from qexport.optimisation.passes import optimise
from qexport.planning.given_plan import check_rules
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import (
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TFLITE,
    TFLITE_INT16,
    RuntimeProfile,
    for_saturating_cpus,
)
from qexport.programs.program import Program
from qexport.progress import Silent

Activation = Callable[[Tensor], Tensor]
IMAGES = demo_images("train", 8)


class Rectified(nn.Module):
    """Full, depthwise, grouped and transposed layers, ReLU, LeakyReLU and pooling, at last two readers of one value."""

    def __init__(self, activation: Activation | None) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped, self.up = nn.Conv2d(8, 8, 1, groups=2), nn.ConvTranspose2d(8, 8, 2, 2)
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        self.decode = TinyDecode()
        self.relu, self.leaky = activation or torch.relu, activation or (lambda real: functional.leaky_relu(real, 0.1))

    def forward(self, images: Tensor) -> Tensor:
        deep = self.leaky(self.deep(self.relu(self.first(images))))
        pooled = functional.max_pool2d(self.relu(self.grouped(deep)), 2)
        up = self.relu(self.up(pooled))
        decoded: Tensor = self.decode(self.box(up), self.cls(up))
        return decoded


def uneven(activation: Activation | None = None) -> Program:
    """Channels that differ by a factor of up to a thousand, which the layers behind undo."""
    module: Any = seeded(Rectified(activation))
    factors = torch.logspace(-1.5, 1.5, 8)
    for one, other in (("first", "deep"), ("up", "box")):
        getattr(module, one).weight.data *= factors.view(-1, 1, 1, 1) if one == "first" else factors.view(1, -1, 1, 1)
        getattr(module, one).bias.data *= factors
        shape = (-1, 1, 1, 1) if other == "deep" else (1, -1, 1, 1)
        getattr(module, other).weight.data /= factors.view(shape)
    module.cls.weight.data /= factors.view(1, -1, 1, 1)
    return captured(module, SIZE)


def planned(program: Program, profile: RuntimeProfile) -> Candidate:
    return Candidate(program, make_plan(program, seen(program, 4), profile), program)


@pytest.mark.parametrize(
    "profile",
    [TFLITE, TFLITE_INT16, replace(ONNXRUNTIME, float_stem=0.0), for_saturating_cpus(ONNXRUNTIME), OPENVINO, TENSORRT],
    ids=lambda profile: profile.name,
)
def test_the_float_function_stays_and_plans_keep_their_rules(profile: RuntimeProfile) -> None:
    given, equal = planned(uneven(), replace(profile, float_boxes=0.0)), Equalisation()
    assert equal.requires(given) == ""
    made = equal(given, IMAGES[:2], Silent())
    assert equal.ensures(given, made) == ""
    for number in range(2):
        torch.testing.assert_close(
            made.program.graph(picture(number)), given.program.graph(picture(number)), rtol=1e-5, atol=1e-5
        )
    check_rules(made.plan, made.program, profile, Path("plan.json"))
    for name, tensor in made.plan.tensors.items():
        assert [profile.stored(scale) for scale in tensor.scale] == list(tensor.scale), name
    assert len([name for name, each in made.plan.tensors.items() if each != given.plan.tensors[name]]) > 5


def test_ranges_of_weights_are_equal_on_both_sides() -> None:
    """A depthwise layer reads one channel with each filter; two layers read the last value."""
    made = Equalisation()(planned(uneven(), OPENVINO), IMAGES[:2], Silent()).program.graph
    written, read = made.parameter("first.weight"), made.parameter("deep.weight")
    torch.testing.assert_close(written.abs().amax(dim=(1, 2, 3)), read.abs().amax(dim=(1, 2, 3)), rtol=0.02, atol=0)
    readers = torch.stack([made.parameter(f"{name}.weight").abs().amax(dim=(0, 2, 3)) for name in ("box", "cls")])
    written = made.parameter("up.weight").abs().amax(dim=(0, 2, 3))
    torch.testing.assert_close(written, readers.amax(dim=0), rtol=0.02, atol=0)


def test_it_brings_a_program_with_uneven_channels_nearer() -> None:
    made, (record,) = optimise(planned(uneven(), TFLITE), (Equalisation(),), IMAGES, Silent())
    assert record.kept, record.reason
    assert record.after is not None
    assert record.before is not None
    assert record.after < 0.7 * record.before
    assert made.reference.fingerprint == made.program.origin


@pytest.mark.parametrize("activation", [functional.silu, functional.relu6, torch.sigmoid])
def test_other_activations_do_not_allow_it(activation: Activation) -> None:
    given = planned(uneven(activation), TFLITE)
    made, (record,) = optimise(given, (Equalisation(),), IMAGES, Silent())
    assert made is given
    assert record.reason.startswith("not run: no pair of layers has nothing but ReLU")
