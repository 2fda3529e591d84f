"""Write a plan into the program as quantise/dequantise pairs that torch can run.

The result is at once the simulator that verification compares runtimes with, and the graph that the TFLite
converter lowers to integer kernels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.program import Program
from qexport.simulation.insert import insert

operations = torch.ops.quantized_decomposed

DTYPES: dict[str, torch.dtype] = {"int8": torch.int8, "uint8": torch.uint8, "int16": torch.int16}


class Pair(nn.Module):
    """A tensor's way into its integers and back: a maker for `insert`, in the operators that converters know.

    The converter folds the pair behind a weight into INT8 constants; it refuses constants that are integers already.
    """

    def __init__(self, tensor: TensorQuant, name: str) -> None:
        super().__init__()
        self.name, self.axis = name, tensor.axis
        limits = tensor.kind.low, tensor.kind.high, DTYPES[tensor.dtype]
        self._rest: tuple[Any, ...]
        if tensor.axis is None:
            self._rest = (tensor.scale[0], tensor.zero_point[0], *limits)
        else:
            self.register_buffer("scales", torch.tensor(tensor.scale, dtype=torch.float32))
            self.register_buffer("zero_points", torch.tensor(tensor.zero_point, dtype=torch.int64))
            self._rest = (tensor.axis, *limits)

    @property
    def _operators(self) -> tuple[Any, Any]:
        if self.axis is None:
            return operations.quantize_per_tensor.default, operations.dequantize_per_tensor.default
        return operations.quantize_per_channel.default, operations.dequantize_per_channel.default

    def forward(self, real: Tensor) -> Tensor:
        """Return what readers see of `real`, of its shape."""
        quantise, dequantise = self._operators
        parameters = (*(tensor for _, tensor in self.named_buffers()), *self._rest)
        seen: Tensor = dequantise(quantise(real, *parameters), *parameters)
        return seen

    def inline(self, graph: GraphModule, source: Node) -> tuple[Node, ...]:
        """Write both operators; buffers for scales go under the tensor's name into the graph."""
        quantise, dequantise = self._operators
        prefix = self.name.replace(".", "_")
        for name, tensor in self.named_buffers():
            graph.register_buffer(f"{prefix}_{name}", tensor)
        numbers = tuple(graph.graph.get_attr(f"{prefix}_{name}") for name, _ in self.named_buffers())
        integers = graph.graph.call_function(quantise, (source, *numbers, *self._rest))
        return integers, graph.graph.call_function(dequantise, (integers, *numbers, *self._rest))


def simulated(
    program: Program, plan: QuantPlan, graph: GraphModule | None = None, float_weights: frozenset[str] = frozenset()
) -> GraphModule:
    """Return a copy of the program's graph in which every quantised value passes through its integers.

    Args:
        graph: a copy that was changed already, to take in its place.
        float_weights: operations whose weights a converter quantises itself, and refuses when they are already.

    Raises:
        ConversionError: the plan was made for another program.
    """
    return insert(program, plan, Pair, graph, float_weights)
