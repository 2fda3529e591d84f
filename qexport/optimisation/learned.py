"""What of a quantised program can be learned: which of its neighbours a weight becomes, scales, and biases.

Rounding counts as the identity on the way back (Bengio et al., "Estimating or Propagating Gradients Through Stochastic
Neurons", 2013). Scales of activations have the gradient of Esser et al., "Learned Step Size Quantization" (2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import giving
from qexport.optimisation.rounding import WHOLE, scale_like
from qexport.optimisation.sparsity import held_zeros
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.captured_graph import shared_copy
from qexport.programs.naming import bias_of
from qexport.programs.program import INPUT, Program, Region, observed_sources
from qexport.simulation.fake_quant import LEARNED
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

MAX_CHANGE = 0.3
"""Natural logarithm of what a scale may grow or shrink by: biases that were made to fit still do."""
LIMITED = frozenset({"clip", "relu6"})
"""Activations that are computed by the limits of the integers, which their scales are made for."""


class LearnedWeight(nn.Module):
    """A weight in steps of its scale, rounded; it stays within a step of where it was, and `zeros` of it stay 0."""

    def __init__(self, tensor: TensorQuant, real: Tensor, zeros: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("scale", scale_like(real, tensor))
        self.scale: Tensor
        start = real / self.scale
        self.low = (start - 1 - WHOLE).ceil().clamp(tensor.kind.low, tensor.kind.high)
        self.high = (start + 1 + WHOLE).floor().clamp(tensor.kind.low, tensor.kind.high)
        if zeros is not None:
            self.low[zeros] = self.high[zeros] = 0
        self.steps = nn.Parameter(start)
        self.bound()

    def bound(self) -> None:
        """Bring back what has left the range that it may move in."""
        with torch.no_grad():
            torch.minimum(torch.maximum(self.steps, self.low), self.high, out=self.steps.data)

    def forward(self, _: Tensor) -> Tensor:
        """Return what readers see of the weight."""
        return (self.steps + (self.steps.round() - self.steps).detach()) * self.scale


class LearnedScale(nn.Module):
    """An activation as readers of its integers see it, in a scale that can be learned."""

    def __init__(self, tensor: TensorQuant, change: nn.Parameter) -> None:
        super().__init__()
        self.start, self.kind, self.change = tensor.scale[0], tensor.kind, change
        self.register_buffer("zero_point", torch.tensor([float(tensor.zero_point[0])]))
        self.zero_point: Tensor

    def forward(self, real: Tensor) -> Tensor:
        """Return `real` rounded to what its integers stand for, of its shape."""
        scale = self.start * self.change.exp()
        seen: Tensor = torch._fake_quantize_learnable_per_tensor_affine(
            real, scale, self.zero_point, self.kind.low, self.kind.high, 1.0
        )
        return seen


class LearnedBias(nn.Module):
    """What a layer adds, and what was learned to be added to it."""

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.change = nn.Parameter(torch.zeros_like(bias))

    def forward(self, bias: Tensor) -> Tensor:
        """Return the sum."""
        return bias + self.change


class Learner:
    """A quantised program and what of it can be learned.

    Attributes:
        watched: names of the values that `quantised` and `real` give: what layers with integer weights read, and raw
            outputs.
        quantised: (n, channels, height, width) float32 → each as readers of integers see it.
        real: the same of the float program.
        weights, biases: by path.
        scales: natural logarithm of what a scale is multiplied with, (1,), by group or value.
    """

    def __init__(self, candidate: Candidate) -> None:
        self.candidate, program = candidate, candidate.program
        self.weights: dict[str, LearnedWeight] = {}
        self.biases: dict[str, LearnedBias] = {}
        self.scales: dict[str, nn.Parameter] = {}
        self._free = _free_scales(program, candidate.plan)
        self.watched = watched_values(candidate)
        inserted = insert(program, candidate.plan, self._made, self._with_biases())
        self.quantised: GraphModule = giving(inserted, self.watched)
        self.real: GraphModule = giving(shared_copy(candidate.reference), self.watched)

    def _made(self, tensor: TensorQuant, name: str) -> nn.Module:
        if tensor.axis is not None:
            if tensor.rule == "derived":  # kernels' sums are full already
                return Fused(tensor, name)
            zeros = held_zeros(self.candidate, name)
            self.weights[name] = LearnedWeight(tensor, self.candidate.program.graph.parameter(name), zeros)
            return self.weights[name]
        key = tensor.group or name
        if key not in self._free:
            return Fused(tensor, name)
        self.scales.setdefault(key, nn.Parameter(torch.zeros(1)))
        return LearnedScale(tensor, self.scales[key])

    def _with_biases(self) -> GraphModule:
        program = self.candidate.program
        graph = shared_copy(program)
        for node in [node for node in graph.graph.nodes if node.name in program.values]:
            path = bias_of(node)
            if not path or program.values[node.name].region is not Region.BODY:
                continue
            if path not in self.biases:
                self.biases[path] = LearnedBias(program.graph.parameter(path))
                graph.add_module(f"bias_{path.replace('.', '_')}", self.biases[path])
            with graph.graph.inserting_before(node):
                learned = graph.graph.call_module(f"bias_{path.replace('.', '_')}", (node.args[2],))
            node.update_arg(2, learned)
        return graph

    @property
    def parameters(self) -> tuple[list[nn.Parameter], ...]:
        """Of weights, of biases and of scales."""
        return (
            [each.steps for each in self.weights.values()],
            [each.change for each in self.biases.values()],
            list(self.scales.values()),
        )

    def bound(self) -> None:
        """Bring back what has left the range that it may move in."""
        for weight in self.weights.values():
            weight.bound()
        with torch.no_grad():
            for change in self.scales.values():
                change.clamp_(-MAX_CHANGE, MAX_CHANGE)

    def result(self) -> Candidate:
        """The candidate with everything as it is now; scales are of the type that the plan's are of."""
        parameter = self.candidate.program.graph.parameter
        with torch.no_grad():
            changed = {path: each.steps.round() * each.scale for path, each in self.weights.items()}
            changed |= {path: parameter(path) + each.change for path, each in self.biases.items()}
        found = self.candidate.with_parameters(changed)
        stored = _stored_as(found.plan)
        tensors = {
            name: replace(tensor, scale=(stored(tensor.scale[0] * float(self.scales[key].detach().exp())),))
            if not tensor.is_float and tensor.axis is None and (key := tensor.group or name) in self.scales
            else tensor
            for name, tensor in found.plan.tensors.items()
        }
        return replace(found, plan=replace(found.plan, tensors=tensors))


def unmoved(before: Candidate, after: Candidate) -> str:
    """Say what has moved that `Learner` holds, "" for nothing."""
    free, old, new = _free_scales(before.program, before.plan), before.plan.tensors, after.plan.tensors
    for name, tensor in old.items():
        if tensor.is_float:
            continue
        if tensor.axis is None:
            ratio = new[name].scale[0] / tensor.scale[0]
            held = 0 if (tensor.group or name) not in free else MAX_CHANGE + 1e-3
            if new[name].zero_point != tensor.zero_point or abs(math.log(ratio)) > held:
                return f"the scale of {name} has moved further than it may"
            continue
        if new[name] != tensor:
            return f"the scale of {name} has changed"
        one, other = (each.program.graph.parameter(name) for each in (before, after))
        reach = LearnedWeight(tensor, one)
        whole = other / reach.scale
        inside = (whole >= reach.low - WHOLE) & (whole <= reach.high + WHOLE)
        if not torch.equal(one, other) and (tensor.rule == "derived" or not inside.all()):
            return f"{name} has moved further than a step"
    return ""


def watched_values(candidate: Candidate) -> tuple[str, ...]:
    """Values whose errors say what a layer is given, in order of computation, and the raw outputs."""
    program = candidate.program
    layers = (value for value in program.values.values() if candidate.plan.is_quantised(value.weight))
    read = {name for layer in layers for name in layer.inputs if name != INPUT}
    return tuple(name for name in program.values if name in read or name in program.raw.all)


def _free_scales(program: Program, plan: QuantPlan) -> frozenset[str]:
    """Groups, or values that are in none, whose scale may be learned.

    No kernel prescribes it, no limits or weights are made for it, and no raw output has it: what is rare there must not
    be clipped.
    """
    tied = set(program.raw.all)
    for value in program.values.values():
        if plan.integer_bias and value.weight and plan.tensors[value.weight].rule == "derived":
            tied.update(value.inputs)
    bound, free = set[str](), set[str]()
    for name, tensor in plan.tensors.items():
        if tensor.is_float or tensor.axis is not None:
            continue
        limited = any(program.values[source].operation in LIMITED for source in observed_sources(program, name))
        fit = tensor.rule in LEARNED and name not in tied and not limited
        (free if fit else bound).add(tensor.group or name)
    return frozenset(free - bound)


def _stored_as(plan: QuantPlan) -> Callable[[float], float]:
    """How scales are kept: in FP16 where all of the plan's are such numbers."""
    scales = np.array([scale for tensor in plan.tensors.values() for scale in tensor.scale])
    half = bool((scales.astype(np.float16) == scales).all())
    return lambda scale: float(np.float16(scale) if half else np.float32(scale))
