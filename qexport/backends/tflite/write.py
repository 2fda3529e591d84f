"""How a `.tflite` file is written in each precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import GraphModule

from qexport.backends.tflite.convert import convert, silence
from qexport.backends.tflite.file import (
    add_float_input,
    add_float_outputs,
    check_integers,
    convert_io_to_uint8,
    name_outputs,
    name_prototypes,
)
from qexport.backends.tflite.float_operators import add_barriers, remove_barriers
from qexport.backends.tflite.graph_fixes import prepare_for_litert
from qexport.backends.tflite.int16 import quantise_activations_to_int16
from qexport.backends.tflite.integer_only import raw_program
from qexport.backends.tflite.outer_form import asked_form, formed
from qexport.backends.tflite.weight_compression import compress_weights, kept_layers
from qexport.planning.plan import QuantPlan
from qexport.programs.captured_graph import copied
from qexport.programs.program import INPUT
from qexport.programs.tags import tag_values
from qexport.simulation.rewrite import simulated

if TYPE_CHECKING:
    from qexport.lowering.request import Lowering

LEFT_TO_CONVERTER = frozenset({"conv_transpose"})
"""Of these the converter makes integers with the plan's own scales; verification compares them."""


def write_float(request: Lowering, path: Path) -> None:
    """FP32 throughout."""
    _write(request, path, prepare_for_litert(prepared(request)), _example(request))
    _name_prototypes(request, path)


def write_compressed(request: Lowering, path: Path) -> None:
    """FP32 arithmetic, but weights in FP16 ("fp16") or INT8 ("int8-dynamic")."""
    write_float(request, path)
    kept = kept_layers(request.program, request.plan, request.float32)
    path.write_bytes(compress_weights(path.read_bytes(), request.target.precision, kept))


def write_integers(request: Lowering, path: Path) -> None:
    """INT8 kernels where the plan says so, between float input and outputs."""
    program, plan = request.program, _plan_of(request)
    graph = prepare_for_litert(simulated(program, plan, prepared(request), float_weights=LEFT_TO_CONVERTER))
    add_barriers(graph, program, plan)
    _write(request, path, graph, _example(request), quantised=True)
    _name_prototypes(request, path)
    remove_barriers(path)
    add_float_input(path)
    add_float_outputs(path)


def write_integers_only(request: Lowering, path: Path) -> None:
    """No float anywhere: channels come last, and the file ends at the raw outputs."""
    program, plan = request.program, _plan_of(request)
    raw = raw_program(copied(program), program)
    graph = prepare_for_litert(simulated(program, plan, raw, float_weights=LEFT_TO_CONVERTER))
    _write(request, path, graph, _example(request), quantised=True)
    check_integers(path, program)
    name_outputs(path, program.raw.all)
    if request.options.get("io") == "uint8":
        convert_io_to_uint8(path)


def write_int16(request: Lowering, path: Path) -> None:
    """INT16 activations with INT8 weights."""
    write_float(request, path)
    quantise_activations_to_int16(path, request.program, _plan_of(request))


WRITERS: Mapping[str, Callable[[Lowering, Path], None]] = {
    "fp32": write_float,
    "fp16": write_compressed,
    "int8": write_integers,
    "int8-dynamic": write_compressed,
    "int8-full": write_integers_only,
    "w8a16": write_int16,
}
"""Precision → what writes it; the metadata come behind it."""


def prepared(request: Lowering) -> GraphModule:
    """A copy of the program's graph whose input and outputs are as consumers of the file expect them."""
    return formed(copied(request.program), request.program.layout, asked_form(request))


def _example(request: Lowering) -> Tensor:
    example = torch.zeros(request.program.values[INPUT].shape)
    return example.permute(0, 2, 3, 1).contiguous() if asked_form(request).channels_last else example


def _write(request: Lowering, path: Path, graph: GraphModule, example: Tensor, quantised: bool = False) -> None:
    tag_values(graph, request.program)
    with silence():
        # Its own writer takes the process with it when the disk is full.
        path.write_bytes(convert(graph, example, quantised, request.warn).model_content())


def _name_prototypes(request: Lowering, path: Path) -> None:
    """Name the prototypes where they are an output as they are: channels first, a transposition lies between."""
    if request.program.raw.prototypes and asked_form(request).channels_last:
        name_prototypes(path, request.program.raw.prototypes)


def _plan_of(request: Lowering) -> QuantPlan:
    assert request.plan is not None, f"{request.target.precision} needs a plan"
    return request.plan
