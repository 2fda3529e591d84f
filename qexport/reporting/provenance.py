"""What is said with an artifact's figures wherever they stand: what ran it, and what "verified" means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IN_PLACE = " in place of "


def scored_images(report: Mapping[str, Any]) -> int | None:
    """How many images stand behind the accuracies of report.json; None where no artifact has one."""
    found = any(entry.get("accuracy") or entry.get("outputs") for entry in report["artifacts"])
    return report["evaluation"]["images"] if found and report.get("evaluation") else None


def stand_in(entry: Mapping[str, Any]) -> str:
    """What ran an artifact in place of the runtime that it is for, which is not here; "" where its own ran it.

    Args:
        entry: an artifact of report.json; older reports have no `own_runtime`, their `runtime` says so in words.
    """
    runtime = str(entry.get("runtime") or "")
    own = entry.get("own_runtime")
    return "" if (IN_PLACE not in runtime if own is None else own) else runtime


def on_stand_in(entry: Mapping[str, Any], before: str = ", ") -> str:
    """The same behind a figure: `, run by ONNX Runtime in place of TensorRT`; "" where there is nothing to say."""
    runtime = stand_in(entry)
    return f"{before}run by {runtime}" if runtime else ""


def verified(entry: Mapping[str, Any]) -> str:
    """What was verified of an artifact, with the least that passes and what ran it; "" where nothing was."""
    checked = entry.get("verification")
    if not checked:
        return ""
    parts = [f"{checked['tensors']} tensors as planned", _likeness(checked)]
    remark = checked.get("remark")
    return ", ".join([*parts, *([remark] if remark else [])]) + on_stand_in(entry, "; ")


def _likeness(checked: Mapping[str, Any]) -> str:
    """How like its simulation the artifact is."""
    images, least = checked["images"], checked.get("min_agreement")
    if checked.get("cosine") is not None:
        passes = "" if least is None else f", at least {least:.4f} to pass"
        return f"outputs on {images} images {checked['cosine']:.4f} like the simulated program's (cosine{passes})"
    if checked["agreement"] is None:
        return f"no detections on {images} images, like the simulated program"
    passes = "" if least is None else f" (at least {least:.0%} to pass)"
    return f"{checked['agreement']:.0%} of the detections on {images} images as simulated{passes}"
