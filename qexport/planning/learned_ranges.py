"""Ranges that a training has learned: they take the place of what an estimator would choose from statistics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from qexport.errors import InputError
from qexport.planning.arithmetic import TYPES, IntegerType
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.ranges import Range
from qexport.programs.program import INPUT, Program, observed_sources

LEAST = {
    **dict.fromkeys(("relu", "relu6", "sigmoid", "softmax"), 0.0),
    "relu_n1_to_1": -1.0,
    "hardswish": -0.375,
    "gelu": -0.17,
}
"""The least that an operation can give, rounded down; SiLU's is a product's, see `least`."""
SILU_LEAST = -0.2785


class UnlearnedError(InputError):
    """A value that a plan needs has neither a learned range nor statistics."""


@dataclass(frozen=True)
class LearnedRanges:
    """What integers shall span, known before any image is calibrated with.

    Attributes:
        ranges: of values by name, low <= 0 <= high as real numbers; values that are missing are calibrated. One with
            low == -high may come from a symmetric quantiser: an asymmetric one leaves out what cannot occur below.
        weights: scales of a weight along its channel axis (`WEIGHT_AXIS`) for INT8_NARROW, by path; what is missing
            spans the weight's own extremes.
        source: where they are from as plans say it, such as "learned in training for tflite".
    """

    ranges: Mapping[str, Range]
    weights: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    source: str = "learned in training"

    def of(self, program: Program, group: Iterable[str]) -> tuple[Range | None, tuple[str, ...]]:
        """The range that a group's values have together, None where nothing is known, and the sources it leaves out.

        A value is known by its own range, by those of all that it is moved or gathered from, or by that of something
        in its group that holds its elements.
        """
        sources = {name: observed_sources(program, name) for name in group}
        every = dict.fromkeys((*sources, *(each for moved in sources.values() for each in moved)))
        known = {name: self.ranges[name] for name in every if name in self.ranges}
        covered = {*known, *(each for name in known for each in sources.get(name, ()))}
        left = dict.fromkeys(each for moved in sources.values() for each in moved if each not in covered)
        return _union(known.values()), tuple(left)


def _union(ranges: Iterable[Range]) -> Range | None:
    every = tuple(ranges)
    return (min(low for low, _ in every), max(high for _, high in every)) if every else None


def least(program: Program, name: str) -> float:
    """The least that a value can be, for what its operation is; minus infinity where that says nothing."""
    value = program.values[name]
    if value.operation == "mul" and len(value.inputs) == 2:
        for gate, other in (value.inputs, value.inputs[::-1]):
            found = program.values[gate]
            if found.operation == "sigmoid" and found.inputs == (other,):
                return SILU_LEAST
    return LEAST.get(value.operation, float("-inf"))


def learned_ranges(plan: QuantPlan, source: str) -> LearnedRanges:
    """The ranges that a plan's integers span, from which the same scales and zero points come again, bit for bit.

    Scales are float32 numbers or shorter ones: that many steps of one are exact in float64.

    Args:
        source: see `LearnedRanges`.
    """
    tensors = {name: each for name, each in plan.tensors.items() if not each.is_float}
    values = {name: each for name, each in tensors.items() if each.axis is None and name != INPUT}
    symmetric = all(each.zero_point == (0,) and TYPES[each.dtype].low < 0 for each in values.values())
    ranges = {name: _spanned(each, TYPES[each.dtype], symmetric) for name, each in values.items()}
    return LearnedRanges(ranges, {name: each.scale for name, each in tensors.items() if each.axis is not None}, source)


def _spanned(tensor: TensorQuant, kind: IntegerType, symmetric: bool) -> Range:
    scale, zero_point = tensor.scale[0], tensor.zero_point[0]
    if symmetric:
        peak = scale * min(-kind.low, kind.high)
        return -peak, peak
    return (kind.low - zero_point) * scale, (kind.high - zero_point) * scale
