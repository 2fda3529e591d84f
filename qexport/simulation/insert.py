"""Put a module of one's choice behind everything that a plan quantises, where integers are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexport.errors import ConversionError
from qexport.planning.arithmetic import INT8_NARROW
from qexport.planning.coverage import reads_integers
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.captured_graph import shared_copy
from qexport.programs.naming import weight_of
from qexport.programs.program import Program, has_constant_operand
from qexport.programs.tags import OWNER

Make = Callable[[TensorQuant, str], nn.Module]
"""Makes what stands behind a quantised tensor, from what the plan says of it and its name: a value's, a weight's path,
or the name of a product with a number and ".constant". The module takes the exact tensor and gives what is read."""

SEEN = "qexport_seen"
"""Key in the meta of an inserted node: the value that readers of integers see here."""


@runtime_checkable
class Inlined(Protocol):
    """A module that writes its own operators into the graph, for converters that take no calls of modules."""

    def inline(self, graph: GraphModule, source: Node, /) -> tuple[Node, ...]:
        """Write them at the graph's insertion point; readers see the last one's result."""
        ...


def insert(
    program: Program,
    plan: QuantPlan,
    make: Make,
    graph: GraphModule | None = None,
    float_weights: frozenset[str] = frozenset(),
) -> GraphModule:
    """Return a copy of the program's graph with a module behind every value and weight that the plan quantises.

    Every weight is the program's own tensor, not a copy: who trains the result gives a `graph` of copies.

    Args:
        make: called for every tensor once, however often it is read.
        graph: a copy that was changed already, to take in its place.
        float_weights: operations whose weights get nothing.

    Raises:
        ConversionError: the plan was made for another program.
    """
    if plan.program != program.fingerprint:
        raise ConversionError("the plan was made for another program", "plan again")
    graph = graph or shared_copy(program)
    made: dict[str, nn.Module] = {}
    nodes = [node for node in graph.graph.nodes if node.op != "output" and node.name in program.values]
    for node in nodes:
        value, weight = program.values[node.name], weight_of(node)
        if weight and plan.is_quantised(weight) and value.operation not in float_weights:
            _quantise_weight(graph, node, _module(made, make, plan.tensors[weight], weight))
        if node.name in plan.integer and has_constant_operand(value):
            _quantise_constant(graph, node, make)
    for node in nodes:
        if plan.is_quantised(node.name):
            module = _module(made, make, plan.tensors[node.name], node.name)
            _quantise_activation(graph, node, module, _integer_readers(plan, node))
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


def seen_by_readers(graph: GraphModule) -> Mapping[str, Node]:
    """The nodes whose results readers of integers see, by value; a value that passes through none is missing."""
    return {node.meta[SEEN]: node for node in graph.graph.nodes if SEEN in node.meta}


def _module(made: dict[str, nn.Module], make: Make, tensor: TensorQuant, name: str) -> nn.Module:
    if name not in made:
        made[name] = make(tensor, name)
    return made[name]


def _integer_readers(plan: QuantPlan, node: Node) -> tuple[Node, ...]:
    return tuple(reader for reader in node.users if reads_integers(plan, node.name, _results(reader)))


def _results(node: Node) -> tuple[str, ...]:
    """What a node computes: a split is one node with one part for each result, and only the parts are values."""
    whole = isinstance(node.meta.get("val"), Tensor)
    return (node.name,) if whole else tuple(part.name for part in node.users)


def _placed(graph: GraphModule, module: nn.Module, target: str, source: Node) -> tuple[Node, ...]:
    """Let a value pass through a module, at the graph's insertion point."""
    if isinstance(module, Inlined):
        return module.inline(graph, source)
    graph.add_module(target, module)
    return (graph.graph.call_module(target, (source,)),)


def _quantise_activation(graph: GraphModule, node: Node, module: nn.Module, readers: tuple[Node, ...]) -> None:
    with graph.graph.inserting_before(node.next):
        nodes = _placed(graph, module, f"behind_{node.name}", node)
    for each in nodes:
        each.meta = {key: node.meta[key] for key in ("nn_module_stack", "val") if key in node.meta}
    nodes[-1].meta[SEEN] = node.name
    for reader in readers:
        reader.replace_input_with(node, nodes[-1])


def _quantise_weight(graph: GraphModule, node: Node, module: nn.Module) -> None:
    source = node.args[1]
    assert isinstance(source, Node)
    with graph.graph.inserting_before(node):
        nodes = _placed(graph, module, f"weight_{str(source.target).replace('.', '_')}", source)
    for each in nodes:
        each.meta[OWNER] = node.name
    node.replace_input_with(source, nodes[-1])


def _quantise_constant(graph: GraphModule, node: Node, make: Make) -> None:
    """Make a tensor of the number that a value is multiplied with, and let it pass through one integer."""
    number = next(float(arg) for arg in node.args if isinstance(arg, int | float))
    scale = abs(number) / INT8_NARROW.high or 1.0
    tensor = TensorQuant("int8", (scale,), (0,), why="the number is one integer", rule="derived")
    graph.register_buffer(f"{node.name}_constant", torch.tensor([number]))
    with graph.graph.inserting_before(node):
        source = graph.graph.get_attr(f"{node.name}_constant")
        nodes = _placed(graph, make(tensor, f"{node.name}.constant"), f"behind_{node.name}_constant", source)
    for each in nodes:
        each.meta[OWNER] = node.name
    node.args = tuple(nodes[-1] if isinstance(arg, int | float) else arg for arg in node.args)
