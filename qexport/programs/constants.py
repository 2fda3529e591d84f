"""The numbers that a program's operations have of their own: weights, biases, factors, limits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.fx import GraphModule

from qexport.programs.graph import FileGraph
from qexport.programs.program import Program

ARITHMETIC = frozenset({"mul", "add", "sub", "div"})
"""Operations whose whole numbers are operands; those of others are sizes and axes."""


def constants_of(program: Program) -> Iterator[tuple[str, NDArray[np.floating]]]:
    """(value, array) for every float constant that an operation reads, single numbers included."""
    graph = program.graph
    if isinstance(graph, FileGraph):
        yield from graph.constants()
        return
    assert isinstance(graph, GraphModule)
    held = dict(graph.named_parameters()) | dict(graph.named_buffers())
    for node in graph.graph.nodes:
        if node.name not in program.values or node.op != "call_function":
            continue
        kinds = (int, float) if program.values[node.name].operation in ARITHMETIC else (float,)
        yield from ((node.name, np.array(float(arg))) for arg in node.args if isinstance(arg, kinds))
        for source in node.all_input_nodes:
            tensor = held.get(str(source.target)) if source.op == "get_attr" else None
            if tensor is not None and tensor.is_floating_point():
                yield node.name, tensor.detach().numpy()
