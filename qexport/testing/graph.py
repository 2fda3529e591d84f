"""A program's graph as JSON and arrays, and what computes it: PyTorch's own operators, one after the other."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule, Node

Arrays = dict[str, NDArray[Any]]
QUANTISE = "quantized_decomposed.quantize_per_channel.default"


def to_json(graph: GraphModule, half: frozenset[str] = frozenset()) -> tuple[str, Arrays]:
    """Return the nodes as JSON, and the constants that they read, by name. Quantised constants are stored as integers.

    Args:
        half: constants that are stored in FP16.
    """
    arrays: Arrays = {}
    rows = []
    folded = {node for node in graph.graph.nodes if _quantises_constant(node)}
    for node in graph.graph.nodes:
        row: dict[str, Any] = {"name": node.name, "op": node.op, "shape": _shape(node)}
        if node in folded:
            row |= {"op": "get_attr", "constant": node.args[0].target}
            arrays[row["constant"]] = _integers(graph, node)
        elif node.op == "get_attr" and folded.issuperset(node.users):
            continue
        elif node.op == "get_attr":
            row["constant"], array = node.target, _tensor(graph, node.target).detach().numpy()
            arrays[node.target] = array.astype(np.float16) if node.target in half else array
        elif node.op in ("call_function", "output"):
            row |= {"target": _target(node), "args": _encoded(node.args), "kwargs": _encoded(dict(node.kwargs))}
        rows.append(row)
    return json.dumps(rows, sort_keys=True), dict(sorted(arrays.items()))


def _quantises_constant(node: Node) -> bool:
    source = node.args[0] if node.args else None
    return _target(node) == QUANTISE and isinstance(source, Node) and source.op == "get_attr"


def _integers(graph: GraphModule, node: Node) -> NDArray[np.integer]:
    given = [_tensor(graph, str(arg.target)) if isinstance(arg, Node) else arg for arg in node.args]
    integers: NDArray[np.integer] = torch.ops.quantized_decomposed.quantize_per_channel(*given).numpy()
    return integers


def _tensor(graph: GraphModule, name: str) -> Tensor:
    owner, _, attribute = name.rpartition(".")
    found: Tensor = getattr(graph.get_submodule(owner), attribute)
    return found


def _shape(node: Node) -> list[int] | None:
    made = node.meta.get("val")
    return list(_sizes(made)) if isinstance(made, Tensor) else None


def _sizes(tensor: Tensor) -> Iterator[int]:
    """A tensor's shape; a number of images that is open counts as one."""
    sizes: Iterable[Any] = tensor.shape
    return (1 if isinstance(size, torch.SymInt) else int(size) for size in sizes)


def _target(node: Node) -> str:
    target: Any = node.target
    return f"operator.{target.__name__}" if getattr(target, "__module__", "") == "_operator" else str(target)


def _encoded(value: Any) -> Any:
    if isinstance(value, Node):
        return {"node": value.name}
    if isinstance(value, torch.dtype | torch.device | torch.memory_format | torch.layout):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {"entries": {key: _encoded(each) for key, each in value.items()}}
    if isinstance(value, list | tuple):
        return [_encoded(each) for each in value]
    return value


def computed(rows: list[dict[str, Any]], constants: Mapping[str, Tensor], images: Tensor) -> Any:
    """Compute the outputs."""
    values: dict[str, Any] = {}
    for row in rows:
        if row["op"] == "placeholder":
            values[row["name"]] = images
        elif row["op"] == "get_attr":
            values[row["name"]] = constants.get(row["constant"])
        elif row["op"] == "call_function":
            arguments = _decoded(row["args"], values), _decoded(row["kwargs"], values)
            values[row["name"]] = _function(row["target"])(*arguments[0], **arguments[1])
        elif row["op"] == "output":
            return _decoded(row["args"], values)[0]
    raise ValueError("there is no output")


def _decoded(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, list):
        return [_decoded(each, values) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "node":
        return values[content]
    if kind == "entries":
        return {key: _decoded(each, values) for key, each in content.items()}
    return torch.device(content) if kind == "device" else getattr(torch, content)


def _function(target: str) -> Any:
    first, name, *overload = target.split(".")
    if first == "operator":
        return getattr(operator, name)
    import torchao.quantization.pt2e  # noqa: F401  (registers the quantized_decomposed operators)

    return getattr(getattr(getattr(torch.ops, first), name), overload[0])
