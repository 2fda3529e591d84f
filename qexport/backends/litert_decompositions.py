"""Decompose operators where litert-torch needs it, in place of tracing the whole program anew.

litert-torch 0.10 runs `ExportedProgram.run_decompositions` four times in one conversion, and each run traces the
whole graph through AOTAutograd to rewrite a tenth of its nodes: three quarters of the time of a conversion. Here only
the nodes that change are traced, and types and shapes are propagated through the rest. The resulting files are
byte-identical, which a test holds; the patch is installed for the versions that it was tested with, and no other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils import _pytree as pytree

TESTED = {"litert-torch": "0.10.", "torch": "2.13."}
"""Versions (their beginnings) that this was compared with; with others the converter runs as it is."""

aten = torch.ops.aten
Table = Mapping[Any, Callable[..., Any]]


def is_tested() -> bool:
    """Whether the installed packages are those that this module replaces a part of."""
    return all(version(package).startswith(start) for package, start in TESTED.items())


@contextlib.contextmanager
def local_decompositions() -> Iterator[None]:
    """Let litert-torch decompose locally for the time of the block."""
    from litert_torch import fx_infra
    from litert_torch.fx_infra import _safe_run_decompositions as original

    kept = original.safe_run_decompositions
    for module in (fx_infra, original):
        vars(module)["safe_run_decompositions"] = run_decompositions
    try:
        yield
    finally:
        for module in (fx_infra, original):
            vars(module)["safe_run_decompositions"] = kept


def run_decompositions(exported: Any, table: Table | None = None, can_skip: bool = True) -> Any:
    """Do what `litert_torch.fx_infra.safe_run_decompositions` does, in place.

    Args:
        exported: a `torch.export.ExportedProgram`.
        table: operator → its decomposition; with none, only Python functions that a pass inserted are expanded.
        can_skip: part of the signature that is replaced; nodes that need nothing are always skipped.
    """
    graph: Graph = exported.graph_module.graph
    mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes if node.op == "placeholder"])
    assert mode is not None
    with mode, torch.no_grad():
        for node in list(graph.nodes):
            if node.op == "call_function" and not node._erased:
                _visit(graph, node, table or {})
    for node in graph.nodes:
        _describe(node)
    graph.eliminate_dead_code()
    graph.lint()
    exported.graph_module.recompile()
    return exported


def _visit(graph: Graph, node: Node, table: Table) -> None:
    """Expand a node, or compute its type and shape again: a pass may have changed those of its inputs."""
    from litert_torch.fx_infra._safe_run_decompositions import _BUILTIN_OPERATORS

    if node.target is aten._assert_tensor_metadata.default and not node.users:
        graph.erase_node(node)
        return
    node.meta = dict(node.meta)  # passes give several nodes one dictionary
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverloadPacket):
        target = target.default
    args, kwargs = map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    is_operator = isinstance(target, torch._ops.OperatorBase) or target in _BUILTIN_OPERATORS
    if is_operator and target not in table and not (table and _is_aliasing_composite(target)):
        node.meta["val"] = target(*args, **kwargs)
    else:
        _expand(graph, node, table.get(target, target), args, kwargs, table)


def _is_aliasing_composite(target: Any) -> bool:
    """Composite operators that return views are always decomposed; the others only where the table says so."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return composite and any(argument.alias_info is not None for argument in target._schema.arguments)


def _expand(graph: Graph, node: Node, function: Callable[..., Any], args: Any, kwargs: Any, table: Table) -> None:
    """Put the operators that `function` consists of in the place of a node."""
    values, spec = pytree.tree_flatten((args, kwargs))
    sources = pytree.tree_flatten((node.args, node.kwargs), is_leaf=lambda leaf: isinstance(leaf, Node))[0]
    tensors = [index for index, value in enumerate(values) if isinstance(value, torch.Tensor)]

    def call(*given: Any) -> Any:
        full = list(values)
        for index, tensor in zip(tensors, given, strict=True):
            full[index] = tensor
        positional, named = pytree.tree_unflatten(full, spec)
        return function(*positional, **named)

    examples = [values[index] for index in tensors]
    if table:
        functional = torch.func.functionalize(call, remove="mutations")
        traced = make_fx(functional, decomposition_table=dict(table))(*examples)
    else:
        # Before dispatch, so that composite operators inside a pass's function stay whole.
        traced = make_fx(call, pre_dispatch=True)(*examples)
    _splice(graph, node, traced.graph, [sources[index] for index in tensors])


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
