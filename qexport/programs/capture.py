"""Capture a module as a float program: `torch.export`, one form, names, and proof that nothing has changed.

`normalise` gives the graph one form, however the model was written, and renames every node after the module that it
came from.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qexport.data.input_form import InputSpec
from qexport.errors import ConversionError, InputError, first_line
from qexport.programs.bounded_run import Bounded
from qexport.programs.captured_graph import CapturedGraph
from qexport.programs.classifier import ClassifierProgram
from qexport.programs.damage import refuse_damaged, refuse_endless
from qexport.programs.heads import DetectionProgram
from qexport.programs.naming import bias_of, joins_constants, operation_of, region_of, tensor_inputs, weight_of
from qexport.programs.normalise import normalise
from qexport.programs.program import (
    INPUT,
    Program,
    RawNames,
    Region,
    Value,
    every_output,
    multiply_accumulates,
    read_by_decode,
)
from qexport.programs.rtdetr import QueryProgram
from qexport.programs.token_layers import Exact

MAX_IMAGES = 1024
"""Largest batch of a dynamic program."""
SAME_ROWS = 0.9
"""Share of detections that capture must keep as they are: far down the list scores tie, and rounding orders them."""


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
        TooLargeError: the module computes more than networks do.
    """
    refuse_damaged(module.named_parameters(), "the model")
    # torch.export takes a size of 1 for a constant.
    count = 2 if dynamic else batch
    # A smooth picture: pixels of noise drive untrained layers so far out that rounding alone decides what is best.
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(0))
    example = nn.functional.interpolate(coarse, imgsz, mode="bilinear")
    with torch.no_grad():
        with Bounded(example.nbytes):
            expected = module(example.clone())  # a model may write into its input
        refuse_endless(every_output(expected), "the model")
        graph = _trace(module, example, dynamic)
        normalise(graph, INPUT, regions_of(module))
        _check_same(expected, graph(example.clone()), rows=module.decode.layout.end2end)
    made = CapturedGraph(graph)
    values = {value.name: value for value in _describe(graph)}
    raw = _raw_names(graph, values, len(module.decode.layout.strides))
    layout = replace(module.decode.layout, imgsz=imgsz, classes=values[raw.scores[0]].shape[1])
    return Program(
        graph=made,
        values=values,
        raw=raw,
        layout=layout,
        input=InputSpec(imgsz, 1 if dynamic else batch, channels, dynamic, layout.preprocess),
        fingerprint=made.fingerprint(),
    )


def regions_of(module: nn.Module) -> dict[str, Region]:
    """Path of a module → region of all that is computed in it, where that is not the body; names decide nothing."""
    exact = (path for path, part in module.named_modules() if isinstance(part, Exact))
    return {"decode": Region.DECODE, **dict.fromkeys(exact, Region.EXACT)}


def batch_shapes(dynamic: bool) -> Any:
    """What `torch.export` is told of the input's shape: nothing, or that the number of images is open."""
    return ({0: torch.export.Dim("batch", min=1, max=MAX_IMAGES)},) if dynamic else None


def _trace(module: nn.Module, example: Tensor, dynamic: bool) -> GraphModule:
    try:
        exported = torch.export.export(module, (example,), dynamic_shapes=batch_shapes(dynamic), strict=False)
        graph = exported.module(check_guards=False)
    except (RuntimeError, TypeError, ValueError, torch._dynamo.exc.Unsupported) as error:
        raise InputError(f"the model cannot be traced ({first_line(error)})", "please report this model") from error
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
            region=region_of(node),
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
    if not weight_of(node) and operation_of(node) != "matmul":
        return 0
    sides: Any = node.args[:2]
    given, kernel = (_shape(side.meta["val"]) if "val" in side.meta else () for side in sides)
    return multiply_accumulates(operation_of(node), _shape(node.meta["val"]), given, kernel)


def _raw_names(graph: GraphModule, values: dict[str, Value], levels: int) -> RawNames:
    """Boxes of each level, then class logits of each, then extras; a classifier has logits alone."""
    raw, prototypes = read_by_decode(values), _prototypes(graph, values)
    if not levels:
        return RawNames((), raw, (), prototypes)
    return RawNames(raw[:levels], raw[levels : 2 * levels] or raw, raw[2 * levels :], prototypes)


def _prototypes(graph: GraphModule, values: dict[str, Value]) -> str:
    """The body value that is an output itself, "" if there is none."""
    made = graph.graph.output_node().all_input_nodes
    return next((node.name for node in made if values[node.name].region is Region.BODY), "")


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
