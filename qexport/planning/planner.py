"""Make a plan: program + calibration table + runtime profile → what every value becomes.

Four steps, each a function: which operations run in integers, which values that touches, which of those share a
scale, and which range each gets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from qexport.calibration.statistics import Statistics, merge
from qexport.errors import InputError
from qexport.planning.half_range import peaks_of, unfit_for_half
from qexport.planning.mixing import mixed_raw_outputs, mixed_scale_concats
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.profile import FixedScale, OwnScale, RuntimeProfile, SharedScale
from qexport.planning.ranges import (
    LOGIT_FLOOR,
    SILU_FLOOR,
    Range,
    RangeEstimator,
    above,
    least_error,
    minmax,
    percentile,
)
from qexport.planning.weights import weight_tensors
from qexport.programs.naming import ACTIVATIONS
from qexport.programs.program import INPUT, MOVES_DATA, Program, Region, Value, has_constant_operand, observed_sources

FLOAT_BOXES = "raw boxes stay float: a step of INT8 is up to two pixels, and they are next to no arithmetic"
FLOAT_RAW = "raw outputs stay float: pixels may be among them, and they are next to no arithmetic"
FLOAT_AS_ASKED = "float as asked"
FLOAT_TORN = "stays float: scores and other outputs in one tensor must not share a scale"
EXACT = "coordinates, the choice of queries and normalisation stay float: steps cost more there than they save"
FLOAT_STEM = "the first convolution stays float: it is faster so, more exact, and next to no arithmetic"
FUSED = "computed by an integer kernel and kept inside it, or given as floats: no integer operation reads it"
FIXED_APART = "stays float: its kernel prescribes another scale than the values that it is joined with"
CLAMPED = "computed by its activation's kernel: the limits of the integers are the activation's"
MOVED = "moves integers of one scale: the pairs in front of it are enough"
MANY_LEVELS = 2**15
CLIP_MARGIN = 1 - 2**-20
"""ONNX Runtime leaves a clip out where the largest integer is not above its limit; a scale is rounded to float32."""


@dataclass(frozen=True)
class RangeChoice:
    """How ranges are chosen: by what function of `qexport.planning.ranges`."""

    name: str
    estimate: RangeEstimator


METHODS: Mapping[str, RangeChoice] = {
    choice.name: choice
    for choice in (
        RangeChoice("minmax", lambda statistics, _: minmax(statistics)),
        RangeChoice("percentile", lambda statistics, _: percentile(statistics)),
        RangeChoice("mse", least_error),
    )
}


def make_plan(
    program: Program,
    statistics: Mapping[str, Statistics],
    profile: RuntimeProfile,
    method: str = "percentile",
    float_values: frozenset[str] = frozenset(),
) -> QuantPlan:
    """Decide dtype, scale and zero point of every value and weight.

    Args:
        statistics: by value name, from `calibrate`.
        method: entry of `METHODS`.
        float_values: values whose operation the user wants in float.

    Raises:
        InputError: the table lacks a value that the plan needs.
    """
    reasons = _reasons(program, profile, statistics)
    integer, touched, torn = chosen_values(program, profile, float_values | reasons.keys())
    reasons |= dict.fromkeys(torn, FIXED_APART)
    clamped = clamped_values(program, profile, integer)
    touched -= clamped
    groups = scale_groups(program, profile, integer, touched)
    choice = METHODS[method]
    tensors: dict[str, TensorQuant] = {}
    for group in groups:
        tensors.update(_group_tensors(program, profile, statistics, choice, group))
    for name in clamped if not profile.fuses_relu_at_any_zero_point else ():
        # Values below zero that share the activation's scale move its zero point off the limit.
        if tensors[program.readers[name][0].name].zero_point[0] != profile.activation.low:
            tensors.update(_group_tensors(program, profile, statistics, choice, (name,)))
    for value in program.values.values():
        if value.name not in tensors:
            why = CLAMPED if value.name in clamped else _why_float(value, profile, float_values)
            why = reasons.get(value.name, why)
            if profile.fused_activations and (value.name in integer or _feeds_only_silu_product(program, value)):
                why = FUSED
            tensors[value.name] = TensorQuant("float32", why=why)
    tensors.update(weight_tensors(program, profile, integer, tensors))
    if profile.no_qdq_after_data_movement:
        tensors.update(_no_qdq_after_data_movement(program, integer, tensors))
    ordered = {name: tensors[name] for name in _order(program) if name in tensors}
    return QuantPlan(profile.name, program.fingerprint, integer, ordered, bool(profile.integer_bias))


def _reasons(program: Program, profile: RuntimeProfile, statistics: Mapping[str, Statistics]) -> dict[str, str]:
    """Why values stay float that the profile has integer kernels for, by name."""
    found = dict.fromkeys(float_stem(program, profile), FLOAT_STEM)
    if profile.fp16_scales:
        found |= unfit_for_half(program, peaks_of(statistics))
    if program.guessed:
        found |= mixed_scale_concats(program, statistics)
        found |= dict.fromkeys(mixed_raw_outputs(program.values, program.raw.boxes), FLOAT_TORN)
    return found | dict.fromkeys(float_boxes(program, profile), FLOAT_RAW if program.guessed else FLOAT_BOXES)


def clamped_values(program: Program, profile: RuntimeProfile, integer: frozenset[str]) -> frozenset[str]:
    """Integer values that nothing but an activation reads that is computed by the limits of its integers."""
    return frozenset(
        name
        for name, readers in program.readers.items()
        if name in integer and isinstance(profile.operations[program.values[name].operation], OwnScale)
        if len(readers) == 1 and readers[0].operation in profile.clamps and readers[0].name in integer
    )


def chosen_values(
    program: Program, profile: RuntimeProfile, float_values: frozenset[str]
) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
    """Values whose operation runs in integers, values that are stored as integers, and what stays float for others.

    The last are values whose kernel prescribes a scale, where something else has to share it.
    """
    integer, touched = _chosen(program, profile, float_values)
    torn = frozenset(
        name
        for group in scale_groups(program, profile, integer, touched)
        for name in _mixed_raw_outputs(program, profile, group)
    )
    return (*_chosen(program, profile, float_values | torn), torn) if torn else (integer, touched, torn)


def _chosen(
    program: Program, profile: RuntimeProfile, float_values: frozenset[str]
) -> tuple[frozenset[str], frozenset[str]]:
    if profile.fused_activations:
        return demanded_values(program, profile, float_values)
    integer = integer_values(program, profile, float_values)
    return integer, quantised_values(program, integer)


def _mixed_raw_outputs(program: Program, profile: RuntimeProfile, group: tuple[str, ...]) -> tuple[str, ...]:
    """Values of a group whose kernel prescribes their scale, if the group holds others that want their own."""
    rules = {name: profile.operations.get(program.values[name].operation) for name in group}
    fixed = {rule for rule in rules.values() if isinstance(rule, FixedScale)}
    others = any(not isinstance(rule, FixedScale | SharedScale) for rule in rules.values())
    return tuple(name for name, rule in rules.items() if rule in fixed) if others or len(fixed) > 1 else ()


def demanded_values(
    program: Program, profile: RuntimeProfile, float_values: frozenset[str]
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


def integer_values(program: Program, profile: RuntimeProfile, float_values: frozenset[str]) -> frozenset[str]:
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


def scale_groups(
    program: Program, profile: RuntimeProfile, integer: frozenset[str], touched: frozenset[str]
) -> list[tuple[str, ...]]:
    """Partition `touched` into sets that must share a scale, each in order of computation."""
    parent = {name: name for name in touched}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for value in program.values.values():
        if value.name in integer and isinstance(profile.operations[value.operation], SharedScale):
            for source in value.inputs:
                parent[root(source)] = root(value.name)
    for levels in _joined(program, profile):
        for name in touched.intersection(levels):
            parent[root(name)] = root(next(level for level in levels if level in touched))
    groups: dict[str, list[str]] = {}
    for name in program.values:
        if name in touched:
            groups.setdefault(root(name), []).append(name)
    return [tuple(group) for group in groups.values()]


def _joined(program: Program, profile: RuntimeProfile) -> tuple[tuple[str, ...], ...]:
    """Raw outputs of all levels that a converter joins before they are floats again."""
    return (program.raw.boxes, program.raw.scores, program.raw.extras) if profile.levels_share_scale else ()


def _group_tensors(
    program: Program,
    profile: RuntimeProfile,
    statistics: Mapping[str, Statistics],
    choice: RangeChoice,
    group: tuple[str, ...],
) -> dict[str, TensorQuant]:
    fixed = _fixed_rule(program, profile, group)
    if fixed is not None:
        scale, zero_point, why = fixed.scale, fixed.zero_point, "scale prescribed by the kernel"
    elif INPUT in group:
        return dict.fromkeys(group, _pixels(profile, *program.input.form.bounds))
    else:
        (low, high), why = _group_range(program, profile, statistics, choice, group)
        scale, zero_point = profile.quantiser.parameters(low, high)
    label = group[0] if len(group) > 1 else ""
    shared = f"; shared by {len(group)} values" if label else ""
    tensor = TensorQuant(profile.activation.name, (profile.stored(scale),), (zero_point,), None, label, why + shared)
    return dict.fromkeys(group, tensor)


def _no_qdq_after_data_movement(
    program: Program, integer: frozenset[str], tensors: Mapping[str, TensorQuant]
) -> dict[str, TensorQuant]:
    """Values that only move elements that are integers of one scale already: their inputs' pairs are enough.

    Constants that are joined with them are floats: integers come from a pair behind.
    """
    bare: dict[str, TensorQuant] = {}
    for value in program.values.values():
        moved = value.name in integer and value.operation in MOVES_DATA and not tensors[value.name].is_float
        if (
            moved
            and not value.constants
            and all(source in bare or not tensors[source].is_float for source in value.inputs)
        ):
            bare[value.name] = TensorQuant("float32", group=tensors[value.name].group, why=MOVED)
    return bare


def _pixels(profile: RuntimeProfile, low: float, high: float) -> TensorQuant:
    """The input: every pixel value is one step, where the type has 256 for it and channels are treated alike."""
    why = "pixels: symmetric" if profile.symmetric_activations else "pixels: one step each"
    scale, zero_point = profile.quantiser.parameters(low, high)
    return TensorQuant(profile.activation.name, (profile.stored(scale),), (zero_point,), why=why)


def _fixed_rule(program: Program, profile: RuntimeProfile, group: tuple[str, ...]) -> FixedScale | None:
    if _mixed_raw_outputs(program, profile, group):
        return None
    rules = (profile.operations.get(program.values[name].operation) for name in group)
    return next((rule for rule in rules if isinstance(rule, FixedScale)), None)


def _group_range(
    program: Program,
    profile: RuntimeProfile,
    statistics: Mapping[str, Statistics],
    choice: RangeChoice,
    group: tuple[str, ...],
) -> tuple[Range, str]:
    sources = dict.fromkeys(source for name in group for source in observed_sources(program, name))
    missing = [name for name in sources if name not in statistics]
    if missing:
        raise InputError(f"the calibration table has no entry for {missing[0]}", "calibrate without --calibration")
    many = profile.activation.levels >= MANY_LEVELS  # levels need not be saved by leaving out flat tails
    merged = merge(statistics[name] for name in sources)
    if set(group) & {*program.raw.extras, program.raw.prototypes}:
        chosen, reason = minmax(merged), "minmax: what few anchors say of their mask or points must not be clipped"
    elif set(group) & set(program.raw.boxes):
        chosen, reason = minmax(merged), "minmax: large boxes are rare and must not be clipped"
    elif set(group) & set(program.raw.scores):
        chosen = minmax(merged) if many else above(minmax(merged), LOGIT_FLOOR)
        floor = "" if many else " above -8"
        reason = f"minmax{floor}: confident scores are rare and must not be clipped"
    elif not many and all(_feeds_only_silu(program, name) for name in group):
        chosen, reason = (
            above(choice.estimate(merged, profile.quantiser), SILU_FLOOR),
            f"{choice.name} above SiLU's flat tail",
        )
    else:
        chosen, reason = choice.estimate(merged, profile.quantiser), choice.name
    if any(program.values[name].operation in ("clip", "relu6") for name in sources):
        chosen = chosen[0], chosen[1] * CLIP_MARGIN
    return chosen, f"{reason}: [{chosen[0]:.4g}, {chosen[1]:.4g}]"


def _feeds_only_silu(program: Program, name: str) -> bool:
    readers = program.readers[name]
    gates = [r for r in readers if r.operation == "sigmoid"]
    return len(gates) == 1 and all(r is gates[0] or set(r.inputs) == {name, gates[0].name} for r in readers)


def _feeds_only_silu_product(program: Program, value: Value) -> bool:
    source = value.inputs[0] if value.operation == "sigmoid" and value.region is Region.BODY else ""
    return bool(source) and bool(program.values[source].weight) and _feeds_only_silu(program, source)


def _why_float(value: Value, profile: RuntimeProfile, float_values: frozenset[str]) -> str:
    if value.name in float_values:
        return FLOAT_AS_ASKED
    if value.region is Region.DECODE:
        return "decode stays float: pixels and scores must not share a scale"
    if value.region is Region.EXACT:
        return EXACT
    if value.operation in profile.kept_float:
        return profile.kept_float[value.operation]
    if has_constant_operand(value) or value.operation in profile.operations:
        return "between float operations"
    return f"{profile.name} has no integer kernel for {value.operation}"


def _order(program: Program) -> Iterator[str]:
    for value in program.values.values():
        if value.weight:
            yield value.weight
        yield value.name
