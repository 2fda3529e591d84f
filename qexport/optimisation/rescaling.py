"""Scales for a program whose weights have changed: of activations as much is outside as before, of weights nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qexport.calibration.observer import Observer
from qexport.calibration.statistics import Statistics, merge
from qexport.optimisation.candidate import Candidate, batch_count, batches
from qexport.planning.arithmetic import (
    INT32,
    INT64,
    TYPES,
    Quantiser,
    bias_safe_scales,
    pair_safe_scales,
    weight_scales,
)
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.runtime_profiles import WEIGHTS
from qexport.planning.weights import bias_array, weight_array
from qexport.programs.program import Program, Value, observed_sources
from qexport.progress import Progress

BYTE = 255
"""Steps of an 8-bit activation: kernels add its products up in 32 bits, those of wider ones in 48."""


def rescaled(
    before: Candidate,
    after: Candidate,
    names: Sequence[str],
    layers: Sequence[Value],
    images: Sequence[Path],
    progress: Progress,
) -> Candidate:
    """Return `after` with scales of its own where its weights have changed; `before` has those that they had.

    Args:
        names: values whose ranges have changed; of a group all or none.
        layers: those whose weights, or whose inputs' ranges, have changed.
        images: to measure ranges on.
    """
    plan, tensors = before.plan, dict(after.plan.tensors)
    quantised = [name for name in names if plan.is_quantised(name)]
    sources = {name: observed_sources(before.program, name) for name in quantised}
    watched = tuple(dict.fromkeys(source for each in sources.values() for source in each))
    count = 2 * batch_count(before.program, images)
    with progress.step("measuring ranges", count) as advance:
        old, new = (_statistics(each.program, watched, images, advance) for each in (before, after))
    stored = stored_scale(plan)
    by_group: dict[str, list[str]] = {}
    for name in quantised:
        by_group.setdefault(plan.tensors[name].group or name, []).append(name)
    for members in by_group.values():
        seen = tuple(dict.fromkeys(source for name in members for source in sources[name]))
        known = plan.tensors[members[0]]
        scale, point = _parameters(known, *(merge([each[source] for source in seen]) for each in (old, new)))
        tensors |= {name: replace(plan.tensors[name], scale=(stored(scale),), zero_point=(point,)) for name in members}
    for layer in layers:
        if not tensors[layer.weight].is_float:
            tensors[layer.weight] = _weight(after.program, plan, layer, tensors)
    return replace(after, plan=replace(after.plan, tensors=tensors))


def stored_scale(plan: QuantPlan) -> Callable[[float], float]:
    """What turns a scale into one that a plan's file can hold: FP16's numbers where all of the plan's are such."""
    scales = np.array([scale for tensor in plan.tensors.values() for scale in tensor.scale])
    with np.errstate(over="ignore"):
        halves = bool((scales.astype(np.float16) == scales).all())
    return replace(WEIGHTS, fp16_scales=halves).stored


def _statistics(
    program: Program, names: Sequence[str], images: Sequence[Path], advance: Callable[[], None]
) -> dict[str, Statistics]:
    """What the float program's values look like on images."""
    observers = {name: Observer() for name in names}
    run = program.graph.watched(names, lambda name, tensor: observers[name].update(tensor))
    with torch.no_grad():
        for batch in batches(program, images):
            run(batch)
            advance()
    return {name: observer.statistics() for name, observer in observers.items()}


def _parameters(tensor: TensorQuant, old: Statistics, new: Statistics) -> tuple[float, int]:
    """Scale and zero point that leave as much of the new values outside as a tensor's have left of the old ones."""
    (scale,), (point,), kind = tensor.scale, tensor.zero_point, tensor.kind
    low, high = (kind.low - point) * scale, (kind.high - point) * scale
    symmetric = point == 0 and kind.low < 0
    least, most = -_reached(_mirrored(old), _mirrored(new), -low), _reached(old, new, high)
    if symmetric:  # the narrower side has room that nothing needs
        least, most = (least, 0.0) if -old.minimum > old.maximum else (0.0, most)
    return Quantiser(TYPES[tensor.dtype], symmetric).parameters(least, most)


def _mirrored(seen: Statistics) -> Statistics:
    return Statistics(-seen.maximum, -seen.minimum, seen.limit, seen.counts[::-1])


def _reached(old: Statistics, new: Statistics, bound: float) -> float:
    """The upper bound for new values that does what `bound` did for old ones, 0 or more."""
    if old.maximum <= 0 or new.maximum <= 0:
        return 0.0
    outside = int(old.counts[old.centres > bound].sum())
    if bound >= old.maximum or not outside:
        return new.maximum * bound / old.maximum
    share = outside / old.counts.sum() * new.counts.sum()
    beyond = np.cumsum(new.counts[::-1])[::-1]  # elements in a bin and above
    return float(np.clip(new.edges[int(np.argmax(beyond <= share))], 0.0, new.maximum))


def _weight(program: Program, plan: QuantPlan, layer: Value, tensors: Mapping[str, TensorQuant]) -> TensorQuant:
    """A layer's weight with scales that clip nothing, and that kernels' sums fit where they have to."""
    tensor, array = tensors[layer.weight], weight_array(program, layer.weight)
    assert tensor.axis is not None
    scales = weight_scales(array, tensor.axis)
    if tensor.rule == "derived" and tensor.axis == 0:
        scales = pair_safe_scales(array, scales)
    if plan.integer_bias:
        scales = np.maximum(scales, least_scales(program, layer, array, tensor.axis, tensors))
    stored = stored_scale(plan)
    return replace(tensor, scale=tuple(stored(float(scale)) for scale in scales))


def least_scales(
    program: Program, layer: Value, array: NDArray[np.float32], axis: int, tensors: Mapping[str, TensorQuant]
) -> NDArray[np.float32]:
    """The scales (channels,) of a weight from which its layer's bias and products fit what a kernel adds up in."""
    channels, given = array.shape[axis], tensors[layer.inputs[0]]
    kind, bias = TYPES[given.dtype], bias_array(program, layer, channels)
    sums = INT64 if kind.levels > BYTE else INT32
    return bias_safe_scales(array, axis, np.zeros(channels, np.float32), bias, (given.scale[0], kind), sums)
