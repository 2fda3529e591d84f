"""Does a plan that was edited by hand keep the rules of its runtime? No backend could obey one that does not."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from qexport.errors import InputError
from qexport.planning.coverage import clamped_values
from qexport.planning.plan import QuantPlan
from qexport.planning.runtime_profiles import FixedScale, RuntimeProfile
from qexport.planning.sharing import scale_groups
from qexport.programs.program import MOVES_DATA, Program

PRESCRIBED_TOLERANCE = 1e-6
"""Relative, of scales that a kernel prescribes: float32's rounding."""


def check_rules(plan: QuantPlan, program: Program, profile: RuntimeProfile, path: Path) -> None:
    """Refuse a plan that breaks the rules of its runtime; `plan.check_plan` comes first.

    Args:
        path: where it was read from.

    Raises:
        InputError: with the first rule that is broken.
    """
    wrong = next(_broken(plan, program, profile), "")
    if wrong:
        raise InputError(f"{path} cannot be used for {profile.name}: {wrong}", "correct it, or plan without it")


def _broken(plan: QuantPlan, program: Program, profile: RuntimeProfile) -> Iterator[str]:
    if plan.integer_bias != bool(profile.integer_bias):
        yield f"integer_bias is {str(plan.integer_bias).lower()}, and has to be {str(not plan.integer_bias).lower()}"
    yield from _wrong_activations(plan, program, profile)
    foreign = [name for name in program.values if name in plan.integer and not _runs(program, profile, name)]
    yield from (f"{name} is a {program.values[name].operation}, which runs in floats" for name in foreign)
    if foreign or not profile.operations:
        return
    yield from _wrong_integers(plan, program, profile)
    yield from _wrong_weights(plan, program)
    yield from _wrong_scales(plan, program, profile)


def _runs(program: Program, profile: RuntimeProfile, name: str) -> bool:
    return program.values[name].operation in profile.operations


def _wrong_activations(plan: QuantPlan, program: Program, profile: RuntimeProfile) -> Iterator[str]:
    for name in program.values:
        tensor = plan.tensors[name]
        if tensor.is_float:
            continue
        if not profile.operations:
            yield f"{name} is {tensor.dtype}, and only weights are stored as integers"
        elif tensor.dtype != profile.activation.name:
            yield f"{name} is {tensor.dtype}, and activations are {profile.activation.name} or float32"
        elif profile.symmetric_activations and tensor.zero_point != (0,):
            yield f"{name} has a zero point of {tensor.zero_point[0]}, and activations have 0"


def _wrong_integers(plan: QuantPlan, program: Program, profile: RuntimeProfile) -> Iterator[str]:
    """Layers read integers, and what has integers is written or read by an operation that runs in them.

    Of what has no weights a float input is obeyed: it is computed in float, and what comes out becomes integers.
    """
    clamped = clamped_values(program, profile, plan.integer)
    read = {source for name in plan.integer for source in program.values[name].inputs}
    for name, value in program.values.items():
        if name in plan.integer:
            sources = value.inputs if value.weight else ()
            bare = next((each for each in sources if not _stored(plan, program, profile, each, clamped)), "")
            if bare:
                yield f"{name} is to run in integers, and reads {bare}, which is float32"
        elif plan.is_quantised(name) and name not in read:
            yield f"{name} is {plan.tensors[name].dtype}, and nothing that runs in integers writes or reads it"


def _stored(plan: QuantPlan, program: Program, profile: RuntimeProfile, name: str, clamped: frozenset[str]) -> bool:
    """Whether integers of a value are there to read; where pairs behind data movement are left out, from before it."""
    if plan.is_quantised(name) or name in clamped:
        return True
    value = program.values[name]
    moved = profile.no_qdq_after_data_movement and value.operation in MOVES_DATA and bool(value.inputs)
    return moved and all(_stored(plan, program, profile, source, clamped) for source in value.inputs)


def _wrong_weights(plan: QuantPlan, program: Program) -> Iterator[str]:
    used = {value.weight for name, value in program.values.items() if name in plan.integer}
    for value in program.values.values():
        if value.weight and value.weight not in used and plan.is_quantised(value.weight):
            yield f"{value.weight} is {plan.tensors[value.weight].dtype}, and {value.name} does not run in integers"


def _wrong_scales(plan: QuantPlan, program: Program, profile: RuntimeProfile) -> Iterator[str]:
    quantised = frozenset(name for name in program.values if plan.is_quantised(name))
    for name in sorted(quantised & plan.integer):
        rule, tensor = profile.operations[program.values[name].operation], plan.tensors[name]
        if isinstance(rule, FixedScale):
            near = math.isclose(tensor.scale[0], rule.scale, rel_tol=PRESCRIBED_TOLERANCE)
            if not near or tensor.zero_point[0] != rule.zero_point:
                yield f"its kernel gives {name} a scale of {rule.scale:g} and a zero point of {rule.zero_point}"
    touched = quantised | plan.integer | {each for name in plan.integer for each in program.values[name].inputs}
    for group in scale_groups(program, profile, plan.integer, frozenset(touched)):
        first, *others = [name for name in group if name in quantised] or [""]
        for name in others:
            one, other = plan.tensors[first], plan.tensors[name]
            if (one.scale, one.zero_point) != (other.scale, other.zero_point):
                yield f"{name} and {first} must share one scale, a kernel only moves their integers"
