"""From what was written and measured to the report: figures are rounded here, and get their warnings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qexport.backends.artifact import manifest_path
from qexport.calibration.calibration_table import CalibrationTable
from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.dataset import fingerprint
from qexport.data.selection import LeftOut, RunImages
from qexport.errors import QexportError
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.evidence.fidelity_parts import Interval, MatchedBoxes
from qexport.measurement.evidence.gather import Evidence
from qexport.measurement.evidence.parts import ConfidenceShift
from qexport.measurement.measure import Figures
from qexport.measurement.peaks import Peaks, RuntimePeaks
from qexport.programs.program import Program
from qexport.reporting.likeness import likeness_warnings
from qexport.reporting.options import RunOptions
from qexport.reporting.report import (
    ARTIFACT,
    AccuracyInfo,
    ArtifactReport,
    CalibrationInfo,
    ClassAccuracy,
    EvaluationInfo,
    Failure,
    ModelInfo,
    Report,
    SkippedImage,
    Warning,
)
from qexport.reporting.runtime_facts import (
    by_default_speedup,
    default_run,
    latency_of,
    peak_share,
    runtime_warnings,
    slower_than_float,
    speedup,
)
from qexport.reporting.warnings import (
    accuracy_warnings,
    cpu_warnings,
    device_warning,
    latency_warnings,
    missing_warning,
    reference_warnings,
    run_warnings,
    skipped_in,
)
from qexport.system.machine import Environment, cpu_kind
from qexport.tasks import SCORING
from qexport.training.qat_file import read_learned
from qexport.training.record import TrainingRecord
from qexport.verification.result import ArtifactResult, float_counterparts


@dataclass(frozen=True)
class Inputs:
    """What went into a run.

    Attributes:
        table: None where nothing is calibrated.
        taken: when an earlier run made the table, in UTC; "" where this one did.
    """

    options: RunOptions
    checkpoint: Checkpoint
    program: Program
    table: CalibrationTable | None
    images: RunImages
    taken: str = ""


@dataclass(frozen=True)
class Measured:
    """What a run has written, and what was found out about it, by the paths of artifacts.

    Attributes:
        missing: what could not be measured of single artifacts.
        peaks: of this machine's runtimes, where `qexport doctor` has measured them.
    """

    results: Sequence[ArtifactResult]
    figures: Mapping[Path, Figures] = field(default_factory=dict)
    evidence: Mapping[Path, Evidence] = field(default_factory=dict)
    missing: Sequence[Unmeasured] = ()
    peaks: Peaks | None = None


def make_report(
    inputs: Inputs,
    environment: Environment,
    failures: Iterable[tuple[str, QexportError]] = (),
) -> Report:
    """A run's report without any artifact.

    Args:
        environment: see `qexport.system.machine.environment`.
        failures: formats that were not written, and why.
    """
    options, checkpoint, images = inputs.options, inputs.checkpoint, inputs.images
    return Report(
        command=options.command,
        model=model_info(checkpoint, inputs.program),
        calibration=_calibration_info(inputs, inputs.table) if inputs.table else None,
        evaluation=evaluation_info(options, checkpoint.task, images) if options.scored else None,
        artifacts=(),
        seconds={},
        threads=options.threads,
        warnings=run_warnings(options, checkpoint, inputs.table, images),
        failures=tuple(failure_of(name, error) for name, error in failures),
        saved=options.saved,
        training=_training(checkpoint),
        environment=environment,
    )


def _training(checkpoint: Checkpoint) -> tuple[TrainingRecord, ...]:
    """What the checkpoint says of how it was trained for integers."""
    if not checkpoint.learned:
        return ()
    return tuple(each.record for each in read_learned(checkpoint.learned, checkpoint.path).profiles)


def with_artifacts(report: Report, measured: Measured, inputs: Inputs, seconds: Mapping[str, float]) -> Report:
    """The report with each artifact's figures, or why there are none; no image is read again."""
    counterparts = float_counterparts(measured.results)
    entries = []
    for item in measured.results:
        path = item.artifact.path
        reference = measured.figures.get(counterparts[path]) if path in counterparts else None
        entry = artifact_report(
            item,
            measured.figures.get(path, Figures()),
            reference,
            measured.evidence.get(path, Evidence()),
            inputs.images.overlap,
            inputs.checkpoint.names,
            measured.peaks.of(item.artifact.format) if measured.peaks else None,
        )
        reasons = dict.fromkeys(missing_warning(each) for each in measured.missing if each.artifact == path.name)
        entries.append(replace(entry, warnings=(*reasons, *entry.warnings)))
    missing = (*report.unmeasured, *measured.missing)
    return replace(report, artifacts=tuple(entries), seconds=dict(seconds), unmeasured=missing)


def failure_of(name: str, error: QexportError) -> Failure:
    """What happened to a format; its name goes before the reason wherever that is shown, so it is not in it."""
    return Failure(name, re.sub(rf"^({re.escape(name)}[\w-]*: )+", "", str(error)), error.exit_code)


def artifact_report(
    item: ArtifactResult,
    figures: Figures,
    reference: Figures | None = None,
    evidence: Evidence | None = None,
    overlap: Sequence[Path] = (),
    names: Mapping[int, str] | None = None,
    peaks: RuntimePeaks | None = None,
) -> ArtifactReport:
    """One artifact's figures, beside those of `reference`, the float artifact of the same runtime.

    Args:
        overlap, names, peaks: evaluation images that were calibrated on; of the model's classes; of the runtime here.
    """
    artifact, behind, exact = item.artifact, evidence or Evidence(), reference or Figures()
    return ArtifactReport(
        path=str(artifact.path),
        format=artifact.format,
        precision=artifact.precision,
        sha256=artifact.sha256,
        bytes=artifact.bytes,
        runtime=item.runtime,
        engine=item.engine,
        accuracy=accuracy_info(figures.accuracy, exact.accuracy, behind, names or {}) if figures.accuracy else None,
        latency_ms=latency_of(figures.latency),
        latency_float_ms=latency_of(exact.latency),
        speedup=speedup(figures.latency, exact.latency),
        int8_mac_coverage=round(item.verification.coverage, 4) if item.verification else None,
        quantisation=item.quantisation,
        plan=str(item.plan) if item.plan else None,
        verification=item.verification,
        outputs=figures.outputs,
        device=item.fit,
        gallery=behind.gallery,
        layers=behind.layers,
        histograms=behind.histograms,
        manifest=manifest_path(artifact.path).name,
        warnings=tuple(_artifact_warnings(item, figures, reference, overlap, peaks)),
        own_runtime=item.own_runtime,
        arithmetic={k: round(v, 4) for k, v in item.stored.arithmetic.items()} if item.stored else None,
        needs=dict(item.stored.needs) if item.stored else None,
        by_default=default_run(figures),
        speedup_by_default=by_default_speedup(figures, reference),
        passes=item.passes,
        likeness=item.likeness,
        repair=item.repair,
        tuning=item.tuning,
        peak_share=peak_share(item, figures, peaks),
        taken=_taken(item, figures),
    )


def _taken(item: ArtifactResult, figures: Figures) -> dict[str, str]:
    """What of it is an earlier run's; see `ArtifactReport`."""
    tuning = {"tuning": item.tuning.taken} if item.tuning and item.tuning.taken else {}
    return {**({"file": item.taken} if item.taken else {}), **tuning, **figures.taken}


def _artifact_warnings(
    item: ArtifactResult,
    figures: Figures,
    reference: Figures | None,
    overlap: Sequence[Path],
    peaks: RuntimePeaks | None,
) -> list[Warning]:
    artifact, latency = item.artifact, figures.latency
    float_latency = reference.latency if reference else None
    found = [Warning(ARTIFACT, text) for text in item.warnings]
    found += likeness_warnings(item, figures)
    if figures.accuracy:
        found += accuracy_warnings(figures.accuracy.images, figures.accuracy.unread, len(overlap))
        exact = figures if artifact.precision == "fp32" else reference
        found += reference_warnings(exact.accuracy if exact else None)
    if figures.outputs and overlap:
        text = f"{len(overlap)} of the images that outputs are compared on were calibrated on"
        found.append(Warning(ARTIFACT, text))
    if latency:
        found += latency_warnings(*(each for each in (latency, float_latency) if each))
        found += cpu_warnings(item.quantisation, cpu_kind())
    if item.fit and item.fit.lacking:
        found.append(device_warning(item.fit))
    if latency and float_latency and latency.p50 > float_latency.p50:
        found.append(slower_than_float(artifact.format, artifact.precision, peaks))
    return found + runtime_warnings(item, figures, reference)


def accuracy_info(
    accuracy: Accuracy, reference: Accuracy | None, evidence: Evidence, names: Mapping[int, str]
) -> AccuracyInfo:
    """Figures in hundred-thousandths, and what stands behind them; see `AccuracyInfo`."""
    bounds, parts = evidence.intervals, evidence.fidelity
    resamples = bounds.resamples if bounds else parts.resamples if parts else None
    if resamples is None and (evidence.per_class or evidence.confidence):
        resamples = 0
    drop, retention = _against(accuracy.map, reference.map if reference else None)
    return AccuracyInfo(
        map=_rounded(accuracy.map),
        map50=_rounded(accuracy.map50),
        box_map=_rounded(accuracy.box_map),
        map_float=_rounded(reference.map) if reference else None,
        map50_float=_rounded(reference.map50) if reference else None,
        drop=_rounded(drop),
        retention=_rounded(retention),
        fidelity=_rounded(accuracy.fidelity),
        fidelity_ceiling=None if accuracy.fidelity is None else _rounded(accuracy.fidelity_ceiling),
        images=accuracy.images,
        map_interval=_interval(bounds.map if bounds else None),
        drop_interval=_interval(bounds.drop if bounds else None),
        retention_interval=_interval(bounds.retention if bounds else None),
        resamples=resamples,
        per_class=_classes(evidence, names) if resamples is not None else None,
        confidence=_confidence(evidence.confidence),
        fidelity_interval=_interval(parts.interval if parts else None),
        fidelity50=_rounded(parts.at_50 if parts else None),
        fidelity50_interval=_interval(parts.at_50_interval if parts else None),
        matched_boxes=tuple(map(_boxes, parts.matched)) if parts else (),
        thresholds=evidence.thresholds,
    )


def _against(figure: float | None, exact: float | None) -> tuple[float | None, float | None]:
    """What was lost of the float file's figure, and the share that is left; None where there is none."""
    if figure is None or exact is None:
        return None, None
    return exact - figure, figure / exact if exact else None


def _boxes(found: MatchedBoxes) -> MatchedBoxes:
    figures: dict[str, Any] = {name: round(each, 4) for name, each in vars(found).items() if isinstance(each, float)}
    return replace(found, **figures)


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 5)


def _interval(bounds: Interval | None) -> Interval | None:
    return None if bounds is None else (round(bounds[0], 5), round(bounds[1], 5))


def _classes(evidence: Evidence, names: Mapping[int, str]) -> tuple[ClassAccuracy, ...]:
    rows = ((each, names.get(each.number, str(each.number))) for each in evidence.per_class)
    return tuple(
        ClassAccuracy(each.number, name, each.labels, _rounded(each.map), _rounded(each.map_float))
        for each, name in rows
    )


def _confidence(shift: ConfidenceShift | None) -> ConfidenceShift | None:
    if shift is None:
        return None
    figures: dict[str, Any] = {name: round(each, 4) for name, each in vars(shift).items() if isinstance(each, float)}
    return replace(shift, **figures)


def model_info(checkpoint: Checkpoint, program: Program) -> ModelInfo:
    """What was exported."""
    return ModelInfo(
        path=str(checkpoint.path),
        sha256=checkpoint.fingerprint,
        task=checkpoint.task or None,
        head=program.layout.head,
        nms=program.layout.end2end and program.layout.head not in ("end2end", "queries"),
        imgsz=tuple(program.input.imgsz),
        batch=program.input.batch,
        classes=len(checkpoint.names),
        names=tuple(checkpoint.names.values()),
        single_class=checkpoint.single_class,
        program=program.fingerprint,
    )


def _calibration_info(inputs: Inputs, table: CalibrationTable) -> CalibrationInfo:
    options, images = inputs.options, inputs.images
    return CalibrationInfo(
        data=options.data,
        table=str(options.calibration) if options.calibration else None,
        images=len(table.image_names),
        available=images.available or None,
        fingerprint=table.images,
        preprocess=table.preprocess,
        skipped=_skipped(skipped_in(table, images)),
        ranges=options.ranges,
        min_images=options.min_images,
        taken=inputs.taken,
    )


def evaluation_info(options: RunOptions, task: str, images: RunImages) -> EvaluationInfo:
    """What accuracy is measured on."""
    return EvaluationInfo(
        metrics=tuple(SCORING[task].names) if task else (),
        data=options.eval_data or options.data,
        images=len(images.evaluation),
        fingerprint=fingerprint(images.evaluation),
        also_calibrated_on=tuple(path.name for path in images.overlap),
        labelled=images.labelled,
        skipped=_skipped(images.unscored),
    )


def _skipped(left_out: Sequence[LeftOut]) -> tuple[SkippedImage, ...]:
    return tuple(SkippedImage(each.path.name, each.reason) for each in left_out)
