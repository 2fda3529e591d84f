"""Metadata inside artifacts, as Ultralytics writes and reads it, so that `YOLO(artifact)` just works."""

from __future__ import annotations

from typing import Any

from qexport import __version__
from qexport.checkpoint import Checkpoint
from qexport.plan import QuantPlan
from qexport.program import Program


def artifact_metadata(
    checkpoint: Checkpoint, program: Program, precision: str, plan: QuantPlan | None
) -> dict[str, Any]:
    """Return what Ultralytics' loaders need, and which plan the file was made from.

    There is no date in it: equal inputs give equal files.
    """
    raw = {"raw_outputs": {"strides": list(program.strides), "reg_max": program.reg_max}}
    return {
        **(raw if precision == "int8-full" else {}),
        **({"kpt_shape": list(program.further.shape)} if program.further.kind == "keypoints" else {}),
        "description": f"{checkpoint.path.stem} {precision} by qexport",
        "author": "qexport",
        "version": __version__,
        "license": "AGPL-3.0 License (https://ultralytics.com/license)",
        "stride": checkpoint.stride,
        "task": checkpoint.task,
        "head": type(checkpoint.module.model[-1]).__name__,
        "batch": program.batch,
        "imgsz": list(program.imgsz),
        "names": checkpoint.names,
        "channels": checkpoint.channels,
        "dynamic": program.dynamic,
        "end2end": program.final,
        "args": {
            "batch": program.batch,
            "dynamic": program.dynamic,
            "quantize": {"fp32": None, "fp16": 16}.get(precision, 8),
        },
        "precision": precision,
        "program": program.fingerprint,
        "plan": plan.fingerprint if plan else None,
    }
