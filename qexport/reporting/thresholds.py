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
    """In one sentence which threshold to use: the file's own, which programs of `qexport snippet` have.

    Where the file carries none it is evaluation's; "" where none is known, or FP32's does.
    """
    carried = artifact.likeness.thresholds if artifact.likeness else None
    known = (carried, "") if carried else thresholds_of(artifact)
    if known is None:
        return ""
    found, _ = known
    own, reference = f"{found.everything:.2f}", f"{found.reference:.2f}"
    if own == reference:
        return ""
    moved = "lower" if found.everything < found.reference else "higher"
    does = "; qexport snippet does" if carried else ""
    return f"scores are {moved} than FP32's: use a threshold of {own} where you used {reference}{does}"


def furthest(found: Thresholds) -> list[str]:
    """Numbers of the classes with a threshold of their own, those first that differ most from FP32's."""
    own = [number for number, count in found.count.items() if count >= MIN_COUNT]
    return sorted(own, key=lambda number: (-abs(found.classes[number] - found.reference), int(number)))[:MAX_LISTED]
