"""What an ONNX graph computes with."""

from __future__ import annotations

import onnx_ir as ir


def values_of(model: ir.Model) -> list[ir.Value]:
    """Inputs and what nodes make, in the graph's order; constants left out."""
    return [*model.graph.inputs, *(output for node in model.graph for output in node.outputs)]
