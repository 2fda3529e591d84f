"""What of a quantised program can be learned: weights, or only which neighbour each becomes, scales, and biases.

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
from qexport.programs.captured_graph import on_device
from qexport.programs.naming import bias_of
from qexport.programs.program import INPUT, MOVES_DATA, Program, Region, observed_sources
from qexport.simulation.fake_quant import LEARNED, fake_quantised, limits_of
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

MAX_CHANGE = 0.3
"""Natural logarithm of what a scale may grow or shrink by: biases that were made to fit still do."""
SPREAD = 0.8
"""Of the way from a whole number to the next rounding, in which weights that are whole begin: see `within_rounding`."""
LIMITED = frozenset({"clip", "relu6"})
"""Activations that are computed by the limits of the integers, which their scales are made for."""


class LearnedWeight(nn.Module):
    """A weight in steps of its scale, rounded.

    Attributes:
        steps: real numbers, in steps of the scale that the plan has.
        change: natural logarithm of what that scale is multiplied with, of its shape; a parameter of a free weight
            whose scale may be learned.
        zeros: where steps stay 0, None for nowhere.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    change: Tensor
    zeros: Tensor | None

    def __init__(
        self,
        tensor: TensorQuant,
        real: Tensor,
        free: bool = False,
        zeros: Tensor | None = None,
        unrounded: Tensor | None = None,
    ) -> None:
        """Let the weight go where it will, its scale with it, or stay within a step of where it was.

        Args:
            unrounded: what `real` was before it was rounded, where that is known.
        """
        super().__init__()
        self.kind, self.free = tensor.kind, free
        self.register_buffer("scale", scale_like(real, tensor))
        start = real * self.scale.reciprocal()
        if not free:
            self.register_buffer("low", (start - 1 - WHOLE).ceil().clamp(tensor.kind.low, tensor.kind.high))
            self.register_buffer("high", (start + 1 + WHOLE).floor().clamp(tensor.kind.low, tensor.kind.high))
        if unrounded is not None:
            start = within_rounding(start, unrounded * self.scale.reciprocal())
        self.steps = nn.Parameter(start)
        self.register_buffer("zeros", zeros)
        if free and tensor.rule in LEARNED:
            self.change = nn.Parameter(torch.zeros_like(self.scale))
        else:
            self.register_buffer("change", torch.zeros(1, device=real.device))
        self.bound()

    def bound(self) -> None:
        """Bring back what has left the range that it may move in."""
        with torch.no_grad():
            self.change.clamp_(-MAX_CHANGE, MAX_CHANGE)
            if not self.free:
                torch.minimum(torch.maximum(self.steps, self.low), self.high, out=self.steps.data)
            if self.zeros is not None:
                self.steps.data[self.zeros] = 0

    def forward(self, _: Tensor) -> Tensor:
        """Return what readers see of the weight."""
        return fake_quantised(self.steps, self.change.exp(), self.kind.low, self.kind.high) * self.scale

    def whole(self) -> Tensor:
        """The integers that it becomes, as float32."""
        steps = self.steps.detach() * self.change.detach().exp().reciprocal()
        return steps.round().clamp(self.kind.low, self.kind.high)


def within_rounding(whole: Tensor, unrounded: Tensor) -> Tensor:
    """Move whole numbers towards what they were before, as far as they still round to the same.

    From whole numbers on, weights that are drawn one way arrive at the next rounding in the same step, and all turn
    over at once before the loss has seen any of them do so. So those come first that had hardly been rounded this way.

    Args:
        whole: any numbers; those that are not whole, and those further than a step from what they were, stay.
        unrounded: of the same shape.
    """
    apart = unrounded - whole
    rounded = ((whole - whole.round()).abs() < WHOLE) & (apart.abs() < 1 + WHOLE)
    return torch.where(rounded, whole + SPREAD * apart.clamp(-0.5, 0.5), whole)


class LearnedScale(nn.Module):
    """An activation as readers of its integers see it, in a scale that can be learned."""

    def __init__(self, tensor: TensorQuant, change: nn.Parameter) -> None:
        super().__init__()
        self.start, self.change, self.limits = tensor.scale[0], change, limits_of(tensor)

    def forward(self, real: Tensor) -> Tensor:
        """Return `real` rounded to what its integers stand for, of its shape."""
        return fake_quantised(real, self.start * self.change.exp(), *self.limits)


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
        device: of PyTorch, that all of these are on.
    """

    def __init__(self, candidate: Candidate, free: bool = False, device: str = "cpu") -> None:
        """Let weights stay within a step of where they were, or be free and their scales learned, too."""
        self.candidate, program = candidate, candidate.program
        self.weights: dict[str, LearnedWeight] = {}
        self.biases: dict[str, LearnedBias] = {}
        self.scales: dict[str, nn.Parameter] = {}
        self._free, self._free_weights, self.device = _free_scales(program, candidate.plan), free, device
        self.watched = watched_values(candidate)
        inserted = insert(program, candidate.plan, self._made, self._with_biases(on_device(program, device)))
        self.quantised: GraphModule = giving(inserted, self.watched).to(device)
        self.real: GraphModule = giving(on_device(candidate.reference, device), self.watched)

    def _made(self, tensor: TensorQuant, name: str) -> nn.Module:
        if tensor.axis is not None:
            if tensor.rule == "derived":  # kernels' sums are full already
                return Fused(tensor, name)
            real = self.candidate.program.graph.parameter(name).to(self.device)
            zeros = held_zeros(self.candidate, name)
            zeros = None if zeros is None else zeros.to(self.device)
            unrounded = self.candidate.reference.graph.parameter(name).to(self.device)
            self.weights[name] = LearnedWeight(tensor, real, self._free_weights, zeros, unrounded)
            return self.weights[name]
        key = tensor.group or name
        if _only_moved(self.candidate, name):
            return nn.Identity()
        if key not in self._free:
            return Fused(tensor, name)
        self.scales.setdefault(key, nn.Parameter(torch.zeros(1, device=self.device)))
        return LearnedScale(tensor, self.scales[key])

    def _with_biases(self, graph: GraphModule) -> GraphModule:
        program = self.candidate.program
        for node in [node for node in graph.graph.nodes if node.name in program.values]:
            path = bias_of(node)
            if not path or program.values[node.name].region is not Region.BODY:
                continue
            if path not in self.biases:
                self.biases[path] = LearnedBias(program.graph.parameter(path).to(self.device))
                graph.add_module(f"bias_{path.replace('.', '_')}", self.biases[path])
            with graph.graph.inserting_before(node):
                learned = graph.graph.call_module(f"bias_{path.replace('.', '_')}", (node.args[2],))
            node.update_arg(2, learned)
        return graph

    @property
    def named(self) -> tuple[dict[str, nn.Parameter], ...]:
        """Of weights, of biases and of scales, by name; the last are of activations, and of weights that are free."""
        of_weights = {f"{path} scale": each.change for path, each in self.weights.items()}
        return (
            {path: each.steps for path, each in self.weights.items()},
            {path: each.change for path, each in self.biases.items()},
            self.scales | {name: each for name, each in of_weights.items() if isinstance(each, nn.Parameter)},
        )

    @property
    def parameters(self) -> tuple[list[nn.Parameter], ...]:
        """Of weights, of biases and of scales."""
        return tuple(list(each.values()) for each in self.named)

    def bound(self) -> None:
        """Bring back what has left the range that it may move in."""
        for weight in self.weights.values():
            weight.bound()
        with torch.no_grad():
            for change in self.scales.values():
                change.clamp_(-MAX_CHANGE, MAX_CHANGE)

    def result(self) -> Candidate:
        """The candidate with everything as it is now; scales are of the type that the plan's are of."""
        plan, parameter = self.candidate.plan, self.candidate.program.graph.parameter
        stored = _stored_as(plan)
        tensors = {name: self._learned(tensor, name, stored) for name, tensor in plan.tensors.items()}
        changed = {}
        for path, weight in self.weights.items():
            whole = weight.whole().cpu()
            changed[path] = whole * scale_like(whole, tensors[path])
        changed |= {path: parameter(path) + each.change.detach().cpu() for path, each in self.biases.items()}
        return replace(self.candidate, plan=replace(plan, tensors=tensors)).with_parameters(changed)

    def _learned(self, tensor: TensorQuant, name: str, stored: Callable[[float], float]) -> TensorQuant:
        if tensor.is_float:
            return tensor
        change = self.weights[name].change if name in self.weights else self.scales.get(tensor.group or name)
        if not isinstance(change, nn.Parameter):
            return tensor
        factors = change.detach().flatten().exp().tolist()
        scales = (stored(scale * factor) for scale, factor in zip(tensor.scale, factors, strict=True))
        return replace(tensor, scale=tuple(scales))


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


def _only_moved(candidate: Candidate, name: str) -> bool:
    """Whether a value consists of integers that others have in the same scale: they are whole already."""
    program, plan = candidate.program, candidate.plan
    value = program.values.get(name)
    if value is None or value.operation not in MOVES_DATA or value.constants or name not in plan.integer:
        return False
    group = plan.tensors[name].group
    return bool(group) and all(plan.is_quantised(each) and plan.tensors[each].group == group for each in value.inputs)


def _stored_as(plan: QuantPlan) -> Callable[[float], float]:
    """How scales are kept: in FP16 where all of the plan's are such numbers."""
    scales = np.array([scale for tensor in plan.tensors.values() for scale in tensor.scale])
    half = bool((scales.astype(np.float16) == scales).all())
    return lambda scale: float(np.float16(scale) if half else np.float32(scale))
