"""The float program: one graph with a stable name for every value.

Those names are the keys of calibration tables, plans, artifacts and reports, so they must not depend on the order of
capture or on library versions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING

from qexport.data.input_form import UNIT, InputForm
from qexport.detections.layout import MAX_DETECTIONS, HeadLayout
from qexport.programs.float_decode import NOTHING, Extras
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


@dataclass(frozen=True)
class Program:
    """The captured float program.

    Attributes:
        graph: callable, images (batch, channels, height, width) to the decoded output.
        values: every tensor in order of computation, by name.
        raw_boxes, raw_scores, raw_extras: names of the per-level values that the decode reads; the last are mask
            coefficients, keypoints or angles.
        prototypes: name of the value that is the second output, "" where there is one output.
        extras: what `raw_extras` are.
        head: "end2end", "one2many", "classifier", or "queries" of RT-DETR; "unknown" where nobody says what the outputs
            mean.
        strides: pixels in a cell of each level.
        reg_max: bins of each box side's distribution; 1 where the side is a plain number.
        final: the output's rows are detections, (batch, 300, 6), and need no NMS.
        batch: images in one run; 1 where `dynamic`, and shapes are those of one image.
        fingerprint: SHA-256 over structure and weights.
        dynamic: any number of images can be run at once.
        form: what the network wants its pixels to be.
        guessed: where the body ends was found by `qexport.programs.boundary`, not known from the head.
        class_count: how many classes there are, where the raw scores do not say so.
        rows: how many detections there are in an image at most, 0 where nobody says.
        origin: fingerprint of the program as it was captured, "" where weights are as they were then.
    """

    graph: Graph
    values: dict[str, Value]
    raw_boxes: tuple[str, ...]
    raw_scores: tuple[str, ...]
    head: str
    strides: tuple[int, ...]
    reg_max: int
    final: bool
    imgsz: tuple[int, int]
    batch: int
    fingerprint: str
    dynamic: bool = False
    raw_extras: tuple[str, ...] = ()
    prototypes: str = ""
    extras: Extras = NOTHING
    form: InputForm = UNIT
    guessed: bool = False
    class_count: int = 0
    rows: int = 0
    origin: str = ""

    @property
    def classes(self) -> int:
        """How many there are."""
        return self.class_count or self.values[self.raw_scores[0]].shape[1]

    @property
    def preprocess(self) -> str:
        """How images become inputs: an entry of `qexport.data.images.PREPROCESS`."""
        return "centre crop" if self.form.crop else self.layout.preprocess

    @property
    def layout(self) -> HeadLayout:
        """What its decoded output means."""
        return HeadLayout(
            strides=self.strides,
            imgsz=self.imgsz,
            classes=0 if self.head == "unknown" else self.classes,
            reg_max=self.reg_max,
            end2end=self.final,
            extras=self.extras.kind,
            shape=self.extras.shape,
            direct=self.extras.direct,
            head=self.head,
            max_detections=self.rows or MAX_DETECTIONS,
        )

    @property
    def channels(self) -> int:
        """How many the input has."""
        shape = self.values[INPUT].shape
        return shape[-1] if self.form.channels_last else shape[1]

    @property
    def image_form(self) -> tuple[str, int]:
        """What is to be made of an image: how it is brought to size, and how many channels it has."""
        return self.preprocess, self.channels

    @property
    def raw_outputs(self) -> tuple[str, ...]:
        """Every body value that leaves the body."""
        last = (self.prototypes,) if self.prototypes else ()
        return (*self.raw_boxes, *self.raw_scores, *self.raw_extras, *last)

    @cached_property
    def readers(self) -> dict[str, tuple[Value, ...]]:
        """For every value the values computed from it."""
        found: dict[str, list[Value]] = {name: [] for name in self.values}
        for value in self.values.values():
            for source in value.inputs:
                found[source].append(value)
        return {name: tuple(readers) for name, readers in found.items()}

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
