"""One form for a captured graph, however the model was written.

Nothing writes in place; SiLU is a sigmoid and a product, because runtimes quantise the two separately; what computes
nothing is left out; every node has its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from qexport.programs.functionalise import functionalise
from qexport.programs.naming import operation_of, region_of, rename
from qexport.programs.program import Region

aten = torch.ops.aten


def normalise(graph: GraphModule, placeholder: str, regions: Mapping[str, Region] = {}) -> None:
    """Change a captured graph in place; its input is called `placeholder`.

    Args:
        regions: path of a module → region of all that is computed in it; the rest is the body.

    Raises:
        InputError: it overwrites something in a way that has no form out of place.
    """
    _drop_guards(graph)
    functionalise(graph)
    _split_silu(graph)
    _spell_clamps(graph)
    _drop_copies(graph)
    rename(graph, placeholder, regions)
    _fold_constants(graph)
    _join_reshapes(graph)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _drop_guards(graph: GraphModule) -> None:
    for node in list(graph.graph.nodes):
        if node.op == "call_module" and not node.users:
            graph.graph.erase_node(node)


def _split_silu(graph: GraphModule) -> None:
    """Replace x.silu() by x * sigmoid(x)."""
    for node in list(graph.graph.find_nodes(op="call_function", target=aten.silu.default)):
        source = node.args[0]
        with graph.graph.inserting_before(node):
            gate = graph.graph.call_function(aten.sigmoid.default, (source,))
            product = graph.graph.call_function(aten.mul.Tensor, (source, gate))
        for made in (gate, product):
            made.meta = dict(node.meta)
        node.replace_all_uses_with(product)
        graph.graph.erase_node(node)


def _spell_clamps(graph: GraphModule) -> None:
    """Write every clamp between two numbers as `hardtanh`, and one at zero as `relu`: PyTorch has many words for it."""
    for node in graph.graph.nodes:
        limits = _clamp_limits(node)
        if limits == (0.0, None):
            node.target, node.args, node.kwargs = aten.relu.default, node.args[:1], {}
        elif limits is not None and None not in limits:
            node.target, node.args, node.kwargs = aten.hardtanh.default, (node.args[0], *limits), {}


def _clamp_limits(node: Node) -> tuple[Any, Any] | None:
    """A clamp's limits where both are plain numbers or left out; None for anything else, such as integers' clamps."""
    traced = node.meta.get("val")
    if not isinstance(traced, Tensor) or not traced.is_floating_point():
        return None
    found: list[Any] = [*node.args[1:], None, None]
    low, high = node.kwargs.get("min", found[0]), node.kwargs.get("max", found[1])
    known: dict[Any, tuple[Any, Any]] = {
        aten.relu6.default: (0.0, 6.0),
        aten.clamp.default: (low, high),
        aten.clip.default: (low, high),
        aten.clamp_min.default: (low, None),
        aten.hardtanh.default: (-1.0 if low is None else low, 1.0 if high is None else high),
    }
    given = known.get(node.target, ("", ""))
    if any(limit is not None and not isinstance(limit, int | float) for limit in given):
        return None
    return tuple(None if limit is None else float(limit) for limit in given)  # type: ignore[return-value]


def _drop_copies(graph: GraphModule) -> None:
    """Leave out what gives its input as it is, or orders memory only: no file has it."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not _only_copies(node):
            continue
        source: Any = node.args[0]
        for reader in node.users:
            if reader.target is aten.view.default:
                reader.target = aten.reshape.default
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)


COPIES = frozenset({aten.contiguous.default, aten.clone.default, aten.detach.default, aten.alias.default})
DROPOUTS = frozenset({aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default})


def _only_copies(node: Node) -> bool:
    if node.target in DROPOUTS:
        return not node.args[2]  # not while training
    if node.target in (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default):
        source: Any = node.args[0]
        return isinstance(source.meta.get("val"), Tensor) and source.meta["val"].dtype == node.meta["val"].dtype
    return node.target in COPIES


def _fold_constants(graph: GraphModule) -> None:
    """Compute once what is made of parameters alone, such as a factor brought into shape or a normalised weight.

    It is a constant of its readers then, as any other, and no value that could be calibrated. The decode keeps its
    arithmetic: formats change its constants.
    """
    for node in list(graph.graph.nodes):
        if not _made_of_parameters(node) or region_of(node) is Region.DECODE:
            continue
        with torch.no_grad():
            arguments = map_arg((node.args, node.kwargs), lambda each: attrgetter(str(each.target))(graph))
            value = node.target(*arguments[0], **arguments[1]).clone()
        name = f"folded_{node.name}"
        if value.is_floating_point():
            graph.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))
        else:
            graph.register_buffer(name, value)
        with graph.graph.inserting_before(node):
            constant = graph.graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        graph.graph.erase_node(node)


def _made_of_parameters(node: Node) -> bool:
    """Whether a node computes one tensor from parameters and buffers, and from nothing else."""
    sources = node.all_input_nodes
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor) or not sources:
        return False
    random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return not random and all(source.op == "get_attr" for source in sources)


def _join_reshapes(graph: GraphModule) -> None:
    """Make one of a reshape and the reshape that alone reads it: converters do, and no name would be left."""
    for node in list(graph.graph.nodes):
        if node.target not in (aten.view.default, aten.reshape.default) or region_of(node) is not Region.BODY:
            continue
        source: Any = node.args[0]
        if operation_of(source) == "reshape" and len(source.users) == 1:
            node.target = aten.reshape.default
            node.args = (source.args[0], *node.args[1:])
            graph.graph.erase_node(source)
