"""The outside of a graph in the form that consumers of the file expect; nothing that a plan quantises is changed.

Channels last: one transposition behind the input, and one of the prototypes of masks. Boxes in 0..1: a one-to-many
head's decode multiplies by `unit` anyway; rows are multiplied once at the end, behind everything that compares boxes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.fx import GraphModule, Node

from qexport.detections.file_form import LAYOUT, NHWC, NORMALISED, FileForm, tflite_form
from qexport.detections.layout import CORNERS, ROTATED, UNIT_CENTRE, HeadLayout
from qexport.detections.numpy_decode import scale_to_pixels
from qexport.errors import UsageError
from qexport.programs.graph_module import nodes_by_name
from qexport.programs.program import INPUT

if TYPE_CHECKING:
    from qexport.lowering.request import Lowering

aten = torch.ops.aten
UNIT = "decode.unit"
"""The buffer that a one-to-many head's decode multiplies its boxes with: see `qexport.programs.torch_decode.Decode`."""
READS = (
    "Ultralytics' YOLO(file) takes boxes to be in 0..1 where channels come last, and in pixels where they come first"
)


def asked_form(request: Lowering) -> FileForm:
    """The form of the file that is asked for.

    Raises:
        UsageError: a file that ends at its raw outputs cannot have it.
    """
    layout, integers = request.program.layout, request.target.precision == "int8-full"
    usual, order = tflite_form(layout, integers), request.options.get(LAYOUT)
    normalised = bool(request.options.get(NORMALISED))
    last = usual.channels_last if order is None else order == NHWC
    if integers and (normalised or not last):
        what = "normalised boxes" if normalised else "channels first"
        raise UsageError(f"int8-full files have no {what}: they end at the raw outputs of each level", "leave it out")
    return FileForm(last, usual.normalised or (normalised and layout.box_format in (CORNERS, ROTATED)))


def remarks(request: Lowering, form: FileForm) -> list[str]:
    """What has to be said of a form that was asked for."""
    layout = request.program.layout
    said = list[str]()
    if request.options.get(NORMALISED) and layout.classifier:
        said.append("a classifier has no boxes: --normalised-boxes changes nothing")
    if layout.end2end and layout.box_format == UNIT_CENTRE and form.channels_last:
        said.append(f"{READS}: boxes of RT-DETR, which it scales anyway, come out wrong there")
    elif layout.end2end and request.target.precision != "int8-full" and form.channels_last != form.normalised:
        option = "--normalised-boxes" if form.channels_last else "--layout nhwc"
        said.append(f"{READS}: for it, add {option}")
    return said


def formed(graph: GraphModule, layout: HeadLayout, form: FileForm) -> GraphModule:
    """Give a copy of a program's graph the outside of a file; return it.

    Args:
        graph: it is changed in place.
    """
    if form.normalised:
        _normalise(graph, layout)
    if form.channels_last:
        take_channels_last(graph)
        outputs = graph.graph.output_node()
        with graph.graph.inserting_before(outputs):
            outputs.args = torch.fx.node.map_arg(outputs.args, lambda node: channels_last(graph, node))
    graph.graph.lint()
    graph.recompile()
    return graph


def take_channels_last(graph: GraphModule) -> None:
    """Let the input be (n, height, width, channels)."""
    images = nodes_by_name(graph)[INPUT]
    readers = list(images.users)
    with graph.graph.inserting_after(images):
        channels_first = graph.graph.call_function(aten.permute.default, (images, [0, 3, 1, 2]))
    for reader in readers:
        reader.replace_input_with(images, channels_first)


def channels_last(graph: GraphModule, node: Node) -> Node:
    """A feature map with its channels last, at the graph's insertion point; what has fewer axes as it is."""
    if node.meta["val"].ndim < 4:
        return node
    return graph.graph.call_function(aten.permute.default, (node, [0, 2, 3, 1]))


def _normalise(graph: GraphModule, layout: HeadLayout) -> None:
    """Let coordinates be shares of the input's width and height."""
    if layout.end2end:
        _multiply_rows(graph, layout)
        return
    unit = dict(graph.named_buffers()).get(UNIT)
    if unit is not None:  # hand-made heads have none
        height, width = layout.imgsz
        unit.div_(torch.tensor([width, height, width, height]).view_as(unit))


def _multiply_rows(graph: GraphModule, layout: HeadLayout) -> None:
    """One multiplication of the first output, (n, rows, values), by a number for each value."""
    output = graph.graph.output_node()
    rows = output.all_input_nodes[0]
    sizes = np.ones((1, 1, rows.meta["val"].shape[-1]), np.float32)
    scale_to_pixels(sizes, layout)
    graph.register_buffer("shares", torch.from_numpy(1 / sizes))
    with graph.graph.inserting_before(output):
        shares = graph.graph.get_attr("shares")
        made = graph.graph.call_function(aten.mul.Tensor, (rows, shares))
    made.meta["val"] = rows.meta["val"]
    output.replace_input_with(rows, made)
