"""A candidate of what was learned: for the runtime that it was learned for exactly, for another one from its ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from qexport.calibration.statistics import Statistics
from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate
from qexport.planning.arithmetic import TYPES
from qexport.planning.coverage import chosen_values, float_boxes, float_stem
from qexport.planning.given_plan import check_rules
from qexport.planning.learned_ranges import LearnedRanges, learned_ranges
from qexport.planning.plan import QuantPlan, check_plan
from qexport.planning.planner import make_plan
from qexport.planning.registry import DEFAULT_RANGES
from qexport.planning.runtime_profiles import RuntimeProfile
from qexport.planning.weights import weight_tensors
from qexport.programs.program import Program
from qexport.training.qat_file import REMEDY, Learned, LearnedProfile

ROUNDING = 1e-6
"""Relative, of scales: sums of two multiples of one are rounded to float32."""


def learned_candidate(
    learned: Learned,
    program: Program,
    profile: RuntimeProfile,
    path: Path,
    statistics: Mapping[str, Statistics] | None = None,
    ranges: str = DEFAULT_RANGES,
    float_values: Mapping[str, str] = {},
) -> tuple[Candidate, str]:
    """The program with the trained weights and a plan by the learned scales, and a note that says what came from where.

    Args:
        program: the float program, of any image size, batch and head; it becomes the reference.
        path: where `learned` was read from, for messages.
        statistics: of what was not learned, such as another head's values; None where there are none.
        ranges: name of the estimator for those.
        float_values: values whose operation is to stay float, with the reason.

    Raises:
        UnlearnedError: a value has neither a learned range nor statistics.
        InputError: it was learned for another model.
    """
    own = next((each for each in learned.profiles if each.plan.profile == profile.name), None)
    chosen = own or _nearest(learned, program, profile, float_values)
    trained = program.with_parameters(_fitting(chosen, program, path))
    source = f"learned in training for {chosen.plan.profile}"
    known = learned_ranges(chosen.plan, source)
    if own and not float_values and _is_of(own.plan, trained, profile, known):
        plan = replace(_told(own.plan, known), program=trained.fingerprint)
        check_plan(plan, trained, path)
        check_rules(plan, trained, profile, path)
        return Candidate(trained, plan, program), f"weights and scales were {source}"
    if own:
        float_values = {**_floats(own.plan, trained), **float_values}
    plan = make_plan(trained, statistics, profile, ranges, float_values, known)
    return Candidate(trained, plan, program), _note(plan, source, own is not None)


def _fitting(chosen: LearnedProfile, program: Program, path: Path) -> dict[str, Tensor]:
    """Trained parameters that the program has; those of another head are left out.

    Raises:
        InputError: none is, or one has another shape.
    """
    layers = [value for value in program.values.values() if value.weight]
    paths = {each for layer in layers for each in (layer.weight, layer.bias) if each}
    found = {name: tensor for name, tensor in chosen.parameters.items() if name in paths}
    wrong = next((name for name, tensor in found.items() if tensor.shape != program.graph.parameter(name).shape), "")
    weights = chosen.plan.tensors.keys() & {layer.weight for layer in layers}
    if wrong or not weights:
        what = f"{wrong} has another shape" if wrong else "none of its layers is here"
        raise InputError(f"what {path} has learned is of another model: {what}", REMEDY)
    return found


def _is_of(plan: QuantPlan, program: Program, profile: RuntimeProfile, known: LearnedRanges) -> bool:
    """Whether a plan decides what the program consists of, in weights and biases that the profile's kernels can add up.

    Those of another kind of CPU may not.
    """
    weights = {value.weight for value in program.values.values() if value.weight}
    if plan.tensors.keys() != program.values.keys() | weights:
        return False
    if profile.integer_bias and profile.no_qdq_after_data_movement:
        return False  # what moved integers are read in is not in the plan
    safe = weight_tensors(program, profile, plan.integer, plan.tensors, known)
    return all(np.allclose(safe[name].scale, plan.tensors[name].scale, rtol=ROUNDING, atol=0) for name in weights)


def _told(plan: QuantPlan, known: LearnedRanges) -> QuantPlan:
    """The plan, whose scales say where they are from."""
    tensors = dict(plan.tensors)
    for name, each in plan.tensors.items():
        if each.is_float or each.rule == "fixed":
            continue
        span = f": [{known.ranges[name][0]:.4g}, {known.ranges[name][1]:.4g}]" if name in known.ranges else ""
        tensors[name] = replace(each, why=f"{known.source}{span}")
    return replace(plan, tensors=tensors)


def _floats(plan: QuantPlan, program: Program) -> dict[str, str]:
    """What the learned plan computes in float, with its reasons."""
    return {
        name: plan.tensors[name].why for name in program.values if name in plan.tensors and name not in plan.integer
    }


def _nearest(
    learned: Learned, program: Program, profile: RuntimeProfile, float_values: Mapping[str, str]
) -> LearnedProfile:
    """The profile whose ranges leave out least of what another one needs; of several the one most like it."""
    floats = {*float_values, *float_boxes(program, profile), *float_stem(program, profile)}
    _, touched, _ = chosen_values(program, profile, floats)

    def strangeness(each: LearnedProfile) -> tuple[int, bool, bool, int]:
        known = learned_ranges(each.plan, "")
        levels = {TYPES[each.plan.tensors[name].dtype].levels for name in known.ranges}
        symmetric = all(low == -high for low, high in known.ranges.values())
        return (
            sum(bool(known.of(program, (name,))[1]) for name in touched),
            symmetric != profile.symmetric_activations,
            levels != {profile.activation.levels},
            len(known.ranges.keys() - touched),
        )

    return min(learned.profiles, key=strangeness)


def _note(plan: QuantPlan, source: str, own: bool) -> str:
    """What a report says of a plan that was made by learned ranges."""
    scaled = [each for each in plan.tensors.values() if not each.is_float and each.rule != "fixed"]
    count = sum(each.why.startswith(source) for each in scaled)
    rest = f", {len(scaled) - count} of {len(scaled)} scales were not learned and come from calibration"
    what = "weights and scales were" if own else f"no scales were learned for {plan.profile}: weights and ranges were"
    return f"{what} {source}{rest if count < len(scaled) else ''}"
