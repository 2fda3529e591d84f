"""Choose the scales of weights by what a layer's outputs lose.

A weight's largest magnitude sets its scale in the plan, and all others are rounded to its steps. Every output channel's
scale is chosen for the least squared error of its output instead, sum of E[x^2] (w - wq)^2 over its weights, as in
Banner et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment" (2019) and Nahshan et
al., "Loss Aware Post-training Quantization" (2019), with inputs x as the quantised network sees them in place of
evenly distributed ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate, batch_count, batches, changed_parameters
from qexport.optimisation.rescaling import least_scales, stored_scale
from qexport.planning.arithmetic import INT8_NARROW, SMALLEST_SCALE
from qexport.planning.plan import TensorQuant
from qexport.planning.weights import weight_array
from qexport.programs.graph_module import nodes_by_name
from qexport.programs.program import Value
from qexport.progress import Progress
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

MAX_MEASURED = 32
"""Second moments of so many images hardly move any more."""
SAMPLED = 32
"""Rows and columns of an input that are looked at, at least."""
FINE, COARSE = 1 / 400, 1 / 20
"""Between factors of a scale that are tried: fine ones near 1, where filters of few weights happen to fall on their
steps, and coarse ones below, where few weights are far larger than many others."""
FACTORS = 1.0, *(1 + FINE * k for k in range(-20, 41) if k), *(1 - COARSE * k for k in range(2, 11))
"""The plan's own first. A scale that other numbers depend on may only grow."""
UNSEEN = 1e-3
"""Share of the mean second moment that channels are taken to have at least: what is zero here need not stay so."""
OPERATIONS = ("conv", "linear")
"""Weights of transposed convolutions TFLite's converter quantises itself, by their largest magnitudes."""
RULES = ("own", "derived")
LEAST_ERROR = "of the least error in its outputs"


class WeightScales:
    """A `WeightPass`: nothing but scales of weights is changed."""

    name = "weight-scales"

    def requires(self, candidate: Candidate, /) -> str:
        """A layer with integer weights."""
        return "" if _layers(candidate) else "no layer computes with integer weights"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Measure the second moments of what layers read, and choose the scales by them."""
        layers, images = _layers(candidate), take(images, count=MAX_MEASURED)
        graph, moments = _watched(candidate, layers)
        with torch.no_grad(), progress.step("measuring inputs of layers", batch_count(candidate.program, images)) as go:
            for batch in batches(candidate.program, images):
                graph(batch)
                go()
        tensors = dict(candidate.plan.tensors)
        with progress.step("choosing scales of weights", len(layers)) as go:
            for path, users in layers.items():
                found = sum((moments[user.name].mean for user in users), torch.zeros(()))
                tensors[path] = _chosen(candidate, users, found.numpy())
                go()
        return replace(candidate, plan=replace(candidate.plan, tensors=tensors))

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """Weights, biases and scales of activations are the same, and derived scales are not narrower."""
        if changed := changed_parameters(before.program, after.program):
            return f"{next(iter(changed))} has changed, and only scales of weights may"
        for name, tensor in after.plan.tensors.items():
            known = before.plan.tensors[name]
            if tensor.axis is None and tensor != known:
                return f"{name} has changed, which is no weight"
            if tensor.rule == "derived" and any(new < old for new, old in zip(tensor.scale, known.scale, strict=True)):
                return f"the scale of {name} has become narrower, and other numbers depend on it"
        return ""


def _layers(candidate: Candidate) -> dict[str, list[Value]]:
    """Layers that compute with integers, by the path of their weight, whose scales may be chosen."""
    found: dict[str, list[Value]] = {}
    for value in candidate.program.values.values():
        quant = candidate.plan.tensors.get(value.weight)
        chosen = value.operation in OPERATIONS and value.name in candidate.plan.integer
        if chosen and quant and not quant.is_float and quant.rule in RULES:
            found.setdefault(value.weight, []).append(value)
    return found


class _Moments(nn.Module):
    """Second moments of a layer's input, by channel."""

    _is_impure = True  # torch.fx keeps its calls, though nothing reads a result

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.count, self.total = axis, 0, torch.zeros((), dtype=torch.float64)

    def forward(self, given: Tensor) -> None:
        """Add one run's input: (n, channels, h, w), or (…, channels) of a linear layer."""
        if self.axis == 1 and given.dim() == 4:
            rows, columns = (max(1, side // SAMPLED) for side in given.shape[2:])
            given = given[:, :, ::rows, ::columns]
        by_channel = given.movedim(self.axis, 0).flatten(1)
        self.total = self.total + by_channel.square().sum(dim=1, dtype=torch.float64)
        self.count += by_channel.shape[1]

    @property
    def mean(self) -> Tensor:
        """(channels,) float64."""
        return self.total / max(1, self.count)


def _watched(candidate: Candidate, layers: Mapping[str, list[Value]]) -> tuple[GraphModule, dict[str, _Moments]]:
    """The quantised program with what watches the input of each layer, by the layer's name."""
    graph = insert(candidate.program, candidate.plan, Fused)
    nodes = nodes_by_name(graph)
    moments: dict[str, _Moments] = {}
    for number, layer in enumerate(each for users in layers.values() for each in users):
        moments[layer.name] = _Moments(-1 if layer.operation == "linear" else 1)
        graph.add_module(f"moments_{number}", moments[layer.name])
        with graph.graph.inserting_before(nodes[layer.name]):
            graph.graph.call_module(f"moments_{number}", (nodes[layer.name].args[0],))
    graph.graph.lint()
    graph.recompile()
    return graph, moments


def _chosen(candidate: Candidate, users: Sequence[Value], moments: NDArray[np.float64]) -> TensorQuant:
    """A weight with the scales of the least error; of equally good ones the plan's."""
    layer, plan = users[0], candidate.plan
    tensor, array = plan.tensors[layer.weight], weight_array(candidate.program, layer.weight)
    assert tensor.axis is not None
    old = np.array(tensor.scale, dtype=np.float32)
    least = np.full_like(old, SMALLEST_SCALE)
    for user in users if plan.integer_bias else ():
        least = np.maximum(least, least_scales(candidate.program, user, array, tensor.axis, plan.tensors))
    rows = np.moveaxis(array, tensor.axis, 0).reshape(len(old), -1)
    weighted = np.moveaxis(_importance(moments, array), tensor.axis, 0).reshape(rows.shape)
    best, error = old, np.full(len(old), np.inf)
    for scales in _tried(tensor, old, least):
        steps = np.clip(np.rint(rows / scales[:, None]), INT8_NARROW.low, INT8_NARROW.high)
        lost = ((rows - steps * scales[:, None]) ** 2 * weighted).sum(axis=1)
        best, error = np.where(lost < error, scales, best), np.minimum(lost, error)
    told = tensor.why if tensor.why.endswith(LEAST_ERROR) else f"{tensor.why}, {LEAST_ERROR}"
    stored = stored_scale(plan)
    return replace(tensor, scale=tuple(stored(float(scale)) for scale in best), why=told)


def _tried(tensor: TensorQuant, old: NDArray[np.float32], least: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Scales to choose from, the plan's first."""
    for factor in FACTORS:
        if factor >= 1 or tensor.rule != "derived":
            yield np.maximum(old * np.float32(factor), np.minimum(least, old))


def _importance(moments: NDArray[np.float64], array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Second moment of what each weight is multiplied with, of the weight's shape."""
    known = np.maximum(moments, UNSEEN * moments.mean() + SMALLEST_SCALE).astype(np.float32)
    by_group = known.reshape(-1, array.shape[1])  # (groups, in / groups)
    each = np.repeat(by_group, len(array) // len(by_group), axis=0)
    return np.broadcast_to(each.reshape(*each.shape, *(1,) * (array.ndim - 2)), array.shape)
