"""An ONNX file as a program, which `qexport.programs.build` puts beside those of checkpoints."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.input_form import InputForm, InputSpec, pixel_form
from qexport.detections.layout import HeadLayout
from qexport.errors import UsageError
from qexport.plugins import check_modules
from qexport.programs.boundary import raw_values, with_regions
from qexport.programs.damage import refuse_damaged
from qexport.programs.named_values import named_values
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program, RawNames, Region, Value

if TYPE_CHECKING:
    from qexport.programs.onnx.file import OnnxFile, UltralyticsMetadata
    from qexport.programs.onnx.graph import OnnxGraph


def read_onnx(path: Path, options: CaptureOptions) -> tuple[Checkpoint, Program]:
    """Read a float ONNX file and bring it into the form that plans are made for.

    Raises:
        InputError, UsageError: it cannot be quantised, or not as the options want it.
    """
    from qexport.programs.onnx.file import described, read_file, unreadable
    from qexport.programs.onnx.graph import OnnxGraph
    from qexport.programs.onnx.normal_form import learned_constants, normalised
    from qexport.programs.onnx.same import check_same
    from qexport.programs.onnx.session import PACKAGES
    from qexport.programs.onnx.values import values_of

    check_modules("format onnx", PACKAGES, "qexport[onnx]")
    file = read_file(path)
    says = described(file.metadata)
    imgsz, batch = chosen_size(options, file, says), chosen_batch(options, file)
    model, names = normalised(file, imgsz, batch, options.dynamic)
    refuse_damaged(learned_constants(model), str(file.path))
    graph = OnnxGraph(model, names)
    check_same(file, graph, input_form(options, file))
    values = values_of(model, graph.shapes)
    raw = raw_names(options, graph, values)
    values = with_regions(values, raw)
    outputs = [values[name] for name in graph.outputs if name in values]
    ends = _raw(values, graph, says)
    form = replace(input_form(options, file), crop=is_classifier(says, outputs))
    layout = says.layout(imgsz) if says else HeadLayout((), imgsz, 0, head="unknown")
    preprocess = "centre crop" if form.crop else layout.preprocess
    program = Program(
        graph=graph.ending(ends.all),
        values=values,
        raw=ends,
        layout=layout,
        input=InputSpec(imgsz, batch, dynamic=options.dynamic, preprocess=preprocess, form=form),
        fingerprint=hashlib.sha256(graph.content + repr(raw).encode()).hexdigest(),
        guessed=True,
    )
    return _checkpoint(file, says, unreadable(file.metadata)), program


def _checkpoint(file: OnnxFile, says: UltralyticsMetadata | None, unread: str) -> Checkpoint:
    return Checkpoint(
        path=file.path,
        module=None,
        task=says.task if says else "",
        names=says.names if says else {},
        stride=says.stride if says else 1,
        channels=3,
        imgsz=max(says.imgsz) if says else 0,
        fingerprint=file.fingerprint,
        metadata=file.metadata,
        notes=(unread,) if unread else (),
    )


def chosen_size(options: CaptureOptions, file: OnnxFile, says: UltralyticsMetadata | None) -> tuple[int, int]:
    """Height and width: the file's own where they are fixed, else those that the options or the metadata name.

    Raises:
        UsageError: the options ask for another size than the file has, or nobody names one.
    """
    fixed = all(file.imgsz)
    if options.imgsz is None and not fixed and says is None:
        raise UsageError(f"{file.path} takes images of any size", "add --imgsz")
    if options.imgsz is None:
        said = says.imgsz if says and not fixed else file.imgsz
        step = says.stride if says else 1
        each = ((size or -(-other // step) * step) for size, other in zip(file.imgsz, said, strict=True))
        height, width = each
        return height, width
    wanted = options.imgsz
    for size, asked in zip(file.imgsz, wanted, strict=True):
        if size and size != asked:
            raise UsageError(
                f"--imgsz {'x'.join(map(str, wanted))} is not the size of {file.path}, "
                f"{'x'.join(str(each or '?') for each in file.imgsz)}",
                "leave it out, or export the model in another size",
            )
    if says and any(size % says.stride for size in wanted):
        raise UsageError(
            f"--imgsz {'x'.join(map(str, wanted))} is not a multiple of the model's stride {says.stride}",
            f"use {' '.join(str(-(-size // says.stride) * says.stride) for size in wanted)}",
        )
    return wanted


def chosen_batch(options: CaptureOptions, file: OnnxFile) -> int:
    """Images in one run.

    Raises:
        UsageError: the file's number is fixed to another.
    """
    if not file.batch:
        return options.batch
    if options.dynamic:
        raise UsageError(f"{file.path} has a fixed number of images, {file.batch}", "leave out --dynamic")
    if options.batch not in (1, file.batch):
        raise UsageError(
            f"--batch {options.batch} is not the number of images of {file.path}, {file.batch}", "leave it out"
        )
    return file.batch


def raw_names(options: CaptureOptions, graph: OnnxGraph, values: dict[str, Value]) -> tuple[str, ...]:
    """Values that the user wants the tail to begin behind; none where it is to be found.

    Raises:
        UsageError: there is no such value.
    """
    return named_values("--raw-outputs", options.raw_outputs, values, graph.names)


def input_form(options: CaptureOptions, file: OnnxFile) -> InputForm:
    """What the network wants of its pixels."""
    mean, deviation = pixel_form(options.pixels)
    return InputForm(options.pixels, mean, deviation, options.bgr, file.channels_last)


def is_classifier(says: UltralyticsMetadata | None, outputs: list[Value]) -> bool:
    """One output of one row each is a classifier's, whose images are cropped."""
    return says is None and len(outputs) == 1 and len(outputs[0].shape) == 2


def _raw(values: dict[str, Value], graph: OnnxGraph, says: UltralyticsMetadata | None) -> RawNames:
    """Where the body ends; of a segmentation model one raw value is the second output itself."""
    raw = raw_values(values)
    if says is None or says.task != "segment" or len(graph.outputs) != 2:
        return raw
    (name,) = values[graph.outputs[1]].inputs
    if values[name].region is not Region.BODY:
        return raw
    boxes, scores = (tuple(each for each in names if each != name) for names in (raw.boxes, raw.scores))
    return RawNames(boxes, scores, prototypes=name)
