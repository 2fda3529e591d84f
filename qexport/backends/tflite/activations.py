"""Activations that TFLite has no kernel for, written so that litert-torch computes them in float.

Its own forms of these choose between two branches element by element. A choice only moves data, so the converter
carries the integers in front of it through, and quantises the other branch with their scale. Here each is arithmetic.
None begins or ends with a product, or begins with a sum: those would become part of the layer beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node, Proxy
from torch.fx.proxy import GraphAppendingTracer

from qexport.programs.tags import OWNER

aten = torch.ops.aten

SATURATED = 20.0
"""From here on Mish is its input in float32."""


def _mish(x: Any) -> Any:
    """Misra, 2019: x · tanh(ln(1 + e^x)), where the tangent is n / (n + 2) for n = e^x (e^x + 2)."""
    power = aten.exp.default(aten.minimum.default(x, aten.full_like.default(x, SATURATED)))
    ratio = aten.mul.Tensor(power, aten.add.Tensor(power, 2.0))
    return aten.mul.Tensor(x, aten.div.Tensor(ratio, aten.add.Tensor(ratio, 2.0)))


def _softplus(x: Any, beta: float = 1.0, threshold: float = 20.0) -> Any:
    """Without overflow, ln(1 + e^(βx)) / β; behind the threshold PyTorch leaves out what float32 does not hold."""
    power = aten.exp.default(aten.mul.Tensor(aten.abs.default(x), -beta))
    rest = aten.mul.Tensor(aten.log.default(aten.add.Tensor(power, 1.0)), 1.0 / beta)
    return aten.add.Tensor(aten.relu.default(x), rest)


def _elu(x: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """Its linear and its exponential half, each zero where the other is not. Clevert et al., 2015."""
    below = aten.mul.Tensor(aten.relu.default(aten.neg.default(x)), -input_scale)
    curve = aten.mul.Tensor(aten.sub.Tensor(aten.exp.default(below), 1.0), alpha * scale)
    return aten.add.Tensor(aten.mul.Tensor(aten.relu.default(x), scale), curve)


def _hardsigmoid(x: Any) -> Any:
    """A sixth of the clamped input and a half: never negative, so that the last ReLU only keeps layers apart."""
    return aten.relu.default(aten.add.Tensor(aten.mul.Tensor(aten.hardtanh.default(x, -3.0, 3.0), 1.0 / 6.0), 0.5))


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805
"""Klambauer et al., "Self-Normalizing Neural Networks", 2017."""

FORMS: Mapping[Any, Callable[..., Any]] = {
    aten.mish.default: _mish,
    aten.softplus.default: _softplus,
    aten.elu.default: _elu,
    aten.selu.default: lambda x: _elu(x, SELU_ALPHA, SELU_SCALE),
    aten.celu.default: lambda x, alpha=1.0: _elu(x, alpha, 1.0, 1.0 / alpha),
    aten.hardsigmoid.default: _hardsigmoid,
}


def write_activations(graph: GraphModule) -> None:
    """Replace the activations of `FORMS` in a graph, which is changed in place."""
    tracer = GraphAppendingTracer(graph.graph)
    for node in list(graph.graph.nodes):
        form = FORMS.get(node.target) if node.op == "call_function" else None
        if form is None:
            continue
        known = set(graph.graph.nodes)
        with graph.graph.inserting_before(node):
            args = [Proxy(arg, tracer) if isinstance(arg, Node) else arg for arg in node.args]
            result = form(*args, **node.kwargs).node
        for made in set(graph.graph.nodes) - known:
            made.meta = {**node.meta, OWNER: node.name}
        # The last of them is the value itself, and has its name.
        node.target, node.args, node.kwargs = result.target, result.args, result.kwargs
        graph.graph.erase_node(result)
