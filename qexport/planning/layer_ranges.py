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
ROUNDED = 1.001
"""Scales are rounded to FP16's numbers at most."""


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


def told(plan: QuantPlan, learned: LearnedRanges) -> str:
    """Say in one line how many of the learned ranges a plan's integers have, and what has wider ones in their place.

    What stays float as the runtime wants it has none to replace. What cannot occur, an asymmetric type leaves out, and
    what is clipped stays: narrower integers are what was learned.
    """
    names = [name for name in (*learned.ranges, *learned.weights) if plan.is_quantised(name)]
    wider = {name: plan.tensors[name].why for name in names if _is_wider(plan, learned, name)}
    line = f"{len(names) - len(wider)} ranges {learned.source} are used as they are"
    if not wider:
        return line
    named = "; ".join(f"{name}: {why}" for name, why in list(wider.items())[:MAX_NAMED])
    more = f"; and {len(wider) - MAX_NAMED} more" if len(wider) > MAX_NAMED else ""
    return f"{line}, {len(wider)} have wider ones in their place ({named}{more})"


def _is_wider(plan: QuantPlan, learned: LearnedRanges, name: str) -> bool:
    """Whether integers reach more than a step beyond what was learned."""
    tensor = plan.tensors[name]
    if name in learned.weights:
        return any(new > ROUNDED * old for new, old in zip(tensor.scale, learned.weights[name], strict=True))
    (low, high), (scale,), (point,) = learned.ranges[name], tensor.scale, tensor.zero_point
    least, most = (tensor.kind.low - point) * scale, (tensor.kind.high - point) * scale
    return least < ROUNDED * (low - scale) or most > ROUNDED * (high + scale)
