"""What a reader does about scores that have moved: which threshold to use in place of FP32's."""

from __future__ import annotations

from qexport.detections.thresholds import MIN_COUNT, Thresholds
from qexport.reporting.report import ArtifactReport

MAX_LISTED = 12
"""Classes in a table: those that differ most."""


def thresholds_of(artifact: ArtifactReport) -> tuple[Thresholds, str] | None:
    """An artifact's thresholds, and what images they are from: evaluation's where there was one."""
    if artifact.accuracy and artifact.accuracy.thresholds:
        return artifact.accuracy.thresholds, "evaluation"
    if artifact.likeness and artifact.likeness.thresholds:
        return artifact.likeness.thresholds, "calibration"
    return None


def advice(artifact: ArtifactReport) -> str:
    """In one line which threshold to use; "" where none is known, or FP32's does."""
    known = thresholds_of(artifact)
    if known is None:
        return ""
    found, images = known
    own = f"{found.everything:.2f}"
    if own == f"{found.reference:.2f}":
        return ""
    text = f"use a threshold of {own} where you used {found.reference:.2f}"
    return f"{text} (by {found.images} {images} images{_in_file(artifact, own, images)})"


def _in_file(artifact: ArtifactReport, own: str, images: str) -> str:
    """Which other one the file carries, of calibration images, for those who meet it in a program."""
    carried = artifact.likeness.thresholds if artifact.likeness else None
    if images == "calibration" or carried is None or f"{carried.everything:.2f}" == own:
        return ""
    return (
        f"; its metadata, and so qexport snippet, have {carried.everything:.2f}, by {carried.images} calibration images"
    )


def furthest(found: Thresholds) -> list[str]:
    """Numbers of the classes with a threshold of their own, those first that differ most from FP32's."""
    own = [number for number, count in found.count.items() if count >= MIN_COUNT]
    return sorted(own, key=lambda number: (-abs(found.classes[number] - found.reference), int(number)))[:MAX_LISTED]
