"""What artifacts are written from: the checkpoint, and the float program that was captured of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from qexport.checkpoints.checkpoint import Checkpoint, load_checkpoint
from qexport.compat.one_at_a_time import TRACING
from qexport.compat.torchvision import repair
from qexport.data.images import COLOURS
from qexport.errors import ConversionError, InputError, QexportError, UsageError, is_out_of_memory, named_reason
from qexport.programs.bounded_run import Bounded, TooLargeError
from qexport.programs.capture import capture
from qexport.programs.classifier import ClassifierProgram, classifier
from qexport.programs.heads import DetectionProgram, split_head
from qexport.programs.onnx.build import read_onnx
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.programs.rtdetr import QueryProgram, query_detector
from qexport.tasks import SCORING

DEFAULTS = CaptureOptions()
MAX_REASON = 160
"""Characters of what PyTorch says."""


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
    with Bounded(_image_bytes(options, checkpoint)):
        module = _split(options, checkpoint, imgsz)
    return capture(module, imgsz, options.batch, checkpoint.channels, options.dynamic)


def _split(
    options: CaptureOptions, checkpoint: Checkpoint, imgsz: tuple[int, int]
) -> ClassifierProgram | QueryProgram | DetectionProgram:
    if checkpoint.task == "classify":
        return classifier(checkpoint.module, options.head, options.nms)
    queries = checkpoint.module.model[-1].__class__.__name__ == "RTDETRDecoder"
    return (query_detector if queries else split_head)(checkpoint.module, options.head, imgsz, options.nms)


def _image_bytes(options: CaptureOptions, checkpoint: Checkpoint) -> int:
    return 4 * options.batch * checkpoint.channels * math.prod(chosen_size(options, checkpoint))


def _captured(options: CaptureOptions, checkpoint: Checkpoint) -> Program:
    """The program; where there is none because the model as it lies in the file does not run either, that is said.

    Raises:
        InputError: Ultralytics cannot run the model.
    """
    try:
        return capture_program(options, checkpoint)
    except QexportError:
        raise
    except TooLargeError as error:
        what = f"{checkpoint.path} holds a model that computes more than networks do ({error})"
        raise InputError(what, "train it again") from None
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = _cannot_run(options, checkpoint)
        if not reason:
            raise ConversionError(
                f"the program of {checkpoint.path} cannot be captured ({named_reason(error, MAX_REASON)})",
                "see that its head says what it computes (strides, bins, keypoints), or report the model",
            ) from error
        what = f"{checkpoint.path} holds a model that Ultralytics {version('ultralytics')} cannot run ({reason})"
        raise InputError(what, "save it again with the version that trained it, or train it again") from None


def _check_head(checkpoint: Checkpoint, program: Program) -> None:
    """Raise `InputError` where a head computes other numbers than it says, and so than artifacts would."""
    said, layout = len(checkpoint.names), program.layout
    if layout.head not in ("end2end", "one2many"):
        return
    if layout.classes != said:
        raise InputError(
            f"{checkpoint.path} says that it has {said} classes, and its head computes {layout.classes}",
            "correct its head's nc and the model's names",
        )
    further = [program.values[name].shape[1] for name in program.raw.extras]
    if wrong := [count for count in further if count != math.prod(layout.shape)]:
        raise InputError(
            f"{checkpoint.path} says that it has {math.prod(layout.shape)} {layout.extras}, and its head computes "
            f"{wrong[0]}",
            "correct its head's nm or kpt_shape",
        )


def _cannot_run(options: CaptureOptions, checkpoint: Checkpoint) -> str:
    """Why the model cannot be run on an image; "" where it can."""
    module = load_checkpoint(checkpoint.path, options.trust).module  # capturing changes the one that it is given
    try:
        with torch.no_grad(), Bounded(_image_bytes(options, checkpoint)):
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
    _check_head(checkpoint, program)
    return Source(checkpoint, program)
