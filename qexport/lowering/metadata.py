"""Metadata inside artifacts, as Ultralytics writes and reads it, so that `YOLO(artifact)` just works."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from qexport.checkpoints.checkpoint import Checkpoint
from qexport.detections.layout import raw_outputs_of
from qexport.detections.thresholds import Thresholds, to_metadata
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program
from qexport.programs.torch_decode import max_detections
from qexport.version import __version__

QUANTISE = {"fp32": None, "fp16": 16}
"""Ultralytics' word for what weights are stored in; all other precisions have 8."""
BATCH_ONLY = None
"""Ultralytics' `dynamic` of a file whose batch alone is open.

True would mean open height and width, and photos of other sizes were fed; False, that more images than `batch` are run
in parts. Neither is said: images have the size of `imgsz`, and all are run at once (`AutoBackend.forward`).
"""


OURS = frozenset({"date", "thresholds", "raw_outputs", "program", "plan"})
"""What is not carried over from an ONNX file: of an artifact it is taken for our word."""


def artifact_metadata(
    checkpoint: Checkpoint,
    program: Program,
    precision: str,
    plan: QuantPlan | None,
    thresholds: Thresholds | None = None,
) -> dict[str, Any]:
    """Return what Ultralytics' loaders need, which plan the file was made from, and what to make of its scores.

    There is no date in it: equal inputs give equal files. An ONNX file's own are carried over.
    """
    own = checkpoint.metadata
    made = _made(checkpoint, program, precision) if own is None else _carried(own, checkpoint, program, precision)
    scores = {"thresholds": to_metadata(thresholds)} if thresholds else {}
    return made | scores | {"program": program.fingerprint, "plan": plan.fingerprint if plan else None}


def _made(checkpoint: Checkpoint, program: Program, precision: str) -> dict[str, Any]:
    """A checkpoint's metadata."""
    layout = program.layout
    return {
        **({"raw_outputs": _raw_outputs(program, checkpoint)} if precision == "int8-full" else {}),
        **({"kpt_shape": list(layout.shape)} if layout.extras == "keypoints" else {}),
        "description": f"{checkpoint.path.stem} {precision} by qexport",
        "author": "qexport",
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "stride": checkpoint.stride,
        "task": checkpoint.task,
        "head": type(checkpoint.module.model[-1]).__name__,
        "batch": program.input.batch,
        "imgsz": list(program.input.imgsz),
        "names": checkpoint.names,
        "channels": checkpoint.channels,
        "end2end": layout.end2end,
        **_arguments(program, precision),
        "precision": precision,
    }


def _arguments(program: Program, precision: str) -> dict[str, Any]:
    """What Ultralytics reads of how a file was exported; `dynamic` stands in both places that its versions look at."""
    dynamic = BATCH_ONLY if program.input.dynamic else False
    return {
        "dynamic": dynamic,
        "args": {"batch": program.input.batch, "dynamic": dynamic, "quantize": QUANTISE.get(precision, 8)},
    }


def _raw_outputs(program: Program, checkpoint: Checkpoint) -> dict[str, Any]:
    """What `qexport.decode` has to know of a file that ends at its raw outputs."""
    # The head's own limit, where the program's ends with its anchors.
    return raw_outputs_of(replace(program.layout, max_detections=max_detections(checkpoint.module.model[-1])))


def _carried(own: dict[str, str], checkpoint: Checkpoint, program: Program, precision: str) -> dict[str, Any]:
    """An ONNX file's metadata with what has changed; only Ultralytics' have a task and what belongs to it."""
    found: dict[str, Any] = {key: value for key, value in own.items() if key not in OURS}
    layout = program.layout
    if checkpoint.task:
        found |= {
            "task": checkpoint.task,
            "names": checkpoint.names,
            "stride": checkpoint.stride,
            "channels": checkpoint.channels,
            "end2end": layout.end2end,
            **_arguments(program, precision),
            **({"kpt_shape": list(layout.shape)} if layout.extras == "keypoints" else {}),
        }
    return found | {
        "description": f"{checkpoint.path.stem} {precision} by qexport",
        "author": own.get("author", "qexport"),
        "version": __version__,
        "batch": program.input.batch,
        "imgsz": list(program.input.imgsz),
        "precision": precision,
    }
