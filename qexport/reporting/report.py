"""The report: every figure of a run as plain data. JSON is its form; tables and pages are renderings of it."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qexport.backends.artifact import manifest_path
from qexport.backends.device_fit import DeviceFit
from qexport.calibration.calibration_table import CalibrationTable
from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.dataset import fingerprint
from qexport.data.selection import RunImages
from qexport.errors import QexportError
from qexport.job.options import ExportJob
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.evidence.gallery import Picture
from qexport.measurement.evidence.gather import Evidence, accuracy_entry
from qexport.measurement.evidence.histograms import Histogram
from qexport.measurement.evidence.layers import Layer
from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.reporting.gate import Gate
from qexport.reporting.runtime_facts import by_default_entry, by_default_speedup, latency_entry, runtime_warnings
from qexport.reporting.warnings import (
    accuracy_warnings,
    cpu_warnings,
    device_warning,
    latency_warnings,
    reference_warnings,
    run_warnings,
)
from qexport.system.files import write_text
from qexport.system.machine import cpu_kind, environment
from qexport.tasks import SCORING
from qexport.verification.output_fidelity import OutputFidelity
from qexport.verification.result import ArtifactResult, float_counterparts
from qexport.verification.verify import Verification
from qexport.version import __version__

SCHEMA = 2


@dataclass(frozen=True)
class ArtifactReport:
    """Figures of one artifact; None where they were not measured.

    Attributes:
        runtime: what it was verified, scored and timed with.
        own_runtime: whether that is the runtime that it is for, on hardware that it is for; if not, its latency is not
            measured, and all else is the stand-in's.
        arithmetic: type → share of the multiply-accumulates that the runtime does in it here, 0..1.
        needs: what runs the file → the least version of it.
        by_default: of an FP32 file that its runtime would compute in less than FP32: in what, and its latency then.
        speedup_by_default: factor by which it is faster than that.
    """

    path: str
    format: str
    precision: str
    sha256: str
    bytes: int
    runtime: str = ""
    engine: bool = False
    accuracy: dict[str, Any] | None = None
    latency_ms: dict[str, float] | None = None
    latency_float_ms: dict[str, float] | None = None
    speedup: float | None = None
    int8_mac_coverage: float | None = None
    quantisation: dict[str, str] | None = None
    plan: str | None = None
    verification: Verification | None = None
    outputs: tuple[OutputFidelity, ...] = ()
    device: DeviceFit | None = None
    gallery: tuple[Picture, ...] | None = None
    layers: tuple[Layer, ...] | None = None
    histograms: tuple[Histogram, ...] | None = None
    manifest: str | None = None
    warnings: tuple[str, ...] = ()
    own_runtime: bool = True
    arithmetic: dict[str, float] | None = None
    needs: dict[str, str] | None = None
    by_default: dict[str, Any] | None = None
    speedup_by_default: float | None = None


@dataclass(frozen=True)
class Failure:
    """A format that was not written, or not to its end: why, and the exit code that it leads to."""

    format: str
    reason: str
    exit_code: int


@dataclass(frozen=True)
class Report:
    """One run: what went in, where it ran, what came out.

    Attributes:
        command: the command line, as one string.
        model, calibration, evaluation: paths and fingerprints.
        seconds: wall-clock time of each step. Planning, lowering and verifying count by themselves for each artifact,
            such as "plan_tflite_int8"; where a second process did them beside others, "wait_tflite_int8" says how much
            of it was waited for, and no more of it belongs to the run's sum (`qexport.clock.elapsed`).
        threads: CPU threads that artifacts ran with.
        warnings: about the run as a whole.
        failures: formats that did not come to their end; the others did.
        gate: rules that were checked, None where none was set.
        baseline: path and hash of the report that it was compared with.
        unmeasured: what could not be measured or rendered; of artifacts it is among their warnings, too.
        saved: where this report was saved.
    """

    command: str
    model: dict[str, Any]
    calibration: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    artifacts: tuple[ArtifactReport, ...]
    seconds: dict[str, float]
    threads: int
    warnings: tuple[str, ...] = ()
    failures: tuple[Failure, ...] = ()
    gate: Gate | None = None
    baseline: dict[str, str] | None = None
    unmeasured: tuple[Unmeasured, ...] = ()
    saved: str = ""
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    schema: int = SCHEMA
    qexport: str = __version__


def to_json(report: Report) -> str:
    """Return the report as indented JSON."""
    return json.dumps(dataclasses.asdict(report), indent=2, default=str) + "\n"


def save_report(report: Report, path: Path) -> None:
    """Write report.json whole or not at all."""
    write_text(path, to_json(report))


def make_report(
    source: Source,
    job: ExportJob,
    command: str,
    table: CalibrationTable | None,
    images: RunImages,
    written: Sequence[ArtifactResult],
    figures: Mapping[Path, Figures],
    seconds: Mapping[str, float],
    failures: Sequence[tuple[str, QexportError]] = (),
    evidence: Mapping[Path, Evidence] | None = None,
) -> Report:
    """Gather a run's figures."""
    checkpoint = source.checkpoint
    report = Report(
        command=command,
        model=model_entry(checkpoint, source.program),
        calibration=_calibration_entry(job, table, images) if table else None,
        evaluation=evaluation_entry(job, checkpoint.task, images) if not job.no_eval else None,
        artifacts=(),
        seconds={},
        threads=job.threads,
        warnings=run_warnings(job, checkpoint, table, images),
        failures=tuple(failure_of(name, error) for name, error in failures),
        saved=str(job.report_json),
    )
    return with_figures(report, source, images, written, figures, seconds, evidence or {})


def with_figures(
    report: Report,
    source: Source,
    images: RunImages,
    written: Sequence[ArtifactResult],
    figures: Mapping[Path, Figures],
    seconds: Mapping[str, float],
    evidence: Mapping[Path, Evidence],
    missing: Sequence[Unmeasured] = (),
) -> Report:
    """The report with each artifact's figures, or why there are none; no image is read again."""
    counterparts, names = float_counterparts(written), source.checkpoint.names
    entries = []
    for item in written:
        path = item.artifact.path
        reference = figures.get(counterparts[path]) if path in counterparts else None
        behind = evidence.get(path, Evidence())
        entry = artifact_entry(item, figures.get(path, Figures()), reference, images, behind, names)
        reasons = dict.fromkeys(each.text for each in missing if each.artifact == path.name)
        entries.append(dataclasses.replace(entry, warnings=(*reasons, *entry.warnings)))
    return dataclasses.replace(report, artifacts=tuple(entries), seconds=dict(seconds), unmeasured=tuple(missing))


def failure_of(name: str, error: QexportError) -> Failure:
    """What happened to a format; its name goes before the reason wherever that is shown, so it is not in it."""
    return Failure(name, re.sub(rf"^({re.escape(name)}[\w-]*: )+", "", str(error)), error.exit_code)


def artifact_entry(
    item: ArtifactResult,
    figures: Figures,
    reference: Figures | None,
    images: RunImages,
    evidence: Evidence,
    names: Mapping[int, str],
) -> ArtifactReport:
    """One artifact's figures, beside those of the float artifact of the same runtime."""
    artifact, latency = item.artifact, figures.latency
    float_latency = reference.latency if reference else None
    warnings = list(item.warnings)
    if figures.accuracy:
        warnings += accuracy_warnings(figures.accuracy.images, figures.accuracy.unread, len(images.overlap))
        exact = figures if artifact.precision == "fp32" else reference
        warnings += reference_warnings(exact.accuracy if exact else None)
    if figures.outputs and images.overlap:
        warnings.append(f"{len(images.overlap)} of the images that outputs are compared on were calibrated on")
    if latency:
        warnings += latency_warnings(*(each for each in (latency, float_latency) if each))
        warnings += cpu_warnings(item.quantisation, cpu_kind())
    if item.fit and item.fit.lacking:
        warnings.append(device_warning(item.fit))
    if latency and float_latency and latency.p50 > float_latency.p50:
        warnings.append(f"{artifact.format} runs float32 files faster than {artifact.precision} on this CPU")
    warnings += runtime_warnings(item, figures, reference)
    return ArtifactReport(
        path=str(artifact.path),
        format=artifact.format,
        precision=artifact.precision,
        sha256=artifact.sha256,
        bytes=artifact.bytes,
        runtime=item.runtime,
        engine=item.engine_runtime is not None,
        accuracy=_accuracy_entry(figures.accuracy, reference.accuracy if reference else None, evidence, names),
        latency_ms=_latency_entry(latency),
        latency_float_ms=_latency_entry(float_latency),
        speedup=round(float_latency.p50 / latency.p50, 3) if latency and float_latency else None,
        int8_mac_coverage=round(item.verification.coverage, 4) if item.verification else None,
        quantisation=item.quantisation,
        plan=str(item.plan) if item.plan else None,
        verification=item.verification,
        outputs=figures.outputs,
        device=item.fit,
        gallery=evidence.gallery,
        layers=evidence.layers,
        histograms=evidence.histograms,
        manifest=manifest_path(artifact.path).name,
        warnings=tuple(warnings),
        own_runtime=item.own_runtime,
        arithmetic={k: round(v, 4) for k, v in item.stored.arithmetic.items()} if item.stored else None,
        needs=dict(item.stored.needs) if item.stored else None,
        by_default=by_default_entry(figures),
        speedup_by_default=by_default_speedup(figures, reference),
    )


def _accuracy_entry(
    accuracy: Accuracy | None, reference: Accuracy | None, evidence: Evidence, names: Mapping[int, str]
) -> dict[str, Any] | None:
    if accuracy is None:
        return None
    return {
        "map": round(accuracy.map, 5),
        "map50": round(accuracy.map50, 5),
        **({} if accuracy.box_map is None else {"box_map": round(accuracy.box_map, 5)}),
        "map_float": round(reference.map, 5) if reference else None,
        "map50_float": round(reference.map50, 5) if reference else None,
        "drop": round(reference.map - accuracy.map, 5) if reference else None,
        "retention": round(accuracy.map / reference.map, 5) if reference and reference.map else None,
        "fidelity": None if accuracy.fidelity is None else round(accuracy.fidelity, 5),
        "images": accuracy.images,
        **accuracy_entry(evidence, names),
    }


def _latency_entry(latency: Latency | None) -> dict[str, float] | None:
    return latency_entry(latency) if latency else None


def model_entry(checkpoint: Checkpoint, program: Program) -> dict[str, Any]:
    """What was exported."""
    return {
        "path": str(checkpoint.path),
        "sha256": checkpoint.fingerprint,
        "task": checkpoint.task or None,
        "head": program.head,
        "nms": program.final and program.head not in ("end2end", "queries"),
        "imgsz": list(program.imgsz),
        "batch": program.batch,
        "classes": len(checkpoint.names),
        "names": list(checkpoint.names.values()),
        "single_class": checkpoint.single_class,
        "program": program.fingerprint,
    }


def _calibration_entry(job: ExportJob, table: CalibrationTable, images: RunImages) -> dict[str, Any]:
    return {
        "data": job.data,
        "table": str(job.calibration) if job.calibration else None,
        "images": len(table.image_names),
        "available": images.available or None,
        "fingerprint": table.images,
        "preprocess": table.preprocess,
        "skipped": [{"image": name, "reason": reason} for name, reason in table.skipped],
        "ranges": job.range_method,
    }


def evaluation_entry(job: ExportJob, task: str, images: RunImages) -> dict[str, Any]:
    """What accuracy is measured on."""
    return {
        "metrics": list(SCORING[task].names) if task else [],
        "data": job.eval_data or job.data,
        "images": len(images.evaluation),
        "fingerprint": fingerprint(images.evaluation),
        "also_calibrated_on": [path.name for path in images.overlap],
    }
