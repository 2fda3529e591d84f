"""Is a plan in a file? The one comparison behind the export, `qexport verify` and `qexport diff`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.planning.arithmetic import INT8_NARROW, SMALLEST_SCALE
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.program import Program

SCALE_TOLERANCE = 1e-5
"""Relative; scales of channels of zeros are below `SMALLEST_SCALE` and free."""
HALF_A_STEP = 0.51
"""A weight lies at most half a step from its integer; the rest is float rounding."""
MAX_LISTED = 3

Quantised = TensorQuant | StoredTensor
"""What a plan, and what a file says of a tensor."""


@dataclass(frozen=True)
class WeightNames:
    """How names in a file lead to the plan's weights; kept in the manifest, so that nothing needs the program later.

    Attributes:
        weights: value → the plan's name of the weight that its operation multiplies with.
        merged: value → the activation behind it, whose name a file gives a kernel that computes both.
    """

    weights: Mapping[str, str] = field(default_factory=dict)
    merged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanComparison:
    """What came of it.

    Attributes:
        found: planned tensors that the file names; the weight of a layer that is used twice is one.
        wrong: a line for each that differs or is missing.
        planned: how many tensors a file could name.
    """

    found: frozenset[str]
    wrong: tuple[str, ...]
    planned: int

    @property
    def summary(self) -> str:
        """What differs, in one line."""
        return listed(self.wrong)


def listed(lines: Sequence[str], separator: str = "; ") -> str:
    """The first of many, and how many more there are, in one line."""
    more = f" and {len(lines) - MAX_LISTED} more" if len(lines) > MAX_LISTED else ""
    return f"{separator.join(lines[:MAX_LISTED])}{more}"


def weight_names(program: Program) -> WeightNames:
    """The names that a program's weights can have in a file."""
    layers = {value.name: value for value in program.values.values() if value.weight}
    merged = {}
    for name in layers:
        readers = program.readers[name]
        # A reader with a weight of its own gives its name to that one.
        if len(readers) == 1 and not readers[0].weight:
            merged[name] = readers[0].name
    return WeightNames({name: value.weight for name, value in layers.items()}, merged)


def compare_plan(
    plan: QuantPlan,
    stored: StoredGraph,
    names: WeightNames,
    weight: Callable[[str], NDArray[np.float32]] | None = None,
) -> PlanComparison:
    """Compare every planned tensor that a file names, in type, scales, zero points and integers.

    Args:
        weight: the float weight by the plan's name; without it integers are not compared.
    """
    wrong, found = [], set()
    planned_tensors = list(_planned(plan, names, stored.complete))
    for name, keys in planned_tensors:
        kept = next((stored.tensors[key] for key in keys if key in stored.tensors), None)
        if kept is None:
            wrong += [f"{name}: missing"] if stored.complete else []
            continue
        found.add(name)
        planned = plan.tensors[name]
        difference = tensor_difference(kept, planned) or _weight_difference(name, planned, kept, weight)
        wrong += [f"{name}: {difference}"] if difference else []
    count = len({name for name, _ in planned_tensors})
    return PlanComparison(frozenset(found), tuple(wrong), count)


def _planned(plan: QuantPlan, names: WeightNames, every: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name in the plan, names in the file) for quantised tensors that an integer operation writes or holds.

    With `every`, those too that float operations write and integer ones read.
    """
    weights = set(names.weights.values())
    for name, tensor in plan.tensors.items():
        if tensor.is_float or tensor.axis is not None or name in weights:
            continue
        if every or name in plan.integer:
            yield name, (name,)
    for value, name in names.weights.items():
        if value in plan.integer and plan.is_quantised(name):
            yield name, _keys(value, names)


def _keys(value: str, names: WeightNames) -> tuple[str, ...]:
    """What a file may call a layer's weight, the most exact name first."""
    merged = (f"{names.merged[value]}.weight",) if value in names.merged else ()
    return (f"{value}.weight", names.weights[value], *merged)


def own_names(tensors: Mapping[str, StoredTensor], names: WeightNames) -> dict[str, StoredTensor]:
    """A file's tensors, each weight under its own layer's name, so that files of two formats can be compared."""
    renamed = dict(tensors)
    for value in names.weights:
        key = next((key for key in _keys(value, names) if key in renamed), None)
        if key is not None:
            renamed[f"{value}.weight"] = renamed.pop(key)
    return renamed


def tensor_difference(actual: Quantised, expected: Quantised) -> str:
    """What distinguishes two tensors' types, scales or zero points; "" for nothing.

    Of many channels the one is named that is furthest off.
    """
    if actual.dtype != expected.dtype:
        return f"{actual.dtype} instead of {expected.dtype}"
    if scales_differ(actual, expected):
        return _shown("scale", actual.scale, expected.scale)
    if actual.zero_point != expected.zero_point:
        return _shown("zero point", actual.zero_point, expected.zero_point)
    return ""


def scales_differ(actual: Quantised, expected: Quantised) -> bool:
    """Whether scales differ by more than float32 rounding."""
    if len(actual.scale) != len(expected.scale):
        return True
    return not np.allclose(actual.scale, expected.scale, rtol=SCALE_TOLERANCE, atol=SMALLEST_SCALE)


def _shown(what: str, actual: tuple[float, ...], expected: tuple[float, ...]) -> str:
    if len(actual) != len(expected):
        return f"{what} of {len(actual)} channels instead of {len(expected)}"
    channel = furthest(actual, expected)
    place = f" of channel {channel}" if len(actual) > 1 else ""
    return f"{what}{place} {actual[channel]:.8g} instead of {expected[channel]:.8g}"


def furthest(actual: Sequence[float], expected: Sequence[float]) -> int:
    """The channel in which two tensors of the same number of channels differ most, relative to the second."""
    one, other = np.array(actual, np.float64), np.array(expected, np.float64)
    return int((np.abs(one - other) / np.maximum(np.abs(other), SMALLEST_SCALE)).argmax())


def _weight_difference(
    name: str, planned: TensorQuant, kept: StoredTensor, weight: Callable[[str], NDArray[np.float32]] | None
) -> str:
    if weight is None or kept.integers is None:
        return ""
    real = weight(name)
    assert planned.axis is not None
    shape = [1] * real.ndim
    shape[planned.axis] = -1
    steps = real / np.array(planned.scale, dtype=np.float32).reshape(shape)
    apart = np.abs(np.clip(steps, INT8_NARROW.low, INT8_NARROW.high) - kept.integers)
    if float(apart.max()) <= HALF_A_STEP:
        return ""
    channel = int(np.unravel_index(int(apart.argmax()), apart.shape)[planned.axis])
    return f"weights are {float(apart.max()):.2f} steps away in channel {channel}"
