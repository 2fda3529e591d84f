"""Write a plan into the program as quantise/dequantise pairs that torch can run.

The result is at once the simulator that verification compares runtimes with, and the graph that the TFLite
converter lowers to integer kernels.
"""

from __future__ import annotations

import torch
import torchao.quantization.pt2e  # noqa: F401  (registers the quantized_decomposed operators)
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.errors import ConversionError
from qexport.planning.arithmetic import INT8, INT8_NARROW, INT16, UINT8, IntegerType
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.captured_graph import copied
from qexport.programs.naming import weight_of
from qexport.programs.program import Program, has_constant_operand
from qexport.programs.tags import OWNER

operations = torch.ops.quantized_decomposed

ACTIVATION_TYPES: dict[str, tuple[torch.dtype, IntegerType]] = {
    "int8": (torch.int8, INT8),
    "uint8": (torch.uint8, UINT8),
    "int16": (torch.int16, INT16),
}


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
    if plan.program != program.fingerprint:
        raise ConversionError("the plan was made for another program", "plan again")
    graph = graph or copied(program)
    for node in list(graph.graph.nodes):
        weight = weight_of(node)
        if weight and plan.is_quantised(weight) and program.values[node.name].operation not in float_weights:
            _quantise_weight(graph, node, plan.tensors[weight])
        if node.name in plan.integer and has_constant_operand(program.values[node.name]):
            _quantise_constant(graph, node)
    for node in list(graph.graph.nodes):
        if node.name in program.values and plan.is_quantised(node.name):
            _quantise_activation(graph, node, plan, integer_readers(plan, node))
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


def integer_readers(plan: QuantPlan, node: Node) -> tuple[Node, ...]:
    """Readers of a value that must see its integers.

    All of them when an integer operation wrote it; when a float operation did, only the integer ones, and the float
    readers keep the exact value.
    """
    readers = tuple(node.users)
    if node.op == "placeholder" or node.name in plan.integer:
        return readers
    return tuple(reader for reader in readers if _runs_in_integers(plan, reader))


def _runs_in_integers(plan: QuantPlan, node: Node) -> bool:
    # A split is one node with one part for each result, and only the parts are values of the plan.
    parts = tuple(node.users) if not isinstance(node.meta.get("val"), Tensor) else (node,)
    return any(part.name in plan.integer for part in parts)


def _quantise_activation(graph: GraphModule, node: Node, plan: QuantPlan, readers: tuple[Node, ...]) -> None:
    quant = plan.tensors[node.name]
    dtype, kind = ACTIVATION_TYPES[quant.dtype]
    parameters = (quant.scale[0], quant.zero_point[0], kind.low, kind.high, dtype)
    with graph.graph.inserting_after(node):
        quantised = graph.graph.call_function(operations.quantize_per_tensor.default, (node, *parameters))
    with graph.graph.inserting_after(quantised):
        real = graph.graph.call_function(operations.dequantize_per_tensor.default, (quantised, *parameters))
    for made in (quantised, real):
        made.meta = {key: node.meta[key] for key in ("nn_module_stack", "val") if key in node.meta}
    for reader in readers:
        reader.replace_input_with(node, real)


def _quantise_weight(graph: GraphModule, node: Node, quant: TensorQuant) -> None:
    source = node.args[1]
    assert isinstance(source, Node)
    name = str(source.target).replace(".", "_")
    graph.register_buffer(f"{name}_scales", torch.tensor(quant.scale, dtype=torch.float32))
    graph.register_buffer(f"{name}_zero_points", torch.tensor(quant.zero_point, dtype=torch.int64))
    with graph.graph.inserting_before(node):
        scales, zero_points = (
            graph.graph.get_attr(f"{name}_scales"),
            graph.graph.get_attr(f"{name}_zero_points"),
        )
        parameters = (scales, zero_points, quant.axis, INT8_NARROW.low, INT8_NARROW.high, torch.int8)
        # The converter folds this pair into INT8 constants; it refuses constants that are integers already.
        integers = graph.graph.call_function(operations.quantize_per_channel.default, (source, *parameters))
        real = graph.graph.call_function(operations.dequantize_per_channel.default, (integers, *parameters))
    for made in (integers, real):
        made.meta[OWNER] = node.name
    node.replace_input_with(source, real)


def _quantise_constant(graph: GraphModule, node: Node) -> None:
    """Make a tensor of the number that a value is multiplied with, and let it pass through one integer."""
    number = next(float(arg) for arg in node.args if isinstance(arg, int | float))
    name = f"{node.name}_constant"
    graph.register_buffer(name, torch.tensor([number]))
    parameters = (abs(number) / INT8.high or 1.0, 0, INT8_NARROW.low, INT8_NARROW.high, torch.int8)
    with graph.graph.inserting_before(node):
        constant = graph.graph.get_attr(name)
        integers = graph.graph.call_function(operations.quantize_per_tensor.default, (constant, *parameters))
        real = graph.graph.call_function(operations.dequantize_per_tensor.default, (integers, *parameters))
    for made in (integers, real):
        made.meta[OWNER] = node.name
    node.args = tuple(real if isinstance(arg, int | float) else arg for arg in node.args)
