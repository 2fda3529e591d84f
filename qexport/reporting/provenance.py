"""What is said with an artifact's figures wherever they stand: what ran it, and what "verified" means."""

from __future__ import annotations

from qexport.reporting.report import ArtifactReport, Report
from qexport.verification.outcome import Verification

MIN_SHOWN = 0.01
"""Share of a run's time from which on a step is named."""


NO_LABELS = "no labels: fidelity only"
"""What is said of evaluation images without labels."""


def scored_on(report: Report) -> str:
    """What stands behind the figures of a report, as a part of its title; "" where nothing was scored."""
    images = scored_images(report)
    if images is None:
        return ""
    return f"scored on {images}" if _labelled(report) else f"compared on {images} images ({NO_LABELS})"


def _labelled(report: Report) -> bool:
    return report.evaluation is None or report.evaluation.labelled


def scored_images(report: Report) -> int | None:
    """How many images stand behind the accuracies of a report; None where no artifact has one."""
    found = any(each.accuracy or each.outputs for each in report.artifacts)
    return report.evaluation.images if found and report.evaluation else None


def stand_in(artifact: ArtifactReport) -> str:
    """What ran an artifact in place of the runtime that it is for, which is not here; "" where its own ran it."""
    return "" if artifact.own_runtime else artifact.runtime


def on_stand_in(artifact: ArtifactReport, before: str = ", ") -> str:
    """The same behind a figure: `, run by ONNX Runtime in place of TensorRT`; "" where there is nothing to say."""
    runtime = stand_in(artifact)
    return f"{before}run by {runtime}" if runtime else ""


def verified(artifact: ArtifactReport) -> str:
    """What was verified of an artifact, with the least that passes and what ran it; "" where nothing was."""
    checked = artifact.verification
    if checked is None:
        return ""
    parts = [f"{checked.tensors} tensors as planned", _likeness(checked)]
    return ", ".join([*parts, *([checked.remark] if checked.remark else [])]) + on_stand_in(artifact, "; ")


def _likeness(checked: Verification) -> str:
    """How like its simulation the artifact is."""
    images, least = checked.images, checked.min_agreement
    if checked.cosine is not None:
        passes = "" if least is None else f", at least {least:.4f} to pass"
        return f"outputs on {images} images {checked.cosine:.4f} like the simulated program's (cosine{passes})"
    if checked.agreement is None:
        return f"no detections on {images} images, like the simulated program"
    passes = "" if least is None else f" (at least {least:.0%} to pass)"
    return f"{checked.agreement:.0%} of the detections on {images} images as simulated{passes}"


def taken_lines(report: Report) -> list[str]:
    """What earlier runs have left, and when they made it: a line for the calibration, and one for each artifact."""
    lines = (
        [f"calibration: of {_time(report.calibration.taken)}"]
        if report.calibration and report.calibration.taken
        else []
    )
    for artifact in report.artifacts:
        parts = [f"{what} of {_time(when)}" for what, when in artifact.taken.items()]
        lines += [f"{artifact.file_name}: {', '.join(parts)}"] if parts else []
    return lines


def _time(when: str) -> str:
    """A moment in UTC without its seconds."""
    return f"{when[:16].replace('T', ' ')} UTC"


def listed_seconds(report: Report) -> str:
    """What a run took, and which steps took it, in their order: 38.2 s: read 4.1, calibrate 11.9, 5 others 0.3."""
    total = report.elapsed
    shown = {name: taken for name, taken in report.seconds.items() if taken >= MIN_SHOWN * total}
    steps = [f"{name.replace('_', ' ')} {taken:.1f}" for name, taken in shown.items()]
    others = [taken for name, taken in report.seconds.items() if name not in shown]
    if others:
        steps.append(f"{len(others)} {'others' if len(others) > 1 else 'other'} {sum(others):.1f}")
    return f"{total:.1f} s: {', '.join(steps)}" if total else ""
