"""Move biases by what rounding weights moves the mean of a layer's output.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019, arXiv 1906.04721), section
4.2: E[W x] - E[Wq x] = (W - Wq) E[x] is added to the bias. As in NNCF's fast bias correction the mean is measured: over
all positions of all images, with x as the quantised network sees it, in one pass for all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate, batch_count, batches, changed_parameters
from qexport.programs.graph_module import nodes_by_name
from qexport.programs.program import Value
from qexport.progress import Progress
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

MAX_IMAGES = 64
"""Means over all positions of so many images hardly move any more."""


class BiasCorrection:
    """A `WeightPass`: nothing but biases is changed."""

    name = "bias-correction"

    def requires(self, candidate: Candidate, /) -> str:
        """A layer with integer weights and a bias."""
        return "" if any(_layers(candidate)) else "no layer with integer weights has a bias"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Measure what rounding moves each layer by, and move its bias back."""
        graph, shifts = _watched(candidate)
        images = take(images, count=MAX_IMAGES)
        count = batch_count(candidate.program, images)
        with torch.no_grad(), progress.step("correcting biases", count) as advance:
            for batch in batches(candidate.program, images):
                graph(batch)
                advance()
        biases = {path: candidate.program.graph.parameter(path).detach() for path in shifts}
        return candidate.with_parameters(
            {path: bias + shifts[path].mean.to(bias.dtype) for path, bias in biases.items() if shifts[path].count}
        )

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """Plan and weights are the same."""
        if before.plan.tensors != after.plan.tensors:
            return "the plan has changed"
        biases = {value.bias for value in before.program.values.values()}
        others = (path for path in changed_parameters(before.program, after.program) if path not in biases)
        return next((f"{path} has changed, which is no bias" for path in others), "")


def _layers(candidate: Candidate) -> Iterator[Value]:
    """Layers that can be corrected."""
    return (
        value for value in candidate.program.values.values() if value.bias and candidate.plan.is_quantised(value.weight)
    )


class _Shift(nn.Module):
    """Adds up what rounding a layer's weights takes from its outputs, by channel."""

    _is_impure = True  # torch.fx keeps its calls, though nothing reads a result

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.count, self.total = axis, 0, torch.zeros(())

    def forward(self, difference: Tensor) -> None:
        """Add one run's difference, of the output's shape."""
        by_channel = difference.movedim(self.axis, 0).flatten(1)
        self.total = self.total + by_channel.sum(dim=1, dtype=torch.float64)
        self.count += by_channel.shape[1]

    @property
    def mean(self) -> Tensor:
        """(channels,) float64."""
        return self.total / self.count


def _watched(candidate: Candidate) -> tuple[GraphModule, dict[str, _Shift]]:
    """The quantised program with the difference that rounding makes beside each layer, and what adds them up by bias.

    Layers are linear: W x - Wq x = (W - Wq) x, with the layer's own strides, padding and groups.
    """
    graph = insert(candidate.program, candidate.plan, Fused)
    nodes = nodes_by_name(graph)
    shifts: dict[str, _Shift] = {}
    for layer in _layers(candidate):
        shift = shifts.setdefault(layer.bias, _Shift(-1 if layer.operation == "linear" else 1))
        graph.add_module(f"shift_{layer.bias.replace('.', '_')}", shift)
        with graph.graph.inserting_before(nodes[layer.name]):
            difference = _difference(graph, nodes[layer.name], layer.weight)
            graph.graph.call_module(f"shift_{layer.bias.replace('.', '_')}", (difference,))
    graph.graph.lint()
    graph.recompile()
    return graph, shifts


def _difference(graph: GraphModule, layer: Node, weight: str) -> Node:
    """The layer once more, without a bias and with what rounding takes from its weights."""
    source, rounded, _, *rest = layer.args
    lost = graph.graph.call_function(torch.sub, (graph.graph.get_attr(weight), rounded))
    return graph.graph.create_node("call_function", layer.target, (source, lost, None, *rest), layer.kwargs)
