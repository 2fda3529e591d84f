"""The float program in FP16: the body computes in half precision, inputs, outputs and decode stay float32.

Pixel coordinates need float32: FP16 has steps of half a pixel from 512 on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule

from qexport.program import INPUT, Program
from qexport.tags import OWNER

aten = torch.ops.aten


def halve(graph: GraphModule, program: Program) -> None:
    """Change a copy of the program's graph: cast the input, compute the body in FP16, cast the raw outputs back."""
    for node in list(graph.graph.nodes):
        if node.op == "get_attr" and any(_is_body(program, reader.name) for reader in node.users):
            tensor = _attribute(graph, str(node.target))
            tensor.data = tensor.data.half()
        if node.name == INPUT:
            _cast_behind(graph, node, torch.float16, lambda _: True)
        elif node.name in program.raw_outputs:
            _cast_behind(graph, node, torch.float32, lambda reader: not _is_body(program, reader))
    graph.graph.lint()
    graph.recompile()


def _is_body(program: Program, name: str) -> bool:
    value = program.values.get(name)
    return value is not None and value.region == "body"


def _attribute(graph: GraphModule, path: str) -> torch.Tensor:
    holder, _, name = path.rpartition(".")
    tensor = getattr(graph.get_submodule(holder), name)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def _cast_behind(graph: GraphModule, node: torch.fx.Node, dtype: torch.dtype, wanted: Callable[[str], bool]) -> None:
    readers = [reader for reader in node.users if wanted(reader.name)]
    with graph.graph.inserting_after(node):
        cast = graph.graph.call_function(aten.to.dtype, (node, dtype))
    cast.meta = {OWNER: f"{node.name}/cast"}
    for reader in readers:
        reader.replace_input_with(node, cast)
