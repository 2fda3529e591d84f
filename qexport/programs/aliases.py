"""Which tensors of a captured graph lie in the same memory, and how what is written through one is seen by another.

Traced values of `torch.export` are fake tensors with real storages, offsets and strides, so nothing has to be guessed
from the names of operators: a reshape may or may not be a view.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qexport.errors import InputError

aten = torch.ops.aten

Make = Callable[..., Node]
"""(target, positional arguments) to a new node."""

PERMUTED_BACK: dict[Any, Callable[..., tuple[Any, ...]]] = {
    aten.permute.default: lambda order: (aten.permute.default, [list(order).index(axis) for axis in range(len(order))]),
    aten.transpose.int: lambda one, other: (aten.transpose.int, one, other),
    aten.movedim.int: lambda source, place: (aten.movedim.int, place, source),
    aten.t.default: lambda: (aten.t.default,),
    aten.mT.default: lambda: (aten.mT.default,),
}
"""Operators that give a tensor other axes → the operator, and its arguments behind the tensor, that undoes it."""
RESHAPES = frozenset(
    {
        aten.view.default,
        aten.reshape.default,
        aten.flatten.using_ints,
        aten.unflatten.int,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.unsqueeze.default,
        aten.view_as.default,
        aten.reshape_as.default,
    }
)


@dataclass(frozen=True)
class Place:
    """Where a tensor's elements lie in its storage; of an open number of images, those of the traced example."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def elements(self, count: int) -> Tensor:
        """Which elements of a storage are its own, as `count` booleans."""
        mine = torch.zeros(count, dtype=torch.bool)
        mine.as_strided(self.shape, self.strides, self.offset).fill_(True)
        return mine

    @property
    def end(self) -> int:
        """One behind the last element."""
        return self.offset + 1 + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))


def place_of(traced: Tensor) -> Place:
    """Read a traced tensor's place."""
    shape = tuple(map(_number, traced.shape))
    # Along an axis of one element nobody steps, and views differ there in nothing but a number.
    strides = tuple(_number(s) if n > 1 else 0 for n, s in zip(shape, traced.stride(), strict=True))
    return Place(traced.dtype, _number(traced.storage_offset()), shape, strides)


def _number(size: int | torch.SymInt) -> int:
    return size if isinstance(size, int) else int(size.node.hint)


def overlap(one: Place, other: Place) -> bool:
    """Whether two tensors of one storage have an element in common."""
    if 0 in (*one.shape, *other.shape) or one.end <= other.offset or other.end <= one.offset:
        return False
    if one.dtype != other.dtype:
        return True
    count = max(one.end, other.end)
    return bool((one.elements(count) & other.elements(count)).any())


def storage_of(node: Node) -> int | None:
    """A name for the memory that a node's tensor lies in, None for a node that gives no tensor."""
    traced = node.meta.get("val")
    return traced.untyped_storage()._cdata if isinstance(traced, Tensor) else None


def written_through(make: Make, view: Node, arguments: tuple[Any, ...], whole: Node, viewed: Node, new: Node) -> Node:
    """What a tensor has become when something was written through a view of it.

    Args:
        view: the view in the captured graph.
        arguments: the view's own.
        whole: the tensor in the captured graph that it is a view of.
        viewed: what computes that tensor as it was before.
        new: what was written.

    Raises:
        InputError: the view is of a kind that cannot be undone.
    """
    target = view.target
    if target in PERMUTED_BACK:
        undo, *rest = PERMUTED_BACK[target](*arguments[1:])
        return make(undo, new, *rest)
    if target in RESHAPES:
        shape = whole.meta["val"].shape
        return make(aten.reshape.default, new, [n if isinstance(n, int) else -1 for n in shape])
    if target is aten.select.int or _takes_apart(view, aten.unbind.int):
        axis = arguments[1] if target is aten.select.int else _list_argument(arguments[0], 1, 0)
        rank = whole.meta["val"].ndim
        return _part_replaced(make, view, whole, viewed, make(aten.unsqueeze.default, new, axis % rank), axis % rank)
    if target in (aten.slice.Tensor, aten.narrow.default, operator.getitem):
        sizes = zip(place_of(view.meta["val"]).shape, place_of(whole.meta["val"]).shape, strict=True)
        axis = next(axis for axis, (part, all_of_it) in enumerate(sizes) if part != all_of_it)
        return _part_replaced(make, view, whole, viewed, new, axis)
    raise InputError(
        f"the model writes through {target}, which has no form out of place", "write that layer out of place"
    )


def _takes_apart(view: Node, target: Any) -> bool:
    return view.target is operator.getitem and isinstance(view.args[0], Node) and view.args[0].target is target


def _list_argument(parts: Any, position: int, default: int) -> int:
    return int(parts.args[position]) if len(parts.args) > position else default


def _part_replaced(make: Make, view: Node, whole: Node, viewed: Node, new: Node, axis: int) -> Node:
    """A tensor, some of whose elements along an axis are replaced: concatenated of what lies before, new, behind."""
    part, all_of_it = place_of(view.meta["val"]), place_of(whole.meta["val"])
    total, stride = all_of_it.shape[axis], all_of_it.strides[axis]
    count, start = place_of(new.meta["val"]).shape[axis], (part.offset - all_of_it.offset) // stride
    step = part.strides[axis] // stride if count > 1 else 1
    if step != 1:
        return make(aten.slice_scatter.default, viewed, new, axis, start, start + (count - 1) * step + 1, step)
    sizes = [start, count, total - start - count]
    pieces = make(aten.split_with_sizes.default, viewed, sizes, axis)
    around = [make(operator.getitem, pieces, number) if sizes[number] else None for number in (0, 2)]
    return make(aten.cat.default, [piece for piece in (around[0], new, around[1]) if piece is not None], axis)
