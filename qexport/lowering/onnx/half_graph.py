"""The float program in FP16: the body computes in half precision, inputs, outputs and what is no body stay float32.

Pixel coordinates need float32: FP16 has steps of half a pixel from 512 on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.programs.naming import region_of
from qexport.programs.program import INPUT, Region
from qexport.programs.tags import OWNER

aten = torch.ops.aten


def halve(graph: GraphModule, full: frozenset[str] = frozenset()) -> None:
    """Change a copy of the program's graph: cast the input, compute the body in FP16, cast what leaves it back.

    Args:
        full: operations of the body that compute in float32 all the same.
    """
    halved = _halved(graph, full)
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and any(reader in halved for reader in node.users):
            tensor = _attribute(graph, str(node.target))
            if all(reader in halved for reader in node.users):
                tensor.data = tensor.data.half()
            elif tensor.is_floating_point():  # layers share it, and not all of them are halved
                _cast_behind(graph, node, torch.float16, lambda reader: reader in halved)
        if node.name == INPUT:
            _cast_behind(graph, node, torch.float16, lambda reader: reader in halved)
        elif node.op == "call_function" and _is_float(node):
            ours = node in halved
            _cast_behind(graph, node, torch.float32 if ours else torch.float16, _from(ours, halved))
    graph.graph.lint()
    graph.recompile()


def _halved(graph: GraphModule, full: frozenset[str]) -> frozenset[Node]:
    """Operations that compute in FP16; one of many results does where none of its results is to be float32."""
    body = (node for node in graph.graph.nodes if node.op == "call_function" and region_of(node) is Region.BODY)
    return frozenset(
        node
        for node in body
        if node.name not in full
        and (isinstance(node.meta.get("val"), Tensor) or not any(reader.name in full for reader in node.users))
    )


def _from(ours: bool, halved: frozenset[Node]) -> Callable[[Node], bool]:
    """Who reads across the border of what is halved."""
    return lambda reader: (reader in halved) != ours


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
