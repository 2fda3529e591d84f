"""Decompose operators of an `ExportedProgram` where they stand, in place of tracing the whole program anew.

litert-torch 0.10 runs `ExportedProgram.run_decompositions` four times in one conversion, torch.onnx once, and each run
traces the whole graph through AOTAutograd to rewrite a tenth of its nodes: most of the time of a conversion. Here only
the nodes that change are traced, and types and shapes are propagated through the rest. The files are the same, which
tests hold; it is done for the versions that it was tested with, and no other.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from types import FunctionType
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.export.graph_signature import TensorArgument
from torch.fx import Graph, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils import _pytree as pytree

from qexport.compat.patches import TRACED_MODULES, replaced

TESTED = {"litert-torch": "0.10.", "torch": "2.13."}
"""Versions (their beginnings) that this was compared with; with others the converters run as they are."""
OPERATORS = frozenset(getattr(operator, name) for name in dir(operator) if not name.startswith("_"))
"""Python's own, of sizes: they stand in graphs beside those of torch."""

aten = torch.ops.aten
Table = Mapping[Any, Callable[..., Any]]


def is_tested(*packages: str) -> bool:
    """Whether the installed packages are those that converters were compared with."""
    return all(version(package).startswith(TESTED[package]) for package in packages)


@dataclass(frozen=True)
class Known:
    """What earlier runs of one conversion found out.

    Attributes:
        results: node → its operator and arguments when its result's type and shape were computed.
        expansions: operator and its arguments' types and shapes → the operators that it consists of, in one run.
    """

    results: dict[Node, tuple[Any, ...]]
    expansions: dict[object, Graph]


def run_decompositions(exported: Any, table: Table | None, known: Known) -> Any:
    """Do what `ExportedProgram.run_decompositions` does, in place.

    Args:
        exported: a `torch.export.ExportedProgram`.
        table: operator → its decomposition; with none, only Python functions that a pass inserted are expanded.
        known: kept from run to run.
    """
    known.expansions.clear()  # another run has another table
    operators = dict(table or {})  # torch's own kind of table counts and copies all of itself whenever it is asked
    graph: Graph = exported.graph_module.graph
    mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes if node.op == "placeholder"])
    assert mode is not None
    with mode, torch.no_grad(), replaced(TRACED_MODULES, _LazyGraphModule):
        for node in list(graph.nodes):
            if node.op == "call_function" and not node._erased:
                _visit(graph, node, operators, known)
    for node in graph.nodes:
        _describe(node)
    graph.eliminate_dead_code()
    results: Any = graph.output_node().args[0]
    for spec, result in zip(exported.graph_signature.output_specs, results, strict=True):
        spec.arg = TensorArgument(result.name)  # another node where the decomposition is what it was given
    graph.lint()
    exported.graph_module.recompile()
    return exported


def _visit(graph: Graph, node: Node, table: Table, known: Known) -> None:
    """Expand a node, or compute its type and shape again where a pass has changed it or its inputs."""
    if node.target is aten._assert_tensor_metadata.default and not node.users:
        graph.erase_node(node)
        return
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        target = target.default
    is_operator = isinstance(target, torch._ops.OperatorBase) or target in OPERATORS
    expands = not is_operator or target in table or bool(table and _is_aliasing_composite(target))
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    if not expands and _is_known(node, args, kwargs, known):
        return
    node.meta = dict(node.meta)  # passes give several nodes one dictionary
    if expands:
        _expand(graph, node, target, args, kwargs, table, known)
        return
    # A pass may have changed the order in memory since a view of it was made; files know no such order.
    computes = aten.reshape.default if target is aten.view.default else target
    result, before = computes(*args, **kwargs), node.meta.get("val")
    node.meta["val"] = before if _is_like(before, result) else result
    known.results[node] = (node.target, args, kwargs, node.meta["val"])


def _is_known(node: Node, args: Any, kwargs: Any, known: Known) -> bool:
    """Whether neither a node nor what it reads has changed since its result was described."""
    before = known.results.get(node)
    if before is None or before[0] is not node.target or before[3] is not node.meta.get("val"):
        return False
    leaves, spec = pytree.tree_flatten((args, kwargs))
    old, old_spec = pytree.tree_flatten((before[1], before[2]))
    return spec == old_spec and all(
        one is other if isinstance(one, torch.Tensor) else type(one) is type(other) and one == other
        for one, other in zip(leaves, old, strict=True)
    )


def _is_like(one: Any, other: Any) -> bool:
    """Whether two results are tensors of the same type, shape and layout."""
    tensors = isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor)
    return tensors and _extract_tensor_metadata(one) == _extract_tensor_metadata(other)


def _is_aliasing_composite(target: Any) -> bool:
    """Composite operators that return views are always decomposed; the others only where the table says so."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return composite and any(argument.alias_info is not None for argument in target._schema.arguments)


def _expand(
    graph: Graph, node: Node, function: Callable[..., Any], args: Any, kwargs: Any, table: Table, known: Known
) -> None:
    """Put the operators that `function` consists of in the place of a node."""
    values, spec = pytree.tree_flatten((args, kwargs))
    sources = pytree.tree_flatten((node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, Node))[0]
    tensors = [index for index, value in enumerate(values) if isinstance(value, torch.Tensor)]
    described = [_extract_tensor_metadata(v) if isinstance(v, torch.Tensor) else (type(v), v) for v in values]
    key = (_identity(function), spec, tuple(map(repr, described)))
    if key not in known.expansions:

        def call(*given: Any) -> Any:
            full = list(values)
            for index, tensor in zip(tensors, given, strict=True):
                full[index] = tensor
            positional, named = pytree.tree_unflatten(full, spec)
            return function(*positional, **named)

        known.expansions[key] = _traced(call, [values[index] for index in tensors], table)
    _splice(graph, node, known.expansions[key], [sources[index] for index in tensors])


def _identity(function: Callable[..., Any]) -> object:
    """The function, or for those that a pass makes anew for every node their code and what it refers to."""
    if not isinstance(function, FunctionType):
        return function
    return function.__code__, tuple(id(cell.cell_contents) for cell in function.__closure__ or ())


def _traced(call: Callable[..., Any], examples: list[torch.Tensor], table: Table) -> Graph:
    """The operators that a call consists of."""
    if table:
        functional = torch.func.functionalize(call, remove="mutations")
        traced: Graph = make_fx(functional, decomposition_table=table)(*examples).graph
        return traced
    # Before dispatch, so that composite operators inside a pass's function stay whole.
    composite: Graph = make_fx(call, pre_dispatch=True)(*examples).graph
    return composite


def _splice(graph: Graph, node: Node, traced: Graph, sources: list[Node]) -> None:
    placed: dict[Node, Node] = {}
    given = iter(sources)
    result: Any = None
    with graph.inserting_before(node):
        for step in traced.nodes:
            if step.op == "placeholder":
                placed[step] = next(given)
            elif step.op == "output":
                result = step.args[0]
            else:
                placed[step] = _copied(graph, node, step, placed)
    if isinstance(result, Node):
        name, made = node.name, placed[result]
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        if made not in sources:
            made._rename(name)  # the program's signature knows its outputs by name
        return
    for part in list(node.users):
        part.replace_all_uses_with(placed[result[part.args[1]]])
        graph.erase_node(part)
    graph.erase_node(node)


def _copied(graph: Graph, node: Node, step: Node, placed: Mapping[Node, Node]) -> Node:
    if step.target is aten.add_.Tensor:
        step.target = aten.add.Tensor  # its result is used, not the tensor that it overwrites
    if step.op != "call_function" or (
        isinstance(step.target, torch._ops.OpOverload) and step.target._schema.is_mutable
    ):
        raise NotImplementedError(f"{step.target} in the decomposition of {node.target}")
    made = graph.node_copy(step, lambda source: placed[source])
    made.meta = {**node.meta, "val": step.meta["val"]}
    return made


def _describe(node: Node) -> None:
    """Passes and lowerings read shapes from `tensor_meta`."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        node.meta["tensor_meta"] = _extract_tensor_metadata(value)
    elif isinstance(value, list | tuple):
        node.meta["tensor_meta"] = tuple(_extract_tensor_metadata(part) for part in value)
