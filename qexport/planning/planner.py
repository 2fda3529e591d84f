"""Make a plan: program + calibration table + runtime profile → what every value becomes.

Four steps: which operations run in integers and which values that touches (`coverage`), which of those share a scale
(`sharing`), and which range each gets (`ranges`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from qexport.calibration.statistics import Statistics, together
from qexport.errors import InputError
from qexport.planning.coverage import chosen_values, clamped_values, float_boxes, float_stem
from qexport.planning.half_range import peaks_of, unfit_for_half
from qexport.planning.learned_ranges import LearnedRanges, UnlearnedError, least
from qexport.planning.mixing import mixed_raw_outputs, mixed_scale_concats
from qexport.planning.plan import PIXELS, PRESCRIBED, QuantPlan, Rule, TensorQuant
from qexport.planning.ranges import LOGIT_FLOOR, SILU_FLOOR, Range, RangeEstimator, above, minmax
from qexport.planning.registry import DEFAULT_RANGES, RANGES
from qexport.planning.runtime_profiles import RuntimeProfile
from qexport.planning.sharing import fixed_rule, moved_values, scale_groups
from qexport.planning.weighted_ranges import CheapestAtOutputs
from qexport.planning.weights import stored_weights, weight_tensors
from qexport.programs.program import INPUT, Program, Region, Value, has_constant_operand, observed_sources

FLOAT_BOXES = "raw boxes stay float: a step of INT8 is up to two pixels, and they are next to no arithmetic"
FLOAT_RAW = "raw outputs stay float: pixels may be among them, and they are next to no arithmetic"
FLOAT_AS_ASKED = "float as asked"
FLOAT_TORN = "stays float: scores and other outputs in one tensor must not share a scale"
EXACT = "coordinates, the choice of queries and normalisation stay float: steps cost more there than they save"
FLOAT_STEM = "the first convolution stays float: it is faster so, more exact, and next to no arithmetic"
FUSED = "computed by an integer kernel and kept inside it, or given as floats: no integer operation reads it"
FIXED_APART = "stays float: its kernel prescribes another scale than the values that it is joined with"
CLAMPED = "computed by its activation's kernel: the limits of the integers are the activation's"
ONLY_WEIGHTS = "only weights are integers"
MANY_LEVELS = 2**15
CLIP_MARGIN = 1 - 2**-20
"""ONNX Runtime leaves a clip out where the largest integer is not above its limit; a scale is rounded to float32."""


def make_plan(
    program: Program,
    statistics: Mapping[str, Statistics] | None,
    profile: RuntimeProfile,
    method: str = DEFAULT_RANGES,
    float_values: Mapping[str, str] = {},
    learned: LearnedRanges | None = None,
) -> QuantPlan:
    """Decide dtype, scale and zero point of every value and weight.

    Args:
        statistics: by value name, from `calibrate`; None where the profile has no integer arithmetic.
        method: name of a range estimator (`qexport.planning.registry`).
        float_values: values whose operation is to stay float, with the reason.
        learned: ranges and scales that go before the estimator's; statistics are needed of what they leave out only.

    Raises:
        InputError: there are no statistics, or none of a value that the plan needs.
        UsageError: no range estimator of that name.
    """
    if not profile.operations:
        return _plan_of_weights(program, profile, float_values)
    if statistics is None:
        if learned is None:
            raise InputError(f"a plan for {profile.name} needs statistics", "calibrate first")
        statistics = {}
    reasons = _reasons(program, profile, statistics)
    integer, touched, torn = chosen_values(program, profile, float_values.keys() | reasons.keys())
    reasons |= dict.fromkeys(torn, FIXED_APART)
    clamped = clamped_values(program, profile, integer)
    reasons = dict.fromkeys(clamped, CLAMPED) | reasons
    scales = _Scales(program, profile, statistics, method, RANGES.find(method), learned)
    tensors = _activations(scales, integer, touched, clamped)
    for value in program.values.values():
        if value.name not in tensors:
            why = reasons.get(value.name) or _why_float(value, profile, float_values)
            if profile.fused_activations and (value.name in integer or _feeds_only_silu_product(program, value)):
                why = FUSED
            tensors[value.name] = TensorQuant("float32", why=why)
    tensors.update(weight_tensors(program, profile, integer, tensors, learned))
    if profile.no_qdq_after_data_movement:
        tensors.update(moved_values(program, integer, tensors))
    ordered = {name: tensors[name] for name in _order(program) if name in tensors}
    return QuantPlan(profile.name, program.fingerprint, integer, ordered, bool(profile.integer_bias))


def _plan_of_weights(program: Program, profile: RuntimeProfile, float_values: Mapping[str, str]) -> QuantPlan:
    """A plan that stores weights as integers and leaves the arithmetic in float: it needs no data."""
    floats = {name: TensorQuant("float32", why=ONLY_WEIGHTS) for name in program.values}
    tensors = floats | stored_weights(program, profile, float_values)
    return QuantPlan(profile.name, program.fingerprint, frozenset(), tensors)


def _reasons(program: Program, profile: RuntimeProfile, statistics: Mapping[str, Statistics]) -> dict[str, str]:
    """Why values stay float that the profile has integer kernels for, by name."""
    found = dict.fromkeys(float_stem(program, profile), FLOAT_STEM)
    if profile.fp16_scales:
        found |= unfit_for_half(program, peaks_of(statistics))
    if program.guessed and statistics:
        found |= mixed_scale_concats(program, statistics)
        found |= dict.fromkeys(mixed_raw_outputs(program.values, program.raw.boxes), FLOAT_TORN)
    return found | dict.fromkeys(float_boxes(program, profile), FLOAT_RAW if program.guessed else FLOAT_BOXES)


def _activations(
    scales: _Scales, integer: frozenset[str], touched: frozenset[str], clamped: frozenset[str]
) -> dict[str, TensorQuant]:
    """Every value that is stored as integers."""
    program, profile = scales.program, scales.profile
    tensors: dict[str, TensorQuant] = {}
    for group in scale_groups(program, profile, integer, touched - clamped):
        tensors.update(scales.of(group))
    for name in clamped if not profile.fuses_relu_at_any_zero_point else ():
        # Values below zero that share the activation's scale move its zero point off the limit.
        if tensors[program.readers[name][0].name].zero_point[0] != profile.activation.low:
            tensors.update(scales.of((name,)))
    return tensors


@dataclass(frozen=True)
class _Scales:
    """How the values of a plan get their scales."""

    program: Program
    profile: RuntimeProfile
    statistics: Mapping[str, Statistics]
    method: str
    estimate: RangeEstimator
    learned: LearnedRanges | None = None

    def of(self, group: tuple[str, ...]) -> dict[str, TensorQuant]:
        """Values that must share one scale."""
        profile, fixed = self.profile, fixed_rule(self.program, self.profile, group)
        rule: Rule = "fixed"
        if fixed is not None:
            scale, zero_point, why = fixed.scale, fixed.zero_point, PRESCRIBED
        elif INPUT in group:
            return dict.fromkeys(group, _pixels(profile, *self.program.input.form.bounds))
        else:
            (low, high), why = self._chosen(group)
            scale, zero_point = profile.quantiser.parameters(low, high)
            rule = "shared" if len(group) > 1 else "own"
        label = group[0] if len(group) > 1 else ""
        why += f"; shared by {len(group)} values" if label else ""
        dtype, stored = profile.activation.name, profile.stored(scale)
        return dict.fromkeys(group, TensorQuant(dtype, (stored,), (zero_point,), group=label, why=why, rule=rule))

    def _chosen(self, group: tuple[str, ...]) -> tuple[Range, str]:
        """The range that integers are to span, and why: what was learned, and what is estimated of the rest."""
        program = self.program
        known, left = self.learned.of(program, group) if self.learned else (None, ())
        if self.learned is None or known is None:
            return self._range(group, dict.fromkeys(s for name in group for s in observed_sources(program, name)))
        (low, high), why = self._possible(known, group), self.learned.source
        if left:
            estimated, reason = self._range(group, left)
            low, high, why = min(low, estimated[0]), max(high, estimated[1]), f"{why}, and of {left[0]} {reason}"
        return (low, high), f"{why}: [{low:.4g}, {high:.4g}]"

    def _possible(self, known: Range, group: tuple[str, ...]) -> Range:
        """Of a symmetric range what can occur: an asymmetric quantiser needs no steps for the rest."""
        low, high = known
        if low != -high or self.profile.symmetric_activations:
            return known
        sources = dict.fromkeys(source for name in group for source in observed_sources(self.program, name))
        low = max(low, min(least(self.program, name) for name in sources))
        if self.statistics.keys() >= sources.keys():
            seen = minmax(together(self.statistics[name] for name in sources))
            low, high = max(low, seen[0]), min(high, seen[1])
        return min(low, 0.0), max(high, 0.0)

    def _range(self, group: tuple[str, ...], sources: Collection[str]) -> tuple[Range, str]:
        """The range that is estimated of a group's sources, and why."""
        program, names = self.program, set(group)
        missing = [name for name in sources if name not in self.statistics]
        if missing and self.learned:
            raise UnlearnedError(f"no range of {missing[0]} was learned", "give --data to calibrate what was not")
        if missing:
            raise InputError(f"the calibration table has no entry for {missing[0]}", "calibrate without --calibration")
        many = self.profile.activation.levels >= MANY_LEVELS  # levels need not be saved by leaving out flat tails
        merged = together(self.statistics[name] for name in sources)
        if names & {*program.raw.extras, program.raw.prototypes}:
            chosen, reason = minmax(merged), "minmax: what few anchors say of their mask or points must not be clipped"
        elif names & set(program.raw.boxes):
            chosen, reason = minmax(merged), "minmax: large boxes are rare and must not be clipped"
        elif names & set(program.raw.scores):
            chosen = minmax(merged) if many else above(minmax(merged), LOGIT_FLOOR)
            floor = "" if many else " above -8"
            reason = f"minmax{floor}: confident scores are rare and must not be clipped"
        elif not many and all(_feeds_only_silu(program, name) for name in group):
            chosen, reason = self._estimated(merged)
            chosen, reason = above(chosen, SILU_FLOOR), f"{reason} above SiLU's flat tail"
        else:
            chosen, reason = self._estimated(merged)
        if any(program.values[name].operation in ("clip", "relu6") for name in sources):
            chosen = chosen[0], chosen[1] * CLIP_MARGIN
        return chosen, f"{reason}: [{chosen[0]:.4g}, {chosen[1]:.4g}]"

    def _estimated(self, merged: Statistics) -> tuple[Range, str]:
        """What the estimator chooses, and its name; with the name of another whose choice that is."""
        quantiser, reason = self.profile.quantiser, self.method
        if isinstance(self.estimate, CheapestAtOutputs):
            winner, (low, high) = self.estimate.named(merged, quantiser)
            reason += f" ({winner})" if winner != self.method else ""
        else:
            low, high = self.estimate(merged, quantiser)
        if not -math.inf < low <= 0 <= high < math.inf:
            raise InputError(f"range estimator {self.method} gives [{low}, {high}]", "it has to be finite and hold 0")
        return (low, high), reason


def _pixels(profile: RuntimeProfile, low: float, high: float) -> TensorQuant:
    """The input: every pixel value is one step, where the type has 256 for it and channels are treated alike."""
    why = PIXELS + ("symmetric" if profile.symmetric_activations else "one step each")
    scale, zero_point = profile.quantiser.parameters(low, high)
    return TensorQuant(profile.activation.name, (profile.stored(scale),), (zero_point,), why=why, rule="fixed")


def _feeds_only_silu(program: Program, name: str) -> bool:
    readers = program.readers[name]
    gates = [r for r in readers if r.operation == "sigmoid"]
    return len(gates) == 1 and all(r is gates[0] or set(r.inputs) == {name, gates[0].name} for r in readers)


def _feeds_only_silu_product(program: Program, value: Value) -> bool:
    source = value.inputs[0] if value.operation == "sigmoid" and value.region is Region.BODY else ""
    return bool(source) and bool(program.values[source].weight) and _feeds_only_silu(program, source)


def _why_float(value: Value, profile: RuntimeProfile, float_values: Mapping[str, str]) -> str:
    if value.name in float_values:
        return float_values[value.name]
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
