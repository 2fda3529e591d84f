"""Pruned models: their zeros stay zeros down to the integers of files, and layers of other widths load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import demo_checkpoint, demo_images, synthetic_statistics
from small_models import saved, small_model
from torch import Tensor, nn

import qexport
from qexport.backends.registry import find_backend
from qexport.calibration.calibrate import calibrate
from qexport.optimisation import reconstruction
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.passes import broken
from qexport.optimisation.reconstruction import Reconstruction
from qexport.optimisation.registry import weight_pass
from qexport.optimisation.sparsity import MIN_SPARSITY, held_zeros, sparsity
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.build import Source
from qexport.programs.capture import capture
from qexport.programs.heads import split_head
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.steps.lower import lower
from qexport.steps.plan import make_target

IMAGES = demo_images("train", 4)
SIZE = (64, 64)
PASSES = ("equalisation", "weight-scales", "adaptive-rounding", "reconstruction", "bias-correction")


def two_of_four(weight: Tensor) -> Tensor:
    """The weight without the smaller two of every four neighbouring input channels."""
    fours = weight.movedim(1, -1).reshape(-1, 4)
    small = fours.abs().argsort(dim=1)[:, :2]
    moved = weight.movedim(1, -1).shape
    return fours.scatter(1, small, 0.0).reshape(moved).movedim(-1, 1).contiguous()


def halved(module: nn.Module) -> nn.Module:
    """Every convolution whose input channels come in fours, pruned two of four."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.weight.shape[1] % 4 == 0:
            layer.weight.data = two_of_four(layer.weight.data)
    return module


@pytest.fixture(scope="module")
def pruned() -> Program:
    return capture(split_head(halved(demo_checkpoint().module), "end2end", SIZE), SIZE)


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_a_pruned_model_keeps_its_pattern_in_the_integers_of_a_file(
    name: str, pruned: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass that changes weights, none of them judged."""
    monkeypatch.setattr(reconstruction, "STEPS", 2)
    monkeypatch.setattr(reconstruction, "RATE_OF_WEIGHTS", 2.0)  # whatever may move does
    target = make_target(name, "int8", "vnni")
    assert target.profile is not None
    plan = make_plan(pruned, calibrate(pruned, IMAGES[:2], lambda: None).statistics, target.profile)
    candidate = Candidate(pruned, plan, pruned)
    for each in map(weight_pass, PASSES):
        if not each.requires(candidate):
            candidate = each(candidate, IMAGES, Silent())
    source = Source(demo_checkpoint(), candidate.program)
    file = lower(source, target, tmp_path / f"pruned{find_backend(name).info.suffix}", candidate.plan)
    stored = find_backend(name).read(file).tensors
    seen = 0
    for value in pruned.values.values():
        weight = pruned.graph.parameter(value.weight) if value.weight else torch.zeros(0)
        if value.weight in stored and stored[value.weight].integers is not None and weight.shape[1] % 4 == 0:
            integers = torch.from_numpy(np.array(stored[value.weight].integers, np.float32))
            fours = integers.movedim(1, -1).reshape(-1, 4)
            assert int((fours != 0).sum(dim=1).max()) <= 2, value.weight
            assert not torch.equal(integers, torch.zeros_like(integers))
            seen += 1
    assert seen > 50


def test_zeros_of_a_pruned_weight_are_filled_only_where_that_is_asked_for(tiny: Program) -> None:
    weight = tiny.graph.parameter("neck.weight")
    program = tiny.with_parameters({"neck.weight": two_of_four(weight)})
    given = Candidate(program, make_plan(program, synthetic_statistics(program.values), TFLITE), program)
    zeros = two_of_four(weight) == 0
    kept = Reconstruction()(given, IMAGES, Silent())
    filled = Reconstruction()(replace(given, densify=True), IMAGES, Silent())
    assert not kept.program.graph.parameter("neck.weight")[zeros].any()
    assert filled.program.graph.parameter("neck.weight")[zeros].any()
    assert broken(given, kept) == broken(replace(given, densify=True), filled) == ""
    assert broken(given, replace(filled, densify=False)) == "zeros of neck.weight, which is pruned, are gone"


def test_what_counts_as_pruned_is_said_by_the_float_weight(tiny: Program) -> None:
    """64 of 128 numbers are zeros, 38 of them are too few; what a pass has made 0 is nothing that has to stay."""
    assert MIN_SPARSITY == 0.3
    weight = tiny.graph.parameter("neck.weight")
    few = weight.clone()
    few.view(-1)[:38] = 0
    for changed, held in ((two_of_four(weight), 64), (few, None)):
        program = tiny.with_parameters({"neck.weight": changed})
        candidate = Candidate(program, make_plan(program, synthetic_statistics(program.values), TFLITE), program)
        zeros = held_zeros(candidate, "neck.weight")
        assert (None if zeros is None else int(zeros.sum())) == held
    rounded = Candidate(tiny, make_plan(tiny, synthetic_statistics(tiny.values), TFLITE), tiny).with_parameters(
        {"neck.weight": torch.zeros_like(weight)}
    )
    assert held_zeros(rounded, "neck.weight") is None
    total = sum(tiny.graph.parameter(f"{name}.weight").numel() for name in ("stem", "left", "deep", "neck", "box", "cls"))
    assert sparsity(rounded.program) == pytest.approx(weight.numel() / total)


def test_a_model_with_fewer_channels_than_its_yaml_says_is_exported(tmp_path: Path) -> None:
    """Channels 1, 4 and 6 of the first layer are cut out, and what the second one read of them."""
    model = small_model()
    left = torch.tensor([0, 2, 3, 5, 7])
    first, second = model.model[0], model.model[1]
    first.conv.weight.data, first.conv.out_channels = first.conv.weight.data[left], len(left)
    second.conv.weight.data, second.conv.in_channels = second.conv.weight.data[:, left], len(left)
    bn = first.bn
    bn.weight.data, bn.bias.data, bn.num_features = bn.weight.data[left], bn.bias.data[left], len(left)
    bn.running_mean, bn.running_var = bn.running_mean[left], bn.running_var[left]
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(image)[0]
    source = qexport.read_model(saved(model, tmp_path / "pruned.pt"), imgsz=64)
    assert source.program.graph.parameter("model.0.conv.weight").shape[0] == 5
    assert torch.allclose(source.program.graph(image), expected, atol=1e-3)
