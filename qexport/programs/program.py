"""The float program: one graph with a stable name for every value.

`torch.export` captures the module; `normalise` gives the graph one form, however the model was written, and renames
every node after the module that it came from. Those names are the keys of calibration tables, plans, artifacts and
reports, so they must not depend on the order of capture or on library versions.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexport.data.input_form import UNIT, InputForm
from qexport.detections.layout import MAX_DETECTIONS, HeadLayout
from qexport.errors import ConversionError, InputError
from qexport.programs.classifier import ClassifierProgram
from qexport.programs.damage import refuse_damaged, refuse_endless
from qexport.programs.float_decode import NOTHING, Extras
from qexport.programs.heads import DetectionProgram
from qexport.programs.naming import bias_of, joins_constants, operation_of, region_of, tensor_inputs, weight_of
from qexport.programs.normalise import normalise
from qexport.programs.rtdetr import QueryProgram

INPUT = "images"
MAX_IMAGES = 1024
"""Largest batch of a dynamic program."""
SAME_ROWS = 0.9
"""Share of detections that capture must keep as they are: far down the list scores tie, and rounding orders them."""

MOVES_DATA = frozenset({"part", "cat", "reshape", "transpose", "resize", "max_pool"})
"""Operations whose result holds only elements of their inputs: calibration need not watch them."""


@dataclass(frozen=True)
class Value:
    """One tensor of the program.

    Attributes:
        name: stable key, made from the module path and the operation.
        operation: entry of `OPERATION_NAMES`, "input", or the ATen name.
        inputs: names of the tensors that it is computed from, weights left out.
        weight: parameter that a convolution or linear layer multiplies with, "" for others.
        shape: as traced, batch first.
        region: "body", "exact" for what stays float among it, "decode" for the float tail behind the raw outputs, or in
            a file's graph "shape" for what is not made of floats.
        macs: multiply-accumulates to compute it once.
        bias: parameter that a layer adds, "" where there is none.
        constants: constants are joined with what is computed, such as a class token.
    """

    name: str
    operation: str
    inputs: tuple[str, ...]
    weight: str
    shape: tuple[int, ...]
    region: str
    macs: int
    bias: str = ""
    constants: bool = False


@dataclass(frozen=True)
class Program:
    """The captured float program.

    Attributes:
        graph: callable, images (batch, channels, height, width) to the decoded output; a `GraphModule`, or a
            `FileGraph` of a file.
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
    """

    graph: Any
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

    def with_parameters(self, changed: Mapping[str, Tensor]) -> Program:
        """Return the program with other weights or biases, by path; all others are its own tensors.

        Raises:
            ConversionError: the graph came as a file.
            KeyError: there is no such parameter.
            ValueError: of another shape.
        """
        if not isinstance(self.graph, GraphModule):
            raise ConversionError("the weights of a graph that came as a file cannot be changed", "give a checkpoint")
        graph = shared_copy(self)
        for path, tensor in changed.items():
            owner, _, name = path.rpartition(".")
            known = dict(graph.named_parameters())[path]
            if known.shape != tensor.shape:
                raise ValueError(f"{path} is {tuple(known.shape)}, not {tuple(tensor.shape)}")
            setattr(graph.get_submodule(owner), name, nn.Parameter(tensor.to(known.dtype), requires_grad=False))
        return replace(self, graph=graph, fingerprint=_fingerprint(graph))

    @cached_property
    def readers(self) -> dict[str, tuple[Value, ...]]:
        """For every value the values computed from it."""
        found: dict[str, list[Value]] = {name: [] for name in self.values}
        for value in self.values.values():
            for source in value.inputs:
                found[source].append(value)
        return {name: tuple(readers) for name, readers in found.items()}


def capture(
    module: DetectionProgram | ClassifierProgram | QueryProgram,
    imgsz: tuple[int, int],
    batch: int = 1,
    channels: int = 3,
    dynamic: bool = False,
) -> Program:
    """Trace `module` at a fixed shape and check that the program computes what the module does.

    Args:
        dynamic: leave the number of images open; `batch` is then 1.

    Raises:
        InputError: the model cannot be traced.
        ConversionError: the program's output differs from the module's.
    """
    refuse_damaged(module.named_parameters(), "the model")
    # torch.export takes a size of 1 for a constant.
    count = 2 if dynamic else batch
    # A smooth picture: pixels of noise drive untrained layers so far out that rounding alone decides what is best.
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    example = nn.functional.interpolate(coarse, imgsz, mode="bilinear")
    with torch.no_grad():
        expected = module(example.clone())  # a model may write into its input
        refuse_endless(every_output(expected), "the model")
        graph = _trace(module, example, dynamic)
        normalise(graph, INPUT)
        _check_same(expected, graph(example.clone()), rows=module.decode.end2end or module.decode.nms)
    values = {value.name: value for value in _describe(graph)}
    raw = _raw_outputs(values)
    levels = len(module.decode.levels)
    return Program(
        graph=graph,
        values=values,
        raw_boxes=raw[:levels],
        raw_scores=raw[levels : 2 * levels] or raw,
        raw_extras=raw[2 * levels :] if levels else (),
        prototypes=_prototypes(graph, values),
        extras=getattr(module.decode, "extras", NOTHING),
        head=_head(module),
        strides=module.decode.levels,
        reg_max=module.decode.reg_max,
        rows=getattr(module.decode, "rows", 0),
        final=module.decode.end2end or module.decode.nms,
        imgsz=imgsz,
        batch=1 if dynamic else batch,
        fingerprint=_fingerprint(graph),
        dynamic=dynamic,
    )


def _head(module: DetectionProgram | ClassifierProgram | QueryProgram) -> str:
    if isinstance(module, ClassifierProgram | QueryProgram):
        return "queries" if isinstance(module, QueryProgram) else "classifier"
    return "end2end" if module.decode.end2end else "one2many"


def batch_shapes(dynamic: bool) -> Any:
    """What `torch.export` is told of the input's shape: nothing, or that the number of images is open."""
    return ({0: torch.export.Dim("batch", min=1, max=MAX_IMAGES)},) if dynamic else None


def _trace(module: nn.Module, example: Tensor, dynamic: bool) -> GraphModule:
    try:
        exported = torch.export.export(module, (example,), dynamic_shapes=batch_shapes(dynamic), strict=False)
        graph = exported.module(check_guards=False)
    except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.Unsupported) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"the model cannot be traced ({first})", "please report this model") from error
    assert isinstance(graph, GraphModule)
    return graph


def _describe(graph: GraphModule) -> Iterator[Value]:
    for node in graph.graph.nodes:
        traced = node.meta.get("val")
        if node.op not in ("call_function", "placeholder") or not isinstance(traced, Tensor):
            continue
        yield Value(
            name=node.name,
            operation=operation_of(node),
            inputs=tuple(n.name for n in tensor_inputs(node)),
            weight=weight_of(node),
            shape=_shape(traced),
            region=region_of(node.name),
            macs=_macs(node),
            bias=bias_of(node),
            constants=joins_constants(node),
        )


def _shape(traced: Tensor) -> tuple[int, ...]:
    """A tensor's shape; what depends on the number of images is as for one."""
    return tuple(map(_for_one_image, traced.shape))


def _for_one_image(size: int | torch.SymInt) -> int:
    if not isinstance(size, torch.SymInt):
        return size
    expression: Any = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _macs(node: Node) -> int:
    elements = math.prod(_shape(node.meta["val"]))
    if weight_of(node):
        weight: Any = node.args[1]
        kernel = weight.meta["val"].shape if "val" in weight.meta else ()
        if operation_of(node) == "conv_transpose":  # (in, out, …): every element of the input meets all of the rest
            elements = math.prod(_shape(tensor_inputs(node)[0].meta["val"]))
        return elements * math.prod(map(int, kernel[1:]))
    if operation_of(node) == "matmul":
        left: Any = node.args[0]
        return elements * int(left.meta["val"].shape[-1])
    return 0


def copied(program: Program) -> GraphModule:
    """Return the float graph, a captured one, as a copy that may be changed."""
    assert isinstance(program.graph, GraphModule)
    return copy.deepcopy(program.graph)


def shared_copy(program: Program) -> GraphModule:
    """Return the float graph, a captured one, as a copy whose nodes may be changed and whose weights may not.

    They are the program's own tensors.
    """
    assert isinstance(program.graph, GraphModule)
    return GraphModule(program.graph, copy.deepcopy(program.graph.graph))


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


def _raw_outputs(values: dict[str, Value]) -> tuple[str, ...]:
    """Body values that the decode reads, in its order: boxes of each level, then class logits of each level."""
    raw: dict[str, None] = {}
    for value in values.values():
        if value.region == "decode":
            raw.update((name, None) for name in value.inputs if values[name].region == "body")
    return tuple(raw)


def _prototypes(graph: GraphModule, values: dict[str, Value]) -> str:
    """The body value that is an output itself, "" if there is none."""
    made = graph.graph.output_node().all_input_nodes
    return next((node.name for node in made if values[node.name].region == "body"), "")


def every_output(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A program's outputs, the detections first."""
    return (output,) if isinstance(output, Tensor) else tuple(output)


def _check_same(expected: Tensor | tuple[Tensor, ...], actual: Tensor | tuple[Tensor, ...], rows: bool = False) -> None:
    """Compare outputs; with `rows` the first one's are in order of their scores, and like scores may swap places."""
    for number, (one, other) in enumerate(zip(every_output(expected), every_output(actual), strict=True)):
        allowed = 1e-3 * max(1.0, float(one.abs().max()))
        errors = (one - other).abs()
        if rows and number == 0:
            errors = torch.cat((errors[..., 4].amax(dim=-1), errors.amax(dim=-1).quantile(SAME_ROWS, dim=-1)))
        error = float(errors.max())
        if not error <= allowed:
            raise ConversionError(
                f"the captured program differs from the model by {error:.3g}", "please report this model"
            )


def _fingerprint(graph: GraphModule) -> str:
    digest = hashlib.sha256(str(graph.graph).encode())
    for name, tensor in sorted(graph.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
