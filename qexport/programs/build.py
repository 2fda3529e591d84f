"""What artifacts are written from: the checkpoint, and the float program that was captured of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from qexport.backends.protocol import Backend
from qexport.checkpoints.checkpoint import Checkpoint, load_checkpoint
from qexport.compat.torchvision import repair
from qexport.data.images import COLOURS
from qexport.errors import InputError, QexportError, UsageError
from qexport.job.options import ExportJob
from qexport.planning.integer_only import check_integer_only
from qexport.programs.capture import capture
from qexport.programs.classifier import classifier
from qexport.programs.heads import split_head
from qexport.programs.named_values import kept_float
from qexport.programs.onnx.build import read_onnx
from qexport.programs.program import Program
from qexport.programs.rtdetr import query_detector
from qexport.tasks import SCORING


@dataclass(frozen=True)
class Source:
    """What every artifact of a run is written from.

    Attributes:
        samples: images to try artifacts on.
    """

    job: ExportJob
    checkpoint: Checkpoint
    program: Program
    samples: Sequence[Path]

    def path(self, backend: Backend, precision: str) -> Path:
        """Where an artifact goes."""
        return self.job.folder / f"{self.job.stem}_{precision}{backend.info.suffix}"


def read_checkpoint(job: ExportJob, path: Path) -> Checkpoint:
    """Load the checkpoint at `path`.

    Raises:
        InputError: this version cannot export it.
    """
    checkpoint = load_checkpoint(path, job.trust_checkpoint)
    if checkpoint.task == "classify" and checkpoint.channels != COLOURS:
        raise InputError(
            f"{path} is a classifier of {checkpoint.channels} channels",
            "Ultralytics reads images to classify in colour",
        )
    if checkpoint.task not in SCORING:
        raise InputError(f"{path} is a {checkpoint.task} model", f"this version exports {', '.join(SCORING)}")
    return checkpoint


def chosen_size(job: ExportJob, checkpoint: Checkpoint) -> tuple[int, int]:
    """Height and width: those that the job asks for, or what the model was trained at.

    Training takes the next multiple of the stride, whatever its arguments say, and so does this.

    Raises:
        UsageError: the size that was asked for does not suit the model.
        InputError: the checkpoint says nothing sensible.
    """
    stride = checkpoint.stride
    if job.imgsz is None:
        trained = checkpoint.imgsz
        if trained < 1:
            raise InputError(f"{checkpoint.path} says that it was trained at {trained} pixels", "add --imgsz")
        return (-(-trained // stride) * stride,) * 2
    if any(size % stride for size in job.imgsz):
        nearest = " ".join(str(-(-size // stride) * stride) for size in job.imgsz)
        asked = "x".join(map(str, job.imgsz))
        raise UsageError(f"--imgsz {asked} is not a multiple of the model's stride {stride}", f"use {nearest}")
    return job.imgsz


def capture_program(job: ExportJob, checkpoint: Checkpoint) -> Program:
    """Capture the float program at the size that the job asks for, or the one that the model was trained at.

    Raises:
        UsageError: the size does not suit the model.
    """
    imgsz = chosen_size(job, checkpoint)
    if checkpoint.task == "classify":
        return capture(
            classifier(checkpoint.module, job.head, job.nms), imgsz, job.batch, checkpoint.channels, job.dynamic
        )
    queries = checkpoint.module.model[-1].__class__.__name__ == "RTDETRDecoder"
    if queries and job.precision == "int8-full":
        raise InputError(
            "RT-DETR cannot be integer-only: its choice of queries and its coordinates stay float",
            "use --precision int8 with --format tflite, onnx, openvino or tensorrt",
        )
    module = (query_detector if queries else split_head)(checkpoint.module, job.head, imgsz, job.nms)
    return capture(module, imgsz, job.batch, checkpoint.channels, job.dynamic)


def _captured(job: ExportJob, checkpoint: Checkpoint) -> Program:
    """The program; where there is none because the model as it lies in the file does not run either, that is said.

    Raises:
        InputError: Ultralytics cannot run the model.
    """
    try:
        return capture_program(job, checkpoint)
    except QexportError:
        raise
    except Exception:
        reason = _cannot_run(job, checkpoint)
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


def _cannot_run(job: ExportJob, checkpoint: Checkpoint) -> str:
    """Why the model cannot be run on an image; "" where it can."""
    module = load_checkpoint(checkpoint.path, job.trust_checkpoint).module  # capturing changes the one that it is given
    try:
        with torch.no_grad():
            module(torch.zeros(1, checkpoint.channels, *chosen_size(job, checkpoint)))
    except Exception as error:  # the model's own layers can raise anything
        return " ".join(f"{type(error).__name__}: {error}".split())[:160]
    return ""


def read_source(
    job: ExportJob, path: Path, samples: Sequence[Path], check: Callable[[Checkpoint], None] = lambda _: None
) -> Source:
    """Load the checkpoint or the ONNX file at `path` and capture its program.

    Args:
        check: called with what was loaded, before anything slow is done with it.

    Raises:
        InputError, UsageError: it cannot be exported, or not as the job wants it.
    """
    repair()
    if job.from_onnx:
        checkpoint, program = read_onnx(job, path)
        check(checkpoint)
    else:
        checkpoint = read_checkpoint(job, path)
        check(checkpoint)
        program = _captured(job, checkpoint)
        _check_classes(checkpoint, program)
    kept = kept_float(program, job.keep_float)
    if job.precision == "int8-full":
        check_integer_only(program, kept)
    return Source(job, checkpoint, program, samples)
