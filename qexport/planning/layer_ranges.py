"""Ranges that somebody else's training kept by layer, as ranges of a program's values."""

from __future__ import annotations

from collections.abc import Iterator

from qexport.checkpoints.modelopt import LayerRanges
from qexport.planning.arithmetic import INT8_NARROW, WEIGHT_AXIS, symmetric_scale
from qexport.planning.learned_ranges import LearnedRanges
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program, Value

SOURCE = "learned in training (modelopt)"
MAX_NAMED = 3
"""Of what was replaced, in one line."""


def values_of_layers(layers: LayerRanges, program: Program) -> LearnedRanges:
    """The ranges of what a program's layers read, and the scales of their weights.

    A training with 255 or 256 steps from -128 meets a weight that has outgrown its range with -128, integers here with
    -127.

    Args:
        layers: by the paths that weights have in the program.
    """
    peaks: dict[str, float] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for value, path in _layers(program):
        if path in layers.inputs:
            read = value.inputs[0]
            peaks[read] = max(layers.inputs[path], peaks.get(read, 0.0))
        if path in layers.weights and WEIGHT_AXIS[value.operation] == 0:
            weights[value.weight] = tuple(symmetric_scale(each, INT8_NARROW) for each in layers.weights[path])
    return LearnedRanges({name: (-peak, peak) for name, peak in peaks.items()}, weights, SOURCE)


def _layers(program: Program) -> Iterator[tuple[Value, str]]:
    """Layers, and the path of the module that has their weight."""
    for value in program.values.values():
        if value.weight:
            yield value, value.weight.rpartition(".")[0]


def replaced(plan: QuantPlan, learned: LearnedRanges) -> str:
    """Say which learned ranges a plan has others in place of, and why, in one line; "" for none.

    What stays float as the plan's runtime wants it has no range to replace.
    """
    found = {}
    for name in (*learned.ranges, *learned.weights):
        tensor = plan.tensors.get(name)
        if tensor is not None and not tensor.is_float and not _kept(plan, learned, name):
            found[name] = tensor.why
    if not found:
        return ""
    named = "; ".join(f"{name}: {why}" for name, why in list(found.items())[:MAX_NAMED])
    more = f"; and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
    every = len(learned.ranges) + len(learned.weights)
    return f"{len(found)} of {every} ranges of the training are replaced ({named}{more})"
