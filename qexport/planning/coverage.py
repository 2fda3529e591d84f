"""What runs in integers: which operations, which values they touch, and which readers see integers."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from qexport.planning.plan import QuantPlan
from qexport.planning.runtime_profiles import OwnScale, RuntimeProfile, SharedScale
from qexport.planning.sharing import scale_groups, torn_values
from qexport.programs.naming import ACTIVATIONS
from qexport.programs.program import INPUT, Program, Region, has_constant_operand


def reads_integers(plan: QuantPlan, source: str, results: Iterable[str]) -> bool:
    """Whether what reads a quantised value sees its integers, not the exact value.

    Every reader does where an integer operation wrote the value, and of the input; of what a float operation wrote
    only those that compute in integers themselves.

    Args:
        results: the values that the reader computes; a split has several.
    """
    return source == INPUT or source in plan.integer or any(name in plan.integer for name in results)


def chosen_values(
    program: Program, profile: RuntimeProfile, float_values: Collection[str]
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Values whose operation runs in integers, values that are stored as integers, and what stays float for others.

    The last are values whose kernel prescribes a scale, where something else has to share it.
    """
    integer, touched = _chosen(program, profile, float_values)
    torn = frozenset(
        name
        for group in scale_groups(program, profile, integer, touched)
        for name in torn_values(program, profile, group)
    )
    return (*_chosen(program, profile, {*float_values, *torn}), torn) if torn else (integer, touched, torn)


def _chosen(
    program: Program, profile: RuntimeProfile, float_values: Collection[str]
) -> tuple[frozenset[str], frozenset[str]]:
    if profile.fused_activations:
        return demanded_values(program, profile, float_values)
    integer = integer_values(program, profile, float_values)
    return integer, quantised_values(program, integer)


def clamped_values(program: Program, profile: RuntimeProfile, integer: frozenset[str]) -> frozenset[str]:
    """Integer values that nothing but an activation reads that is computed by the limits of its integers."""
    return frozenset(
        name
        for name, readers in program.readers.items()
        if name in integer and isinstance(profile.operations[program.values[name].operation], OwnScale)
        if len(readers) == 1 and readers[0].operation in profile.clamps and readers[0].name in integer
    )


def demanded_values(
    program: Program, profile: RuntimeProfile, float_values: Collection[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """The same for runtimes whose convolutions take integers and give what is wanted of them.

    Goes from the outputs to the input: convolutions want their inputs as integers; what only moves data, and sums,
    hand that wish on; a SiLU whose product is wanted belongs to its convolution's kernel.
    What a float layer reads, too, is computed in float: of a layer's input and weight both are quantised or neither.
    """
    integer: set[str] = set()
    wanted: set[str] = set()
    for value in reversed(program.values.values()):
        rule = profile.operations.get(value.operation)
        if rule is None or value.region is not Region.BODY or value.name in float_values or has_constant_operand(value):
            continue
        shared = any(reader.weight and reader.name not in integer for reader in program.readers[value.name])
        if shared and not value.weight:
            continue
        hands_on = isinstance(rule, SharedScale) or value.operation == "add"
        if value.weight or (value.name in wanted and hands_on):
            integer.add(value.name)
            wanted.update(value.inputs)
        elif value.name in wanted:
            integer.add(value.name)
    return frozenset(integer), frozenset(wanted)


def integer_values(program: Program, profile: RuntimeProfile, float_values: Collection[str]) -> frozenset[str]:
    """Names of the values whose operation runs in integers.

    An operation that only moves data does so where what it moves is already quantised.
    """
    integer: set[str] = set()
    stored: set[str] = {INPUT}
    for value in program.values.values():
        rule = profile.operations.get(value.operation)
        if rule is None or value.region is not Region.BODY or value.name in float_values:
            continue
        if has_constant_operand(value) and not (profile.constants and value.operation == "mul"):
            continue
        moves = isinstance(rule, SharedScale) and value.operation != "cat"
        if not moves or all(name in stored for name in value.inputs):
            integer.add(value.name)
            stored.add(value.name)
    return frozenset(integer)


def float_boxes(program: Program, profile: RuntimeProfile) -> frozenset[str]:
    """Names of the raw boxes, and of raw coefficients, keypoints or angles, if they are cheap enough in float."""
    boxes = frozenset(program.raw.boxes)
    extras = frozenset(program.raw.extras)
    groups = ((boxes, profile.float_boxes), (extras, profile.float_extras))
    return frozenset(name for names, most in groups if _share(program, names) <= most for name in names)


def float_stem(program: Program, profile: RuntimeProfile) -> frozenset[str]:
    """Names of what reads the input and of its activations, if they are cheap enough to compute in float."""
    stem = {value.name for value in program.readers[INPUT] if value.weight}
    for value in program.values.values():
        if value.operation in (*ACTIVATIONS, "mul") and value.inputs and set(value.inputs) <= stem:
            stem.add(value.name)
    return frozenset(stem) if _share(program, frozenset(stem)) <= profile.float_stem else frozenset()


def _share(program: Program, names: frozenset[str]) -> float:
    """Part of all multiply-accumulates that is spent on `names`."""
    total = sum(value.macs for value in program.values.values())
    return sum(program.values[name].macs for name in names) / max(total, 1)


def quantised_values(program: Program, integer: frozenset[str]) -> frozenset[str]:
    """Values that integer operations write or read: the ones that need a scale."""
    read = {name for value in program.values.values() if value.name in integer for name in value.inputs}
    return frozenset(integer | read)
