"""Pruned models: their zeros stay zeros down to the integers of files, and layers of other widths load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import demo_images, synthetic_statistics
from small_models import saved, small_model
from torch import Tensor, nn

import qexport
from qexport.backends.registry import find_backend
from qexport.calibration.calibrate import calibrate
from qexport.optimisation import reconstruction
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.learned import Learner
from qexport.optimisation.passes import broken
from qexport.optimisation.reconstruction import Reconstruction
from qexport.optimisation.registry import weight_pass
from qexport.optimisation.sparsity import MIN_SPARSITY, held_zeros
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.steps.lower import lower
from qexport.steps.plan import make_target

IMAGES = demo_images("train", 4)
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
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return qexport.read_model(saved(halved(small_model()), tmp_path_factory.mktemp("pruned") / "pruned.pt"), imgsz=64)


@pytest.mark.parametrize("name", ["onnx", "tflite"])
def test_a_pruned_model_keeps_its_pattern_in_the_integers_of_a_file(
    name: str, pruned: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every pass that changes weights, none of them judged."""
    monkeypatch.setattr(reconstruction, "STEPS", 2)
    monkeypatch.setattr(reconstruction, "RATE_OF_WEIGHTS", 2.0)  # whatever may move does
    target, program = make_target(name, "int8", "vnni"), pruned.program
    assert target.profile is not None
    plan = make_plan(program, calibrate(program, IMAGES[:2], lambda: None).statistics, target.profile)
    candidate = Candidate(program, plan, program)
    for each in map(weight_pass, PASSES):
        if not each.requires(candidate):
            candidate = each(candidate, IMAGES, Silent())
    assert candidate.program.fingerprint != program.fingerprint
    backend = find_backend(name)
    file = lower(
        replace(pruned, program=candidate.program), target, tmp_path / f"m{backend.info.suffix}", candidate.plan
    )
    stored = (each.integers for each in backend.read(file).tensors.values() if each.integers is not None)
    weights = [torch.from_numpy(each.astype(np.float32)) for each in stored if each.ndim == 4 and not each.shape[1] % 4]
    assert len(weights) > 15
    for weight in weights:
        taken = (weight.movedim(1, -1).reshape(-1, 4) != 0).sum(dim=1)
        assert int(taken.max()) == 2


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


@pytest.mark.parametrize("free", [True, False])
def test_training_leaves_zeros_of_pruned_weights_where_they_are(tiny: Program, free: bool) -> None:
    """Everything is moved by 0.7 steps."""
    weight = two_of_four(tiny.graph.parameter("neck.weight"))
    program = tiny.with_parameters({"neck.weight": weight})
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE)
    learner = Learner(Candidate(program, plan, program), free)
    with torch.no_grad():
        learner.weights["neck.weight"].steps.add_(0.7)
    learner.bound()
    found = learner.result().program.graph.parameter("neck.weight")
    assert not found[weight == 0].any()
    assert int((found != weight).sum()) > 32
