"""An ONNX file as a program: what `source` does for checkpoints."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.input_form import InputForm, pixel_form
from qexport.errors import UsageError
from qexport.programs.boundary import raw_values, with_regions
from qexport.programs.damage import refuse_damaged
from qexport.programs.float_decode import Extras
from qexport.programs.named_values import named_values
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program, Value

if TYPE_CHECKING:
    from qexport.programs.onnx.file import OnnxFile, UltralyticsMetadata
    from qexport.programs.onnx.graph import OnnxGraph

KINDS = {"segment": "coefficients", "pose": "keypoints", "obb": "angles"}


def read_onnx(path: Path, options: CaptureOptions) -> tuple[Checkpoint, Program]:
    """Read a float ONNX file and bring it into the form that plans are made for.

    Raises:
        InputError, UsageError: it cannot be quantised, or not as the options want it.
    """
    from qexport.programs.onnx.file import described, read_file
    from qexport.programs.onnx.graph import OnnxGraph
    from qexport.programs.onnx.normal_form import learned_constants, normalised
    from qexport.programs.onnx.same import check_same
    from qexport.programs.onnx.session import PACKAGES, check_packages
    from qexport.programs.onnx.values import values_of

    check_packages("onnx", PACKAGES)
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
    boxes, scores = raw_values(values)
    outputs = [values[name] for name in graph.outputs if name in values]
    program = Program(
        graph=graph,
        values=values,
        raw_boxes=boxes,
        raw_scores=scores,
        head=_head(says),
        strides=(),
        reg_max=1,
        final=bool(says and says.end2end),
        imgsz=imgsz,
        batch=batch,
        fingerprint=hashlib.sha256(graph.fingerprinted + repr(raw).encode()).hexdigest(),
        dynamic=options.dynamic,
        form=replace(input_form(options, file), crop=is_classifier(says, outputs)),
        guessed=True,
        class_count=len(says.names) if says else 0,
        extras=Extras(KINDS.get(says.task, ""), says.kpt_shape) if says else Extras(),
    )
    return _checkpoint(file, says), with_prototypes(program, graph, says)


def _checkpoint(file: OnnxFile, says: UltralyticsMetadata | None) -> Checkpoint:
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
    )


def _head(says: UltralyticsMetadata | None) -> str:
    if says is None:
        return "unknown"
    if says.task == "classify":
        return "classifier"
    return "end2end" if says.end2end else "one2many"


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


def with_prototypes(program: Program, graph: OnnxGraph, says: UltralyticsMetadata | None) -> Program:
    """Note which raw value is the second output of a segmentation model."""
    if says is None or says.task != "segment" or len(graph.outputs) != 2:
        return program
    (name,) = program.values[graph.outputs[1]].inputs
    if program.values[name].region != "body":
        return program
    rest = {key: tuple(n for n in getattr(program, key) if n != name) for key in ("raw_boxes", "raw_scores")}
    return replace(program, prototypes=name, raw_boxes=rest["raw_boxes"], raw_scores=rest["raw_scores"])
