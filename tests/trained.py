"""A candidate as a training might leave it, made by hand, and the checkpoint that keeps it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qexport.optimisation.candidate import Candidate
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.runtime_profiles import RuntimeProfile
from qexport.programs.program import Program
from qexport.training.qat_file import Learned, LearnedProfile, Provenance, learned_profile, save_qat
from qexport.training.recipe import Recipe
from qexport.training.record import EpochRecord, TrainingRecord

WIDER, FINER = 1.07, 0.9
"""What has become of activations' scales and of weights'."""


def trained(program: Program, plan: QuantPlan, profile: RuntimeProfile) -> Candidate:
    """Other scales, other weights that are whole multiples of theirs, and other biases than a plan's."""

    def learned(tensor: TensorQuant) -> TensorQuant:
        if tensor.is_float or tensor.rule in ("fixed", "derived"):
            return tensor
        factor = WIDER if tensor.axis is None else FINER
        return replace(tensor, scale=tuple(profile.stored(scale * factor) for scale in tensor.scale))

    tensors = {name: learned(tensor) for name, tensor in plan.tensors.items()}
    changed = {}
    for value in program.values.values():
        if not value.weight or tensors[value.weight].is_float:
            continue
        tensor, weight = tensors[value.weight], program.graph.parameter(value.weight)
        shape = [-1 if axis == tensor.axis else 1 for axis in range(weight.ndim)]
        scales = torch.tensor(tensor.scale).reshape(shape)
        changed[value.weight] = torch.clamp(torch.round(weight / scales * 0.98), -127, 127) * scales
        if value.bias:
            changed[value.bias] = program.graph.parameter(value.bias) + 0.01
    return Candidate(program, replace(plan, tensors=tensors), program).with_parameters(changed)


def record(profile: str) -> TrainingRecord:
    """What might be told of it."""
    epochs = (EpochRecord(1, 0.5, 0.04, None, {"weights": 0.02}, 3.0), EpochRecord(2, 0.25, 0.03, 0.9, {}, 3.0))
    return TrainingRecord(profile, epochs, 0.05, 2, "all epochs", 8, 4, Recipe(epochs=2), "cpu", 6.5)


def kept(path: Path, model: Path, fingerprint: str, *candidates: Candidate) -> tuple[LearnedProfile, ...]:
    """Write candidates into a checkpoint; return what is in it."""
    profiles = tuple(learned_profile(each, record(each.plan.profile)) for each in candidates)
    provenance = Provenance(model.name, fingerprint, "shapes.yaml", "qexport qat", {"torch": torch.__version__})
    save_qat(path, model, Learned(profiles, provenance))
    return profiles


def integers(candidate: Candidate) -> dict[str, bytes]:
    """Of every weight that has some."""
    found = {}
    for name, tensor in candidate.plan.tensors.items():
        if tensor.axis is not None:
            array = candidate.program.graph.parameter(name).numpy()
            shape = [-1 if axis == tensor.axis else 1 for axis in range(array.ndim)]
            found[name] = np.rint(array / np.array(tensor.scale, np.float32).reshape(shape)).astype(np.int32).tobytes()
    return found


def numbers(plan: QuantPlan) -> dict[str, tuple[object, ...]]:
    """What files depend on."""
    return {name: (each.dtype, each.scale, each.zero_point, each.axis) for name, each in plan.tensors.items()}
