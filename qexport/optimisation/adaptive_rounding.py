"""Round each weight to the neighbour that serves its layer's output best, which need not be the nearest.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization" (2020, arXiv 2004.10568), in closed form as
in Frantar et al., "GPTQ" (2022, arXiv 2210.17323): see `qexport.optimisation.rounding`. Inputs are those that the
quantised network sees, measured in one run for as many layers as fit into memory; the next run has them rounded.
Biases take back what rounding moves the means of outputs by, as in bias correction, which finds nothing left to do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.data.choice import learned_from
from qexport.optimisation.candidate import Candidate, batch_count, batches
from qexport.optimisation.layer_inputs import Geometry, Moments, geometry_of
from qexport.optimisation.lone_threads import lone_threads
from qexport.optimisation.rounding import WHOLE, adaptively_rounded, output_error, scale_like
from qexport.planning.plan import TensorQuant
from qexport.programs.captured_graph import module_of
from qexport.programs.graph_module import end_at, nodes_by_name
from qexport.programs.naming import bias_of, weight_of
from qexport.progress import Progress
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

MAX_NUMBERS = 2**27
"""Of the matrices that are added up in one run: 512 MiB. A layer that alone has more gets a run to itself."""


@dataclass(frozen=True)
class Layer:
    """A weight that can be rounded.

    Attributes:
        geometry: how it is met.
        names: of the values that are computed with it.
        bias: path of what all of them add, channel by channel; "" where there is no such.
    """

    geometry: Geometry
    names: tuple[str, ...]
    bias: str


Layers = dict[str, Layer]
"""By path of the weight."""


class AdaptiveRounding:
    """A `WeightPass`: weights become what integers stand for, so that rounding to nearest gives those integers."""

    name = "adaptive-rounding"

    def requires(self, candidate: Candidate, /) -> str:
        """A layer with integer weights that is a product of matrices."""
        return "" if _layers(candidate) else "no layer with integer weights can be written as a product of matrices"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Measure what layers are given, and round their weights for it."""
        images = learned_from(images)
        runs = list(_runs(_layers(candidate)))
        total = sum(map(len, runs)) + len(runs) * batch_count(candidate.program, images)
        with torch.no_grad(), progress.step("rounding weights", total) as advance:
            for layers in runs:
                graph, moments = _watched(candidate, layers)
                for batch in batches(candidate.program, images):
                    graph(batch)
                    advance()
                candidate = candidate.with_parameters(_rounded(candidate, layers, moments, advance))
        return candidate

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """The plan is the same, every integer is one of a weight's neighbours, and biases of float layers stay."""
        if before.plan.tensors != after.plan.tensors:
            return "the plan has changed"
        moved = {layer.bias for layer in _layers(before).values()}
        for value in before.program.values.values():
            if value.bias and value.bias not in moved and _differ(before, after, value.bias):
                return f"{value.bias} has changed, which is not for this pass"
            if value.weight and _differ(before, after, value.weight) and not _near(before, after, value.weight):
                return f"{value.weight} is not rounded to one of its neighbours"
        return ""


def _layers(candidate: Candidate) -> Layers:
    """Layers whose weights can be rounded; one that is met in different ways stays as it is."""
    users: dict[str, list[Node]] = {}
    for node in module_of(candidate.program).graph.nodes:
        if weight_of(node):
            users.setdefault(weight_of(node), []).append(node)
    owners = Counter(bias for nodes in users.values() for bias in {bias_of(node) for node in nodes})
    found: Layers = {}
    for path, nodes in users.items():
        ways = {geometry_of(node, candidate.program.graph.parameter(path)) for node in nodes}
        geometry = ways.pop()
        if geometry is None or ways or not candidate.plan.is_quantised(path):
            continue
        bias = next(iter({bias_of(node) for node in nodes}))
        movable = bias and owners[bias] == 1 and all(bias_of(node) == bias for node in nodes)
        movable = movable and candidate.program.graph.parameter(bias).numel() == geometry.rows_of_bias
        found[path] = Layer(geometry, tuple(node.name for node in nodes), bias if movable else "")
    return found


def _runs(layers: Layers) -> Iterator[Layers]:
    """Layers in order, as many at a time as fit into memory."""
    run: Layers = {}
    for path, layer in layers.items():
        if run and sum(each.geometry.numbers for each in (*run.values(), layer)) > MAX_NUMBERS:
            yield run
            run = {}
        run[path] = layer
    if run:
        yield run


def _watched(candidate: Candidate, layers: Layers) -> tuple[GraphModule, dict[str, Moments]]:
    """The quantised program up to the last of some layers, without a result, and what adds up inputs, by weight."""
    graph = insert(candidate.program, candidate.plan, Fused)
    nodes = nodes_by_name(graph)
    moments = {path: Moments(layer.geometry) for path, layer in layers.items()}
    for number, (path, layer) in enumerate(layers.items()):
        graph.add_module(f"moments_{number}", moments[path])
        for name in layer.names:
            with graph.graph.inserting_before(nodes[name]):
                graph.graph.call_module(f"moments_{number}", (nodes[name].args[0],))
    return end_at(graph, ()), moments


def _rounded(
    candidate: Candidate, layers: Layers, moments: dict[str, Moments], advance: Callable[[], None]
) -> dict[str, Tensor]:
    """Weights and biases by path. Each layer is one thread's: factors of matrices depend on how many share the work."""

    def rounded(path: str) -> dict[str, Tensor]:
        bias, parameter = layers[path].bias, candidate.program.graph.parameter
        with torch.no_grad():
            weight, moved = rounded_layer(
                parameter(path), parameter(bias) if bias else None, candidate.plan.tensors[path], moments[path]
            )
        advance()
        return {path: weight} if moved is None else {path: weight, bias: moved}

    with lone_threads() as pool:
        return {path: tensor for each in pool.map(rounded, moments) for path, tensor in each.items()}


def rounded_layer(
    weight: Tensor, bias: Tensor | None, quant: TensorQuant, moments: Moments
) -> tuple[Tensor, Tensor | None]:
    """Return the numbers that the integers which serve a layer best stand for, and the bias for them.

    What rounding moves the mean of a channel's output by is taken back by the bias, so that only what is around the
    mean is left to the weights.

    Args:
        bias: (channels,), None where there is none or it has to stay.
    """
    geometry, scale = moments.geometry, scale_like(weight, quant)
    low, high = (geometry.rows(each) for each in neighbours(weight, quant))
    steps = geometry.rows((weight / scale).clamp(quant.kind.low, quant.kind.high))
    beside = moments.about_zero if bias is None else torch.zeros(())
    whole = adaptively_rounded(steps, moments.believed + beside, low, high)
    nearest = torch.minimum(torch.maximum(steps.round(), low), high)
    seen = moments.around_mean + beside
    worse = output_error(whole - steps, seen) > output_error(nearest - steps, seen)
    whole = torch.where(worse[..., None], nearest, whole)
    rounded = geometry.weight(whole) * scale
    if bias is not None:
        bias = bias + (geometry.rows(weight - rounded) @ moments.mean).view_as(bias)
    return rounded, bias


def neighbours(weight: Tensor, quant: TensorQuant) -> tuple[Tensor, Tensor]:
    """The whole numbers below and above each weight in steps of its scale, of the weight's shape.

    Both are one where the weight is a whole number already, and beyond the ends. Of two neighbours whose scale keeps
    their sum within 127 steps, the numbers above add up to 128 at most, which still fits kernels of 16-bit sums.
    """
    kind = quant.kind
    steps = weight / scale_like(weight, quant)
    low, high = (steps + WHOLE).floor(), (steps - WHOLE).ceil()
    return low.clamp(kind.low, kind.high), high.clamp(kind.low, kind.high)


def _near(before: Candidate, after: Candidate, path: str) -> bool:
    """Whether a weight is one of the two numbers around what it was."""
    old, new, quant = (
        before.program.graph.parameter(path),
        after.program.graph.parameter(path),
        before.plan.tensors[path],
    )
    if quant.is_float:
        return False
    (low, high), scale = neighbours(old, quant), scale_like(old, quant)
    return bool(((new == low * scale) | (new == high * scale)).all())


def _differ(before: Candidate, after: Candidate, path: str) -> bool:
    return not torch.equal(before.program.graph.parameter(path), after.program.graph.parameter(path))
