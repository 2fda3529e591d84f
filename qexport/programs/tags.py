"""Tag the nodes of a graph with the plan's names, where converters carry them along.

Converters rename tensors as they like, but both litert-torch and torch.onnx keep the module stack of each node.
"""

from __future__ import annotations

from torch.fx import GraphModule

from qexport.programs.program import Program

TAG = "qexport"
OWNER = "qexport_value"
"""Key in a node's meta: the value that an inserted node belongs to, where that is not the one before it."""


def tag_values(graph: GraphModule, program: Program) -> None:
    """Write into every node's module stack which value of the program it helps to compute."""
    value = ""
    for node in graph.graph.nodes:
        value = node.name if node.name in program.values else value
        if node.op == "call_function":
            node.meta["nn_module_stack"] = {TAG: (node.meta.get(OWNER, value), TAG)}
