"""Hand a converter an `ExportedProgram` of the graph as it is, in place of tracing it once more.

The program's graph came out of `torch.export`, and only known operators were added to it since. Exporting it again, as
converters do with every module, takes seconds to find the same nodes: here types and shapes are propagated through
those that are there. The resulting files are the same, which tests hold.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree


def exported_program(module: GraphModule, *examples: Tensor) -> ExportedProgram:
    """Return what `torch.export.export(module, examples)` returns.

    Args:
        module: placeholders, parameters and buffers by `get_attr`, operators of torch; returns a tensor or a tuple.
        examples: one tensor for each placeholder.
    """
    graph = GraphModule(module, copy.deepcopy(module.graph))
    given = graph.graph.find_nodes(op="placeholder")
    tensors = dict(zip(given, examples, strict=True))
    specs = _lift(graph, given, tensors)
    _propagate(graph.graph, tensors)
    results, spec = _outputs(graph.graph)
    made = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(result.name), None) for result in results]
    program = ExportedProgram(
        root=graph,
        graph=graph.graph,
        graph_signature=ExportGraphSignature(specs, made),
        state_dict=dict(graph.state_dict(keep_vars=True)),
        range_constraints={},
        module_call_graph=[ModuleCallEntry("", _call(given, results, spec))],
        example_inputs=(examples, {}),
    )
    # Passes end with code written anew for their graph, which nobody runs: this kind writes it when it is run.
    program._graph_module = _LazyGraphModule.from_graphmodule(program.graph_module)
    return program


def _lift(graph: GraphModule, given: list[Node], tensors: dict[Node, Tensor]) -> list[InputSpec]:
    """Make inputs of the graph's parameters and buffers, before those that are `given`."""
    specs: list[InputSpec] = []
    lifted: dict[str, Node] = {}
    parameters, buffers = dict(graph.named_parameters()), dict(graph.named_buffers())
    attributes = graph.graph.find_nodes(op="get_attr")
    first = next(iter(graph.graph.nodes))
    for path in dict.fromkeys(str(node.target) for node in attributes):
        kind, letter = (InputKind.PARAMETER, "p") if path in parameters else (InputKind.BUFFER, "b")
        with graph.graph.inserting_before(first):
            lifted[path] = graph.graph.placeholder(f"{letter}_{path.replace('.', '_')}")
        tensors[lifted[path]] = parameters[path] if path in parameters else buffers[path]
        persistent = True if path in buffers else None
        specs.append(InputSpec(kind, TensorArgument(lifted[path].name), path, persistent))
    for node in given:
        first.prepend(node)
        specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(node.name), None))
    for node in attributes:
        node.replace_all_uses_with(lifted[str(node.target)])
        graph.graph.erase_node(node)
    return specs


def _propagate(graph: Graph, tensors: dict[Node, Tensor]) -> None:
    """Give every node the type and shape of its result."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode, torch.no_grad():
        for node in graph.nodes:
            node.meta = dict(node.meta)
            if node.op == "placeholder":
                node.meta["val"] = mode.from_tensor(tensors[node], static_shapes=True)
            elif node.op == "call_function":
                args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
                node.meta["val"] = node.target(*args, **kwargs)


def _outputs(graph: Graph) -> tuple[list[Node], pytree.TreeSpec]:
    """The tensors that are returned, and how; afterwards they are in a tuple."""
    returned: Any = graph.output_node().args[0]
    results, spec = pytree.tree_flatten(returned, is_leaf=lambda leaf: isinstance(leaf, Node))
    graph.output_node().args = (tuple(results),)
    return results, spec


def _call(given: list[Node], results: list[Node], spec: pytree.TreeSpec) -> ModuleCallSignature:
    """The outermost call: positional tensors in, tensors out."""
    return ModuleCallSignature(
        inputs=[TensorArgument(node.name) for node in given],
        outputs=[TensorArgument(node.name) for node in results],
        in_spec=pytree.tree_structure((tuple(range(len(given))), {})),
        out_spec=spec,
    )
