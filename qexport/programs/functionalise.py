"""Rewrite what writes in place as what computes a new value: the same program, however a model was written.

`torch.export` keeps in-place operators. Each becomes its functional variant, and whatever reads the overwritten memory
afterwards, by whatever name or view, reads the new value. `torch.func.functionalize` does the same while it traces, but
takes apart what this program keeps whole; here operators, their order and their module stacks stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from qexport.errors import InputError
from qexport.programs.aliases import overlap, place_of, storage_of, written_through

aten = torch.ops.aten

REMEDY = "write that layer out of place"


def functionalise(graph: GraphModule) -> None:
    """Change a graph in place so that nothing in it is overwritten.

    Raises:
        InputError: a model writes into its own weights or buffers, or in a way that has no functional form.
    """
    if any(_is_mutable(node) for node in graph.graph.nodes):
        _Rewriting(graph).run()
        graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()


def _is_mutable(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and bool(schema.is_mutable)


@dataclass
class _Memory:
    """One storage, as it is at some point of the program.

    Attributes:
        parents: tensors that lie in it, in order of computation → the one that each is a view of.
        current: tensor → what computes its elements as they are now; one left out is viewed again when it is read.
    """

    parents: dict[Node, Node | None] = field(default_factory=dict)
    current: dict[Node, Node] = field(default_factory=dict)

    def path(self, tensor: Node) -> list[Node]:
        """A tensor, what it is a view of, and so on."""
        parent = self.parents[tensor]
        return [tensor, *(self.path(parent) if parent is not None else ())]


class _Rewriting:
    """One pass over a graph in order of computation.

    Tensors are named by the nodes of the captured graph; what computes them now may be another node.
    """

    def __init__(self, graph: GraphModule) -> None:
        self.graph = graph.graph
        self.memories: dict[int, _Memory] = {}
        self.arguments: dict[Node, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.position = next(iter(self.graph.nodes))

    def run(self) -> None:
        """Rewrite every node."""
        overwriting = []
        for node in list(self.graph.nodes):
            self.position = node
            self.arguments[node] = node.args, node.kwargs
            node.args, node.kwargs = torch.fx.map_arg((node.args, node.kwargs), self._now)
            if _is_mutable(node) and torch.Tag.inplace_view in node.target.tags:
                node.target = _functional_variant(node)  # nothing is written, the tensor is only seen another way
            _keep_possible(node)
            self._remember(node)
            if _is_mutable(node):
                self._overwrite(node)
                overwriting.append(node)
        for node in reversed(overwriting):
            self.graph.erase_node(node)

    def _now(self, tensor: Node) -> Node:
        """What computes the elements of a tensor as they are now."""
        memory = self.memories.get(storage_of(tensor) or 0)
        if memory is None:
            return tensor
        if tensor not in memory.current:
            memory.current[tensor] = self._viewed_again(tensor, memory.parents[tensor])
        return memory.current[tensor]

    def _viewed_again(self, view: Node, parent: Node | None) -> Node:
        if parent is None:
            raise InputError(f"the model writes into memory that {view.name} shares with others", REMEDY)
        source = self._now(parent)
        if place_of(view.meta["val"]) == place_of(parent.meta["val"]):
            return source

        def again(node: Node) -> Node:
            """The parent as it is now; a list of its parts is made again, too; sizes are what they were."""
            if _is_list(node):
                return self._made(node, node.target, *torch.fx.map_arg(self.arguments[node], again))
            return source if node is parent else node

        args, kwargs = torch.fx.map_arg(self.arguments[view], again)
        return self._made(view, view.target, args, kwargs)

    def _made(self, like: Node, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Node:
        """A new node at this place, of the module of another one."""
        with self.graph.inserting_before(self.position):
            made = self.graph.call_function(target, args, dict(kwargs or {}))
        made.meta = dict(like.meta)
        _keep_possible(made)
        made.meta["val"] = _traced(made)
        return made

    def _remember(self, node: Node) -> None:
        """Note in which memory a tensor lies, and what it is a view of."""
        storage = storage_of(node)
        if storage is None or node.op == "output":
            return
        memory = self.memories.setdefault(storage, _Memory())
        sources = self._tensors(self.arguments[node])
        memory.parents[node] = next((source for source in sources if source in memory.parents), None)
        memory.current[node] = node

    def _tensors(self, arguments: Any) -> Iterator[Node]:
        """Tensors among arguments; those that a list was made of in place of the list."""
        found: list[Node] = []
        torch.fx.map_arg(arguments, found.append)
        for node in found:
            yield from self._tensors(self.arguments[node]) if _is_list(node) else (node,)

    def _overwrite(self, node: Node) -> None:
        """Compute what an operator would write, and let all that share the memory have it."""
        name = _written_argument(node)
        tensor = self._written_tensor(node, name)
        new = self._written_value(node, name)
        storage = storage_of(tensor)
        assert storage is not None
        memory = self.memories[storage]
        path = memory.path(tensor)
        if path[-1].op == "get_attr":
            raise InputError(
                f"the model writes into its own {path[-1].target}: results would depend on earlier images", REMEDY
            )
        before = [self._now(whole) for whole in path[1:]]
        changed = {tensor: new}
        for view, whole, viewed in zip(path, path[1:], before, strict=False):
            changed[whole] = self._whole(node, view, whole, viewed, changed[view])
        place = place_of(tensor.meta["val"])
        kept = {one: now for one, now in memory.current.items() if not overlap(place_of(one.meta["val"]), place)}
        same = {one: new for one in memory.parents if place_of(one.meta["val"]) == place}
        memory.current = {**kept, **same, **changed}

    def _whole(self, node: Node, view: Node, whole: Node, viewed: Node, new: Node) -> Node:
        if place_of(view.meta["val"]) == place_of(whole.meta["val"]):
            return new

        def make(target: Any, *args: Any) -> Node:
            return self._made(node, target, args)

        return written_through(make, view, self.arguments[view][0], whole, viewed, new)

    def _written_tensor(self, node: Node, name: str) -> Node:
        args, kwargs = self.arguments[node]
        names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
        tensor: Node = kwargs[name] if name in kwargs else args[names.index(name)]
        return tensor

    def _written_value(self, node: Node, name: str) -> Node:
        """What an operator would write, of the shape and type of the tensor that it would be written to."""
        traced: Tensor = node.meta["val"]
        kwargs = {key: value for key, value in node.kwargs.items() if key != name}
        new: Node
        if node.target is aten.copy_.default:
            new = node.args[1]  # type: ignore[assignment]
        elif node.target is aten.fill_.Scalar or node.target is aten.zero_.default:
            new = self._made(node, aten.full_like.default, (node.args[0], *(node.args[1:] or (0,))))
        else:
            new = self._made(node, _functional_variant(node), node.args, kwargs)
        if new.meta["val"].dtype != traced.dtype:
            new = self._made(node, aten.to.dtype, (new, traced.dtype))
        if new.meta["val"].shape != traced.shape:
            new = self._made(node, aten.expand_as.default, (new, node.args[0]))
        return new


def _is_list(node: Node) -> bool:
    return isinstance(node.meta.get("val"), list | tuple)


def _written_argument(node: Node) -> str:
    """The only argument that an operator writes to."""
    target: Any = node.target
    written = [a.name for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if len(written) != 1 or not isinstance(node.meta.get("val"), Tensor):
        raise InputError(f"{target} writes to several tensors at once: it has no form out of place", REMEDY)
    return str(written[0])


def _functional_variant(node: Node) -> Any:
    """The operator that computes what an in-place one writes: of the same name and arguments, and without effect."""
    target: Any = node.target
    schema = target._schema
    name = schema.name.removeprefix("aten::").removesuffix("_")
    name = name.replace("__i", "__", 1) if name.startswith("__i") else name
    wanted = [(a.name, str(a.type)) for a in schema.arguments if not a.is_out]
    packet = getattr(aten, name, None)
    for overload in packet.overloads() if packet else ():
        found = getattr(packet, overload)
        arguments = [(a.name, str(a.type)) for a in found._schema.arguments]
        if not found._schema.is_mutable and arguments == wanted:
            return found
    raise InputError(f"{target} has no form out of place", REMEDY)


def _keep_possible(node: Node) -> None:
    """Make a reshape of a view: a new value need not lie in memory as the overwritten one did."""
    if node.target is not aten.view.default:
        return
    try:
        _traced(node)
    except (RuntimeError, ValueError):
        node.target = aten.reshape.default


def _traced(node: Node) -> Any:
    """What a node gives, computed on fake tensors."""
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"])
    target: Any = node.target
    return target(*args, **kwargs)
