"""Names of a graph's nodes: what each computes, and the module that it came from.

They are the keys of calibration tables, plans, artifacts and reports, so they must not depend on the order of capture
or on library versions.
"""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.programs.onnx.torch_functions import cropped_conv_transpose2d, padded_conv2d
from qexport.programs.program import Region

aten = torch.ops.aten

OPERATION_NAMES = {
    aten.conv2d.default: "conv",
    padded_conv2d: "conv",
    aten.conv_transpose2d.input: "conv_transpose",
    cropped_conv_transpose2d: "conv_transpose",
    aten.linear.default: "linear",
    aten.sigmoid.default: "sigmoid",
    aten.mul.Tensor: "mul",
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
    aten.div.Tensor: "div",
    aten.relu.default: "relu",
    aten.leaky_relu.default: "leaky_relu",
    aten.prelu.default: "prelu",
    aten.hardswish.default: "hardswish",
    aten.hardsigmoid.default: "hardsigmoid",
    aten.mish.default: "mish",
    aten.gelu.default: "gelu",
    aten.elu.default: "elu",
    aten.selu.default: "selu",
    aten.celu.default: "celu",
    aten.softplus.default: "softplus",
    aten.tanh.default: "tanh",
    aten.matmul.default: "matmul",
    aten.softmax.int: "softmax",
    aten.cat.default: "cat",
    aten.chunk.default: "chunk",
    aten.split_with_sizes.default: "split",
    aten.split.Tensor: "split",
    operator.getitem: "part",
    aten.max_pool2d.default: "max_pool",
    aten.avg_pool2d.default: "avg_pool",
    aten.upsample_nearest2d.vec: "resize",
    aten.view.default: "reshape",
    aten.reshape.default: "reshape",
    aten.flatten.using_ints: "reshape",
    aten.permute.default: "transpose",
    aten.transpose.int: "transpose",
}
"""What each operator of a graph module is called in plans and profiles; an operator not listed keeps its ATen name."""

LIMITS = {(0.0, 6.0): "relu6", (-1.0, 1.0): "relu_n1_to_1"}
"""Limits of a clamp that some kernels compute at no cost; others from zero on are a "clip", the rest elsewhere."""

ACTIVATIONS = frozenset({"sigmoid", "relu", "leaky_relu", "prelu", "hardswish", "hardsigmoid", "mish", "gelu"}) | {
    *("elu", "selu", "celu", "softplus", "tanh"),
    *LIMITS.values(),
    *("clip", "clip_elsewhere"),
}
"""Operations that compute an element of their result from the one in its place, and no other."""


REGION = "qexport_region"
"""Key in a node's meta."""


def rename(graph: GraphModule, placeholder: str, regions: Mapping[str, Region]) -> None:
    """Name every node after its module and operation, and the graph's input `placeholder`; note each node's region.

    Args:
        regions: path of a module → region of all that is computed in it; the rest is the body.
    """
    used: Counter[str] = Counter()
    modules: dict[Node, str] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            node._rename(placeholder)
        if node.op != "call_function":
            continue
        modules[node] = _module_path(node, modules)
        node.meta[REGION] = _region(modules[node], regions)
        wanted = _identifier(f"{modules[node]}_{operation_of(node)}")
        used[wanted] += 1
        node._rename(wanted if used[wanted] == 1 else f"{wanted}_{used[wanted]}")


def _identifier(text: str) -> str:
    return re.sub(r"\W", "_", text)


def _module_path(node: Node, known: dict[Node, str]) -> str:
    """Module that a node came from; for activations, which models share between layers, that of the convolution."""
    weight = weight_of(node)
    if weight:
        return weight.rsplit(".", 1)[0].removesuffix(".conv")
    if _is_activation(node):
        return known[node.args[0]]  # type: ignore[index]
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return paths[-1] if paths else "program"


def region_of(node: Node) -> Region:
    """Part of the program that a node of a normalised graph is in."""
    region: Region = node.meta.get(REGION, Region.BODY)
    return region


def _region(path: str, regions: Mapping[str, Region]) -> Region:
    """That of the innermost module around a path that has one of its own."""
    while path and path not in regions:
        path = path.rpartition(".")[0]
    return regions.get(path, Region.BODY)


def _is_activation(node: Node) -> bool:
    """Whether a node is the activation of the layer in front of it, SiLU's two among them."""
    if operation_of(node) in ACTIVATIONS:
        source = node.args[0]
    elif node.target is aten.mul.Tensor and isinstance(node.args[1], Node):
        source = node.args[0] if node.args[1].target is aten.sigmoid.default else None
    else:
        return False
    return isinstance(source, Node) and bool(weight_of(source))


def operation_of(node: Node) -> str:
    """Return the plan's word for what a node computes."""
    if node.op == "placeholder":
        return "input"
    if node.target is aten.hardtanh.default:
        low, high = limits_of(node)
        return LIMITS.get((low, high), "clip_elsewhere" if low else "clip")
    known = OPERATION_NAMES.get(node.target)
    return known or str(node.target).removeprefix("aten.").split(".")[0]


def limits_of(clamp: Node) -> tuple[float, float]:
    """The least and the largest value of a `hardtanh`'s result."""
    given: list[Any] = list(clamp.args[1:])
    low, high = given + [-1.0, 1.0][len(given) :]
    return float(low), float(high)


def weight_of(node: Node) -> str:
    """Return the parameter path of a convolution's or linear layer's weight, "" for any other node."""
    if node.op != "call_function" or operation_of(node) not in ("conv", "conv_transpose", "linear"):
        return ""
    weight = node.args[1]
    return str(weight.target) if isinstance(weight, Node) and weight.op == "get_attr" else ""


def bias_of(node: Node) -> str:
    """Return the parameter path of a layer's bias, "" where it has none or is no layer."""
    bias = node.args[2] if weight_of(node) and len(node.args) > 2 else None
    return str(bias.target) if isinstance(bias, Node) and bias.op == "get_attr" else ""


def tensor_inputs(node: Node) -> tuple[Node, ...]:
    """Return the computed tensors that a node reads: no parameters, and for a part of a split the tensor split."""
    found: dict[Node, None] = {}
    for source in node.all_input_nodes:
        if source.op not in ("call_function", "placeholder") or isinstance(source.meta.get("val"), torch.SymInt):
            continue
        whole = isinstance(source.meta.get("val"), Tensor)
        found.update(dict.fromkeys((source,) if whole else tensor_inputs(source)))
    return tuple(found)


def joins_constants(node: Node) -> bool:
    """Whether a parameter or buffer is among the tensors that a node joins."""
    return operation_of(node) == "cat" and any(source.op == "get_attr" for source in node.all_input_nodes)
