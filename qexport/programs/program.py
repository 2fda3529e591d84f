"""The float program: one graph with a stable name for every value.

Those names are the keys of calibration tables, plans, artifacts and reports, so they must not depend on the order of
capture or on library versions.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING

from qexport.data.input_form import InputSpec
from qexport.detections.layout import HeadLayout
from qexport.programs.graph import Graph

if TYPE_CHECKING:
    from torch import Tensor

INPUT = "images"

MOVES_DATA = frozenset({"part", "cat", "reshape", "transpose", "resize", "max_pool"})
"""Operations whose result holds only elements of their inputs: calibration need not watch them."""


class Region(str, Enum):
    """Part of a program that a value is in: only the body is quantised."""

    BODY = "body"
    EXACT = "exact"
    """Stays float among the body: steps cost more there than they save."""
    DECODE = "decode"
    """The float tail behind the raw outputs."""
    SHAPE = "shape"
    """Of a file's graph, what is not made of floats."""


@dataclass(frozen=True)
class Value:
    """One tensor of the program.

    Attributes:
        name: stable key, made from the module path and the operation.
        operation: entry of `OPERATION_NAMES`, "input", or the ATen name.
        inputs: names of the tensors that it is computed from, weights left out.
        weight: parameter that a convolution or linear layer multiplies with, "" for others.
        shape: as traced, batch first.
        region: said where the value is made, never read from its name.
        macs: multiply-accumulates to compute it once.
        bias: parameter that a layer adds, "" where there is none.
        constants: constants are joined with what is computed, such as a class token.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    weight: str
    shape: tuple[int, ...]
    region: Region
    macs: int
    bias: str = ""
    constants: bool = False

    @property
    def described(self) -> str:
        """Its name with what computes it, and the layer's weight where it has one."""
        return f"{self.name} ({self.operation}{f' with {self.weight}' if self.weight else ''})"


@dataclass(frozen=True)
class RawNames:
    """Names of the values that leave the body, which the decode reads.

    Attributes:
        boxes, scores, extras: of each level; the last are mask coefficients, keypoints or angles.
        prototypes: the value that is the second output, "" where there is one output.
    """

    boxes: tuple[str, ...]
    scores: tuple[str, ...]
    extras: tuple[str, ...] = ()
    prototypes: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        """Every one, in the order of the decode's arguments."""
        last = (self.prototypes,) if self.prototypes else ()
        return (*self.boxes, *self.scores, *self.extras, *last)


@dataclass(frozen=True)
class Program:
    """A float program.

    Attributes:
        graph: callable, images (batch, channels, height, width) to the decoded output.
        values: every tensor in order of computation, by name; shapes are those of one image where the batch is open.
        raw: where the body ends.
        layout: what the decoded output means.
        input: what goes in.
        fingerprint: SHA-256 over structure and weights.
        origin: fingerprint of the program as it was captured, "" where weights are as they were then.
        guessed: where the body ends was found by `qexport.programs.boundary`, not known from the head.
    """

    graph: Graph
    values: dict[str, Value]
    raw: RawNames
    layout: HeadLayout
    input: InputSpec
    fingerprint: str
    origin: str = ""
    guessed: bool = False

    @cached_property
    def readers(self) -> dict[str, tuple[Value, ...]]:
        """For every value the values computed from it."""
        return readers_of(self.values.values())

    @cached_property
    def exports(self) -> dict[Hashable, bytes]:
        """Forms of this program that are slow to make and wanted by several formats, by what they were made with.

        Empty at first: `qexport.lowering` fills it. They live as long as the program.
        """
        return {}

    def with_parameters(self, changed: Mapping[str, Tensor]) -> Program:
        """Return the program with other weights or biases, by the names that `Value.weight` and `Value.bias` have.

        Its fingerprint is another one, made of this one's origin and of the new weights; `origin` leads back. Values,
        their shapes and everything else stay as they are.

        Args:
            changed: float32, each of the shape of the parameter whose place it takes.

        Raises:
            KeyError: there is no such parameter.
            ValueError: of another shape or type.
        """
        if not changed:
            return self
        graph, origin = self.graph.with_parameters(changed), self.origin or self.fingerprint
        fingerprint = sha256(f"{origin} {graph.fingerprint()}".encode()).hexdigest()
        return replace(self, graph=graph, fingerprint=fingerprint, origin=origin)


def has_constant_operand(value: Value) -> bool:
    """Whether one side of a sum, difference or product is a number."""
    return value.operation in ("mul", "add", "sub") and len(value.inputs) < 2


def observed_sources(program: Program, name: str) -> tuple[str, ...]:
    """Return the values whose elements `name` consists of: itself, or what it was moved or gathered from.

    Where constants are among the elements it is itself: no other value holds them.
    """
    value = program.values[name]
    if value.operation not in MOVES_DATA or value.constants:
        return (name,)
    return tuple(dict.fromkeys(s for source in value.inputs for s in observed_sources(program, source)))


def every_output(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A program's outputs, the detections first."""
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def readers_of(values: Iterable[Value]) -> dict[str, tuple[Value, ...]]:
    """For every value those computed from it; values are in order of computation."""
    found: dict[str, list[Value]] = {}
    for value in values:
        found.setdefault(value.name, [])
        for source in value.inputs:
            found[source].append(value)
    return {name: tuple(each) for name, each in found.items()}


def read_by_decode(values: Mapping[str, Value]) -> tuple[str, ...]:
    """Body values that the decode reads, in its order."""
    decode = (value for value in values.values() if value.region is Region.DECODE)
    raw = (name for value in decode for name in value.inputs if values[name].region is Region.BODY)
    return tuple(dict.fromkeys(raw))


def multiply_accumulates(operation: str, made: tuple[int, ...], given: tuple[int, ...], kernel: tuple[int, ...]) -> int:
    """How many it takes to compute a value once.

    Args:
        operation: "conv", "conv_transpose", "linear" or "matmul".
        made, given: shapes of the value and of what is multiplied.
        kernel: shape of what it is multiplied with: (out, in / groups, …), transposed (in, out / groups, …).
    """
    if operation == "conv_transpose":  # every element of the input meets all of the rest
        return prod(given) * prod(kernel[1:])
    return prod(made) * (prod(kernel[1:]) if operation == "conv" else given[-1])
