"""What a graph is changed in so that litert-torch converts it to what it says."""

from __future__ import annotations

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers the quantized_decomposed operators)
from torch.fx import GraphModule

from qexport.backends.tflite.activations import write_activations

aten = torch.ops.aten
dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default


def prepare_for_litert(graph: GraphModule) -> GraphModule:
    """Change a graph in place and return it."""
    write_activations(graph)
    _duplicate_dequantize(graph)
    _replace_index_select(graph)
    graph.graph.lint()
    graph.recompile()
    return graph


def _duplicate_dequantize(graph: GraphModule) -> None:
    """Give every reader of a tensor's integers a dequantisation of its own.

    Where channels come last on one side of a dequantisation only, litert-torch 0.10 transposes between it and its
    reader, and marks the dequantisation itself as transposed, too: the next reader is given channels in another place.
    """
    for node in graph.graph.find_nodes(op="call_function", target=dequantize):
        for reader in list(node.users)[1:]:
            with graph.graph.inserting_after(node):
                twin = graph.graph.node_copy(node)
            twin.meta = dict(node.meta)
            reader.replace_input_with(node, twin)


def _replace_index_select(graph: GraphModule) -> None:
    """Write what selects rows as indexing: `index_select` is lowered with a check of every index.

    The check fills rows that are not there with one constant for all tables, and where one table consists of integers
    the converter then gives all of them, boxes among them, that table's scale.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.index_select.default):
        table, axis, index = node.args
        if axis == 0:
            node.target, node.args = aten.index.Tensor, (table, [index])
