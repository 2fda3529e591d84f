"""What artifacts are written from: the checkpoint, and the float program that was captured of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from qexport.checkpoints.checkpoint import Checkpoint, load_checkpoint
from qexport.compat.one_at_a_time import TRACING
from qexport.compat.torchvision import repair
from qexport.data.images import COLOURS
from qexport.errors import InputError, QexportError, UsageError, is_out_of_memory
from qexport.programs.capture import capture
from qexport.programs.classifier import classifier
from qexport.programs.heads import split_head
from qexport.programs.onnx.build import read_onnx
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.programs.rtdetr import query_detector
from qexport.tasks import SCORING

DEFAULTS = CaptureOptions()


@dataclass(frozen=True)
class Source:
    """What every artifact of a model is written from."""

    checkpoint: Checkpoint
    program: Program


def read_checkpoint(path: Path, trust: bool = False) -> Checkpoint:
    """Load the checkpoint at `path`.

    Args:
        trust: load pickled classes that are not on the allow-list, too.

    Raises:
        InputError: this version cannot export it.
    """
    checkpoint = load_checkpoint(path, trust)
    if checkpoint.task == "classify" and checkpoint.channels != COLOURS:
        raise InputError(
            f"{path} is a classifier of {checkpoint.channels} channels",
            "Ultralytics reads images to classify in colour",
        )
    if checkpoint.task not in SCORING:
        raise InputError(f"{path} is a {checkpoint.task} model", f"this version exports {', '.join(SCORING)}")
    return checkpoint


def chosen_size(options: CaptureOptions, checkpoint: Checkpoint) -> tuple[int, int]:
    """Height and width: those that are asked for, or what the model was trained at.

    Training takes the next multiple of the stride, whatever its arguments say, and so does this.

    Raises:
        UsageError: the size that was asked for does not suit the model.
        InputError: the checkpoint says nothing sensible.
    """
    stride = checkpoint.stride
    if options.imgsz is None:
        trained = checkpoint.imgsz
        if trained < 1:
            raise InputError(f"{checkpoint.path} says that it was trained at {trained} pixels", "add --imgsz")
        return (-(-trained // stride) * stride,) * 2
    if any(size % stride for size in options.imgsz):
        nearest = " ".join(str(-(-size // stride) * stride) for size in options.imgsz)
        asked = "x".join(map(str, options.imgsz))
        raise UsageError(f"--imgsz {asked} is not a multiple of the model's stride {stride}", f"use {nearest}")
    return options.imgsz


def capture_program(options: CaptureOptions, checkpoint: Checkpoint) -> Program:
    """Capture the float program at the size that the options ask for, or the one that the model was trained at.

    Raises:
        UsageError: the size does not suit the model.
    """
    imgsz = chosen_size(options, checkpoint)
    if checkpoint.task == "classify":
        return capture(
            classifier(checkpoint.module, options.head, options.nms),
            imgsz,
            options.batch,
            checkpoint.channels,
            options.dynamic,
        )
    queries = checkpoint.module.model[-1].__class__.__name__ == "RTDETRDecoder"
    module = (query_detector if queries else split_head)(checkpoint.module, options.head, imgsz, options.nms)
    return capture(module, imgsz, options.batch, checkpoint.channels, options.dynamic)


def _captured(options: CaptureOptions, checkpoint: Checkpoint) -> Program:
    """The program; where there is none because the model as it lies in the file does not run either, that is said.

    Raises:
        InputError: Ultralytics cannot run the model.
    """
    try:
        return capture_program(options, checkpoint)
    except QexportError:
        raise
    except Exception as error:
        reason = "" if is_out_of_memory(error) else _cannot_run(options, checkpoint)
        if not reason:
            raise
        what = f"{checkpoint.path} holds a model that Ultralytics {version('ultralytics')} cannot run ({reason})"
        raise InputError(what, "save it again with the version that trained it, or train it again") from None


def _check_classes(checkpoint: Checkpoint, program: Program) -> None:
    """Raise `InputError` where a head computes another number of classes than it says, and so than artifacts would."""
    said = len(checkpoint.names)
    if program.layout.head in ("end2end", "one2many") and program.layout.classes != said:
        raise InputError(
            f"{checkpoint.path} says that it has {said} classes, and its head computes {program.layout.classes}",
            "correct its head's nc and the model's names",
        )


def _cannot_run(options: CaptureOptions, checkpoint: Checkpoint) -> str:
    """Why the model cannot be run on an image; "" where it can."""
    module = load_checkpoint(checkpoint.path, options.trust).module  # capturing changes the one that it is given
    try:
        with torch.no_grad():
            module(torch.zeros(1, checkpoint.channels, *chosen_size(options, checkpoint)))
    except Exception as error:  # the model's own layers can raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return ""


def read_source(
    path: Path,
    options: CaptureOptions = DEFAULTS,
    check: Callable[[Checkpoint], None] = lambda _: None,
) -> Source:
    """Load the checkpoint or the ONNX file at `path` and capture its program.

    Args:
        check: called with what was loaded, before anything slow is done with it.

    Raises:
        InputError, UsageError: it cannot be exported, or not with these options.
    """
    repair()
    if path.suffix.lower() == ".onnx":
        checkpoint, program = read_onnx(path, options)
        check(checkpoint)
        return Source(checkpoint, program)
    with TRACING:
        checkpoint = read_checkpoint(path, options.trust)
        check(checkpoint)
        program = _captured(options, checkpoint)
    _check_classes(checkpoint, program)
    return Source(checkpoint, program)
