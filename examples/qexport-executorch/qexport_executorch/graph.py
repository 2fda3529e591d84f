"""A program's graph in the operators that XNNPACK's partitioner takes, with the plan's Q/DQ pairs in its form.

The partitioner takes an operator in integers where it alone reads dequantised tensors and a quantisation alone reads
it, and a weight where it is integers already.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.planning.weights import quantised_weight
from qexport.programs.captured_graph import copied
from qexport.programs.graph_module import put, tensors
from qexport.programs.naming import weight_of
from qexport.programs.program import INPUT
from qexport.programs.tags import OWNER, TAG, tag_values
from qexport.simulation.insert import insert
from qexport.simulation.rewrite import Pair, operations

if TYPE_CHECKING:
    from qexport import Program, QuantPlan, TensorQuant

aten = torch.ops.aten
QUANTISE = operations.quantize_per_tensor.default
DEQUANTISE = operations.dequantize_per_tensor.default
SPLITS = (aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default)
NHWC, NCHW = (0, 2, 3, 1), (0, 3, 1, 2)


class Folded:
    """A weight as integers, with what makes floats of them: a maker's result for `insert`."""

    def __init__(self, tensor: TensorQuant, name: str, program: Program) -> None:
        self.tensor, self.name, self.weight = tensor, name.replace(".", "_"), program.graph.parameter(name).numpy()

    def inline(self, graph: GraphModule, source: Node) -> tuple[Node, ...]:
        """Register integers and scales, and write the dequantisation of both."""
        tensor = self.tensor
        scales = np.array(tensor.scale, np.float32)
        integers = quantised_weight(self.weight, scales, tensor).astype(np.int8)
        constants = {
            "integers": torch.from_numpy(integers),
            "scales": torch.from_numpy(scales),
            "zero_points": torch.tensor(tensor.zero_point, dtype=torch.int64),
        }
        for name, constant in constants.items():
            graph.register_buffer(f"{self.name}_{name}", constant)
        given = [graph.graph.get_attr(f"{self.name}_{name}") for name in constants]
        limits = tensor.kind.low, tensor.kind.high, torch.int8
        return (graph.graph.call_function(operations.dequantize_per_channel.default, (*given, tensor.axis, *limits)),)


def integer_graph(program: Program, plan: QuantPlan) -> GraphModule:
    """The program with the plan's pairs, weights as integers, and one dequantisation for each that reads it.

    Raises:
        ConversionError: the plan was made for another program.
    """

    def make(tensor: TensorQuant, name: str) -> Any:
        return Pair(tensor, name) if tensor.axis is None else Folded(tensor, name, program)

    return insert(program, plan, make, copied(program))


def prepare(graph: GraphModule, program: Program) -> None:
    """Write splits and enlargements as the partitioner takes them, and every value's name into its nodes' meta.

    Constants are made anew: strides of axes of length 1 decide what ExecuTorch takes for their order in memory, and
    the delegate refuses all but the plain one.
    """
    for node in list(graph.graph.nodes):
        if node.target in SPLITS:
            _slice(graph, node)
        elif node.target is aten.upsample_nearest2d.vec and (factors := _factors(node)):
            _repeat(graph, node, factors)
    for node in list(graph.graph.nodes):
        if node.target is DEQUANTISE:
            _dequantise_apart(graph, node)
    for path, tensor in tensors(graph).items():
        put(graph, path, tensor.detach().clone(memory_format=torch.contiguous_format))
    graph.graph.lint()
    graph.recompile()
    tag_values(graph, program)
    for node in graph.graph.nodes:
        if fused := _fused(node):
            node.meta["nn_module_stack"] = {TAG: (fused.name, TAG)}


def layers(graph: GraphModule, program: Program) -> dict[str, tuple[str, str]]:
    """Name of what a layer's kernel gives, which may be its ReLU → the layer and its weight."""
    found = {}
    for node in graph.graph.nodes:
        value = program.values.get(node.name)
        if value is not None and value.weight:
            found[node.meta["nn_module_stack"][TAG][0]] = (value.name, value.weight)
    return found


def _slice(graph: GraphModule, node: Node) -> None:
    """Parts of a split as slices; each keeps its name."""
    axis = int(node.args[2]) if len(node.args) > 2 else int(node.kwargs.get("dim", 0))  # type: ignore[arg-type]
    ends = np.cumsum([0, *(part.shape[axis] for part in node.meta["val"])])
    spans = list(pairwise(map(int, ends)))
    for part in list(node.users):
        start, end = spans[int(part.args[1])]  # type: ignore[arg-type]
        part.target, part.args = aten.slice.Tensor, (node.args[0], axis, start, end)
    graph.graph.erase_node(node)


def _factors(node: Node) -> tuple[int, int] | None:
    """How often an enlargement repeats rows and columns; None where it is no whole number of times."""
    source, result = (each.meta["val"].shape[2:] for each in (node.all_input_nodes[0], node))
    whole = all(made % given == 0 for made, given in zip(result, source, strict=True))
    return (result[0] // source[0], result[1] // source[1]) if whole else None


def _repeat(graph: GraphModule, node: Node, factors: tuple[int, int]) -> None:
    """Nearest enlargement as concatenations: of every pixel with itself, channels last, then of every row."""
    count, channels, height, width = node.all_input_nodes[0].meta["val"].shape
    rows, columns = factors
    source = node.all_input_nodes[0]
    pair = source.args[1:] if source.target is DEQUANTISE else None
    with graph.graph.inserting_before(node):
        step = _stepping(graph, node, pair)
        pixels = [step(aten.permute.default, source, NHWC) for _ in range(columns)]
        wide = step(aten.cat.default, pixels, 3)
        lines = [step(aten.reshape.default, wide, [count, height, 1, columns * width * channels]) for _ in range(rows)]
        high = step(aten.cat.default, lines, 2)
        shaped = step(aten.reshape.default, high, [count, rows * height, columns * width, channels])
    node.target, node.args, node.kwargs = aten.permute.default, (shaped, NCHW), {}


def _stepping(graph: GraphModule, owner: Node, pair: tuple[Any, ...] | None) -> Callable[..., Node]:
    """What writes an operator that belongs to a value, in the integers of `pair` where there are any."""

    def call(target: Any, *given: Any) -> Node:
        made = graph.graph.call_function(target, given)
        made.meta = {OWNER: owner.name}
        return made

    def step(target: Any, *given: Any) -> Node:
        made = call(target, *given)
        return made if pair is None else call(DEQUANTISE, call(QUANTISE, made, *pair), *pair)

    return step


def _dequantise_apart(graph: GraphModule, node: Node) -> None:
    """Give every reader but the first a dequantisation of its own: the partitioner joins one with its reader."""
    for reader in list(node.users)[1:]:
        with graph.graph.inserting_after(node):
            own = graph.graph.call_function(DEQUANTISE, node.args)
        own.meta = dict(node.meta)
        reader.replace_input_with(node, own)


def _fused(node: Node) -> Node | None:
    """The ReLU that the kernel of a layer computes."""
    if not weight_of(node) or len(node.users) != 1:
        return None
    reader = next(iter(node.users))
    return reader if reader.target is aten.relu.default else None


def number(graph: GraphModule, values: Sequence[str]) -> None:
    """Write into the nodes of an edge program which of the values they help to compute, from 1: ExecuTorch keeps that.

    What belongs to none has one more than there are.
    """
    handles = {name: handle for handle, name in enumerate(values, 1)}
    for node in graph.graph.nodes:
        if node.op == "call_function":
            (name, _) = node.meta.get("nn_module_stack", {}).get(TAG, ("", ""))
            node.meta["debug_handle"] = handles.get(name, len(values) + 1)


def example(program: Program) -> Tensor:
    """What goes in, of the shape that the file is for."""
    return torch.zeros(program.values[INPUT].shape)
