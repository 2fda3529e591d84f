"""An ONNX node as the builders of its torch call see it, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import onnx
from numpy.typing import NDArray
from torch.fx import Node

from qexport.programs.onnx.values import Shapes


class UntranslatableError(Exception):
    """What keeps an ONNX node from becoming a torch call, as the end of a sentence about it."""


@dataclass(frozen=True)
class Call:
    """A `call_function` node of torch.fx."""

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Site:
    """One ONNX node.

    Attributes:
        node: in operator set 18 or a later one.
        constants: tensors that no image changes.
        shapes: of all tensors.
        operand: the torch node of a tensor.
    """

    node: onnx.NodeProto
    constants: Mapping[str, NDArray[Any]]
    shapes: Shapes
    operand: Callable[[str], Node]

    @cached_property
    def _attributes(self) -> dict[str, Any]:
        return {each.name: onnx.helper.get_attribute_value(each) for each in self.node.attribute}

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value, text decoded."""
        found = self._attributes.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def only(self, **supported: Any) -> None:
        """Raise `UntranslatableError` where an attribute has another value than the one that is supported."""
        for name, value in supported.items():
            found = self.attribute(name, value)
            if found != value:
                raise UntranslatableError(f"has no translation with {name} = {found}")

    def has(self, index: int) -> bool:
        """Whether there is an input of that number."""
        return index < len(self.node.input) and bool(self.node.input[index])

    def tensor(self, index: int) -> Node:
        """An input, computed or constant."""
        if not self.has(index):
            raise UntranslatableError(f"lacks input {index}")
        return self.operand(self.node.input[index])

    def optional(self, index: int) -> Node | None:
        """An input, None where it is left out."""
        return self.tensor(index) if self.has(index) else None

    def constant(self, index: int) -> NDArray[Any] | None:
        """An input that no image changes, None where it is left out or empty."""
        if not self.has(index):
            return None
        array = self.constants.get(self.node.input[index])
        if array is None:
            raise UntranslatableError(f"has no translation with a computed input {index}")
        return array if array.size else None

    def integers(self, index: int) -> list[int] | None:
        """An input that no image changes as whole numbers."""
        array = self.constant(index)
        return None if array is None else [int(number) for number in array.reshape(-1)]

    def is_constant(self, index: int) -> bool:
        """Whether an input is there and the same for every image."""
        return self.has(index) and self.node.input[index] in self.constants

    def shape(self, index: int = 0) -> tuple[int, ...]:
        """An input's shape."""
        name = self.node.input[index]
        return tuple(self.constants[name].shape) if name in self.constants else self.shapes[name][0]

    @property
    def made(self) -> tuple[int, ...]:
        """The first result's shape."""
        return self.shapes[self.node.output[0]][0]

    def images_only(self, index: int = 0) -> None:
        """Raise `UntranslatableError` where an input has not the four dimensions of an image."""
        if len(self.shape(index)) != 4:
            raise UntranslatableError(f"has no translation in {len(self.shape(index))} dimensions")


Builder = Callable[[Site], Call]


def same_batch(given: Sequence[int], made: Sequence[int]) -> list[int]:
    """A shape to give a tensor, with as many images as it has, not as many as there were when shapes were noted."""
    kept = bool(given) and bool(made) and given[0] == made[0]
    return [-1, *made[1:]] if kept and 0 not in made else list(made)
