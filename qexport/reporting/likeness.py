"""Artifacts whose outputs are far from FP32: from where on, how they are warned of, what `--strict` makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qexport.detections.faults import MIN_AGREEMENT
from qexport.measurement.measure import Figures
from qexport.reporting.limits import STRICT
from qexport.reporting.report import LIKENESS, Outcome, Report, Warning
from qexport.verification.likeness import Likeness
from qexport.verification.result import ArtifactResult


@dataclass(frozen=True)
class Limits:
    """What is below one of these is far from FP32.

    Attributes:
        min_sqnr_db: of a raw output on calibration images, or of an output of unknown meaning on evaluation images.
        min_fidelity: on evaluation images.
        max_count_ratio, min_count: on calibration images as many times more objects, or fewer, are found, of so many
            on the larger side at least; nothing where FP32 finds something is always far.
        min_agreement: share of the detections of either side, or of a classifier's probability, on calibration images.
    """

    min_sqnr_db: float = 10.0
    min_fidelity: float = 0.85
    max_count_ratio: float = 2.0
    min_count: int = 10
    min_agreement: float = MIN_AGREEMENT


LIMITS = Limits()


def likeness_warnings(item: ArtifactResult, figures: Figures) -> tuple[Warning, ...]:
    """What shows that an artifact's outputs are far from FP32's; nothing where all is well, or nothing was compared."""
    found = list(_on_calibration_images(item.likeness)) if item.likeness else []
    if figures.outputs:
        sqnr = {each.name: each.sqnr_db for each in figures.outputs}
        found += _noisy(sqnr, f"{figures.outputs[0].images} evaluation images")
    fidelity = figures.accuracy.fidelity if figures.accuracy else None
    if fidelity is not None and fidelity < LIMITS.min_fidelity:
        found.append(f"fidelity {fidelity:.3f}, {LIMITS.min_fidelity} is the least")
    return tuple(Warning(LIKENESS, f"far from FP32: {text}") for text in found)


def _on_calibration_images(seen: Likeness) -> Iterator[str]:
    images = f"{seen.images} calibration images"
    yield from _noisy(seen.sqnr, images)
    fewer, more = sorted((seen.found_float, seen.found))
    if (seen.found_float and not seen.found) or more >= max(LIMITS.min_count, LIMITS.max_count_ratio * fewer):
        yield f"{seen.found or 'no'} objects are found in {images}, FP32 finds {seen.found_float or 'none'}"
    elif seen.agreement is not None and seen.agreement < LIMITS.min_agreement:
        yield f"{seen.agreement:.0%} of what is found in {images} agrees, {LIMITS.min_agreement:.0%} is the least"


def _noisy(sqnr: Mapping[str, float | None], images: str) -> Iterable[str]:
    low = {name: found for name, found in sqnr.items() if found is not None and found < LIMITS.min_sqnr_db}
    if not low:
        return []
    listed = ", ".join(f"{name} {found:.1f} dB" for name, found in low.items())
    return [f"SQNR of {listed} on {images}, {LIMITS.min_sqnr_db:g} dB is the least"]


def strict_outcomes(report: Report, precision: str) -> tuple[Outcome, ...]:
    """A rule of the gate for every artifact of the precision that was asked for: nothing warns that it is far."""
    outcomes = []
    for artifact in (each for each in report.artifacts if each.precision == precision):
        found = [warning.text for warning in artifact.warnings if warning.about == LIKENESS]
        text = (
            f"{artifact.file_name} is {'; '.join(found)}"
            if found
            else f"nothing is far from FP32 in {artifact.file_name}"
        )
        outcomes.append(Outcome(STRICT, artifact.file_name, float(len(found)), None, 0.0, not found, text))
    return tuple(outcomes)
