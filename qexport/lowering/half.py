"""The float program in FP16: the body computes in half precision, inputs, outputs and what is no body stay float32.

Pixel coordinates need float32: FP16 has steps of half a pixel from 512 on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.lowering.tags import OWNER
from qexport.programs.naming import region_of
from qexport.programs.program import INPUT

aten = torch.ops.aten


def halve(graph: GraphModule) -> None:
    """Change a copy of the program's graph: cast the input, compute the body in FP16, cast what leaves it back."""
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and any(_in_body(reader) for reader in node.users):
            tensor = _attribute(graph, str(node.target))
            tensor.data = tensor.data.half()
        if node.name == INPUT:
            _cast_behind(graph, node, torch.float16, lambda _: True)
        elif node.op == "call_function" and _is_float(node):
            ours = _in_body(node)
            _cast_behind(graph, node, torch.float32 if ours else torch.float16, _from(ours))
    graph.graph.lint()
    graph.recompile()


def _from(body: bool) -> Callable[[Node], bool]:
    """Who reads across the border of the body."""
    return lambda reader: _in_body(reader) != body


def _in_body(node: Node) -> bool:
    return node.op == "call_function" and region_of(node.name) == "body"


def _is_float(node: Node) -> bool:
    traced = node.meta.get("val")
    return isinstance(traced, Tensor) and traced.is_floating_point()


def _attribute(graph: GraphModule, path: str) -> torch.Tensor:
    holder, _, name = path.rpartition(".")
    tensor = getattr(graph.get_submodule(holder), name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _cast_behind(graph: GraphModule, node: Node, dtype: torch.dtype, wanted: Callable[[Node], bool]) -> None:
    readers = [reader for reader in node.users if wanted(reader)]
    if not readers:
        return
    with graph.graph.inserting_after(node):
        cast = graph.graph.call_function(aten.to.dtype, (node, dtype))
    cast.meta = {OWNER: f"{node.name}/cast"}
    for reader in readers:
        reader.replace_input_with(node, cast)
