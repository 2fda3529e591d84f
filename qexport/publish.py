"""What a run leaves beside its artifacts: manifests, samples, the report and its renderings.

Artifacts that were written can be checked from the moment on that they are there, whatever happens afterwards: their
manifests and a report without figures come first.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from qexport.calibration.calibration_table import CalibrationTable
from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.detections.agreement import Findings
from qexport.errors import InputError
from qexport.inspection.manifest import make_manifest, write_manifest
from qexport.inspection.run_folder import REPORT, companions, free_name, keep_report, manifests_in
from qexport.inspection.samples import FILE, Samples, load_samples, save_samples, take_samples
from qexport.job.options import ExportJob
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.evidence.gather import gather
from qexport.measurement.measure import measure
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.reporting.baseline import compare
from qexport.reporting.gate import Gate, bounds_of, check
from qexport.reporting.load import SavedReport
from qexport.reporting.page import write_page
from qexport.reporting.renderings import write_junit, write_summary
from qexport.reporting.report import Report, save_report, to_json, with_figures
from qexport.verification.result import ArtifactResult

UNFINISHED = "the run ended before everything was measured"
"""Warning of a report that no later one has replaced."""


def measure_run(
    source: Source,
    job: ExportJob,
    images: RunImages,
    table: CalibrationTable | None,
    written: Sequence[ArtifactResult],
    report: Report,
    clock: Clock,
) -> Report:
    """Measure everything that was written, and keep samples of it; return the report with all figures."""
    missing: list[Unmeasured] = []
    before = companions(job.folder)
    names = {item.artifact.path.name for item in written}
    if job.report_json == job.folder / REPORT:
        keep_report(job.folder, names)
    _write_manifests(source, job.range_method, table, written, report, None)
    with attempt([], REPORT):  # the report that comes last says so
        save_report(replace(report, warnings=(*report.warnings, UNFINISHED)), job.report_json)
    task = source.checkpoint.task
    figures = measure(job, task, source.program, images, written, clock, missing)
    evidence = gather(source.program, task, table, written, figures, clock, missing)
    samples = None
    with attempt(missing, "samples"), clock.step("samples", "Keeping samples"):
        samples = _save_samples(source.program, job, images.samples, written, missing)
    _write_manifests(source, job.range_method, table, written, report, samples)
    for name in before - companions(job.folder):  # of artifacts that were replaced
        (job.folder / name).unlink(missing_ok=True)
    of_run = [each for each in missing if not each.artifact]
    of_artifacts = [each for each in missing if each.artifact]
    made = with_figures(report, source, images, written, figures, clock.seconds, evidence, of_artifacts)
    return _with_missing(made, of_run)


def _write_manifests(
    source: Source,
    ranges: str,
    table: CalibrationTable | None,
    written: Sequence[ArtifactResult],
    report: Report,
    samples: str | None,
) -> None:
    for item in written:
        kept = samples if item.runs_here else None
        manifest = make_manifest(source, item, table, report.environment, report.command, ranges, kept)
        write_manifest(manifest, item.artifact.path)


def _save_samples(
    program: Program,
    job: ExportJob,
    images: Sequence[Path],
    written: Sequence[ArtifactResult],
    missing: list[Unmeasured],
) -> str | None:
    """Keep what each artifact that runs here finds in a few images; return the file's name, None for none."""
    folder, samples = job.folder, None
    for item in (item for item in written if item.runs_here):
        path = item.artifact.path
        with attempt(missing, "samples", path):
            load = partial(item.backend.runner, path, job.threads)  # one at a time in memory
            taken = take_samples(program, images, {path.name: load})
            if samples and taken:
                taken = replace(taken, found={**samples.found, **taken.found})
            samples = taken or samples
    if samples is None:
        return None
    names = {item.artifact.path.name for item in written}
    name, earlier = _place(folder, samples, names)
    save_samples(replace(samples, found={**earlier, **samples.found}), folder / name)
    return name


def _place(folder: Path, samples: Samples, names: set[str]) -> tuple[str, dict[str, tuple[Findings, ...]]]:
    """Name of the file for samples, and what others' artifacts found in the same images, which are in it already."""
    others = {name: each for name, each in manifests_in(folder).items() if name not in names}
    for name in sorted({str(each["samples"]) for each in others.values() if each.get("samples")}):
        with suppress(InputError):
            kept = load_samples(folder / Path(name).name)
            same = kept.layout == samples.layout and kept.input == samples.input
            if same and np.array_equal(kept.images, samples.images):
                return name, {artifact: found for artifact, found in kept.found.items() if artifact in others}
    first = min(samples.found)
    return free_name(folder, FILE, first, "samples", lambda each: each.get("artifact") in names), {}


def judged(report: Report, job: ExportJob, baseline: SavedReport | None) -> Report:
    """Check the job's rules, and compare with an earlier run where there is one."""
    missing: list[Unmeasured] = []
    with attempt(missing, "check of the gate's rules"):
        content = json.loads(to_json(report))
        outcomes = check(content, bounds_of(job), job.precision)
        report = replace(report, gate=Gate(all(each.passed for each in outcomes), outcomes)) if outcomes else report
    if baseline:
        with attempt(missing, "comparison with the baseline"):
            report = _compared(report, job, baseline)
    return _with_missing(report, missing)


def _compared(report: Report, job: ExportJob, baseline: SavedReport) -> Report:
    compared, warnings = compare(json.loads(to_json(report)), baseline.content, job.precision)
    outcomes = (*(report.gate.rules if report.gate else ()), *compared)
    origin = {"path": str(baseline.path), "sha256": baseline.sha256}
    gate = Gate(all(each.passed for each in outcomes), outcomes) if outcomes else None
    return replace(report, baseline=origin, warnings=(*report.warnings, *warnings), gate=gate)


def _with_missing(report: Report, missing: Sequence[Unmeasured]) -> Report:
    warnings = dict.fromkeys((*report.warnings, *(each.text for each in missing)))
    return replace(report, warnings=tuple(warnings), unmeasured=(*report.unmeasured, *missing))


def publish(report: Report, job: ExportJob, baseline: SavedReport | None) -> Report:
    """Judge and save a report and render its other forms; one that fails does not lose the others."""
    report = judged(report, job, baseline)
    missing: list[Unmeasured] = []
    with attempt(missing, REPORT):
        save_report(report, job.report_json)
        if job.page:
            with attempt(missing, "page"):
                write_page(job.report_json, job.page)
    content = json.loads(to_json(report))
    with attempt(missing, "summary"):
        write_summary(job, content)
    with attempt(missing, "junit"):
        write_junit(job, content)
    report = _with_missing(report, missing)
    if missing and not any(each.what == REPORT for each in missing):
        with attempt([], REPORT):  # the one before is there
            save_report(report, job.report_json)
    return report
