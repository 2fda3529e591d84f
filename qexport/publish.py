"""What a run leaves beside its artifacts: manifests, samples, the report and its renderings.

Artifacts that were written can be checked from the moment on that they are there, whatever happens afterwards: their
manifests and a report without figures come first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Lock

from qexport.backends.registry import reported_packages
from qexport.calibration.calibration_table import CalibrationTable
from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.errors import QexportError
from qexport.inspection.manifest import make_manifest, write_manifest
from qexport.inspection.run_folder import (
    REPORT,
    companions,
    is_replaced,
    keep_report,
)
from qexport.inspection.run_samples import keep_samples
from qexport.job.bounds import bounds_of
from qexport.job.export_job import ExportJob
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.evidence.gather import gather
from qexport.measurement.measure import Elsewheres, measure
from qexport.programs.build import Source
from qexport.reporting.assemble import Inputs, Measured, evaluation_info, make_report, model_info, with_artifacts
from qexport.reporting.baseline import compare, refuse_other
from qexport.reporting.gate import check
from qexport.reporting.kept_peaks import kept_peaks
from qexport.reporting.likeness import strict_outcomes
from qexport.reporting.load import Baseline
from qexport.reporting.options import Places, RunOptions
from qexport.reporting.page import write_page
from qexport.reporting.renderings import save_report, write_junit, write_summary
from qexport.reporting.report import RUN, Gate, Report, Warning
from qexport.reporting.warnings import missing_warning
from qexport.system.cache import Cache
from qexport.system.machine import environment
from qexport.verification.result import ArtifactResult

NO_CACHE = Cache()
UNFINISHED = "the run ended before everything was measured"
"""Warning of a report that no later one has replaced."""


def run_options(job: ExportJob, command: str = "") -> RunOptions:
    """What the report says of a job."""
    return RunOptions(
        command=command,
        data=job.data,
        eval_data=job.eval_data,
        calibration=job.calibration,
        ranges=job.range_method,
        min_images=job.min_images,
        threads=job.threads,
        target=job.target or "",
        scored=job.evaluates,
        timed=not job.no_latency,
        saved=str(job.report_json),
    )


def places_of(job: ExportJob) -> Places:
    """Where a job's report goes."""
    return Places(job.report_json, job.page, job.summary, job.junit)


def check_baseline(baseline: Baseline, job: ExportJob, source: Source, images: RunImages) -> None:
    """Refuse a baseline that says nothing of this run, before anything slow happens.

    Raises:
        InputError: see `qexport.reporting.baseline.refuse_other`.
    """
    checkpoint = source.checkpoint
    evaluation = evaluation_info(run_options(job), checkpoint.task, images) if job.evaluates else None
    refuse_other(baseline, job.format, job.precision, model_info(checkpoint, source.program), evaluation)


def inputs_of(
    job: ExportJob,
    command: str,
    source: Source,
    table: CalibrationTable | None,
    images: RunImages,
    taken: str = "",
) -> Inputs:
    """What went into a run, as its report says it.

    Args:
        taken: when an earlier run made the table, "" where this one did.
    """
    return Inputs(run_options(job, command), source.checkpoint, source.program, table, images, taken)


def begin_report(
    inputs: Inputs,
    written: Sequence[ArtifactResult],
    failures: Sequence[tuple[str, QexportError]],
    seconds: Mapping[str, float],
) -> Report:
    """The report of what was written, before any of it is measured."""
    report = make_report(inputs, environment(reported_packages()), failures)
    return with_artifacts(report, Measured(written), inputs, seconds)


class Standing:
    """What a run has written until now, with what its folder says of it: manifests, and a report without figures.

    An artifact of an earlier run goes where one of its name comes, and what was said of it with it.

    Args:
        inputs: of the run's report.
    """

    def __init__(self, source: Source, job: ExportJob, table: CalibrationTable | None, inputs: Inputs) -> None:
        self._source, self._job, self._table, self._inputs = source, job, table, inputs
        self._alone, self._written, self._whole = Lock(), dict[Path, ArtifactResult](), False
        self._before, self._kept = companions(job.folder), list[Path]()

    def add(self, written: ArtifactResult) -> None:
        """Say what an artifact is as soon as it is there, from any thread; what is built elsewhere is a trial.

        What a second process has built that nobody waits for, behind a failure, comes too late: figures may be there.
        """
        path = written.artifact.path
        with self._alone:
            if not self._whole and path.parent == self._job.folder and self._written.get(path) is not written:
                self._written[path] = written
                every = list(self._written.values())
                with attempt([], REPORT):  # all of it is written once more
                    self._describe(every, begin_report(self._inputs, every, (), {}))

    def describe(self, written: Sequence[ArtifactResult], report: Report) -> None:
        """Say what everything is, before any of it is measured.

        Raises:
            InputError: a manifest cannot be written.
        """
        with self._alone:
            self._whole = True
            self._written = {each.artifact.path: each for each in written}
            self._describe(written, report)

    def tidy(self) -> None:
        """Remove files that belonged to artifacts that were replaced."""
        for name in self._before - companions(self._job.folder):
            (self._job.folder / name).unlink(missing_ok=True)
        names = {path.name for path in self._written}
        for report in self._kept:
            if is_replaced(report, names):
                report.unlink(missing_ok=True)

    def _describe(self, written: Sequence[ArtifactResult], report: Report) -> None:
        job, names = self._job, {item.artifact.path.name for item in written}
        if job.report_json == job.folder / REPORT and (kept := keep_report(job.folder, names)):
            self._kept.append(kept)
        _write_manifests(self._source, job.range_method, self._table, written, report, None)
        with attempt([], REPORT):  # the report that comes last says so
            save_report(replace(report, warnings=(*report.warnings, Warning(RUN, UNFINISHED))), job.report_json)


def measure_run(
    source: Source,
    job: ExportJob,
    images: RunImages,
    table: CalibrationTable | None,
    written: Sequence[ArtifactResult],
    report: Report,
    clock: Clock,
    standing: Standing,
    cache: Cache = NO_CACHE,
    elsewhere: Elsewheres | None = None,
) -> Report:
    """Measure everything that was written, and keep samples of it; return the report with all figures."""
    missing: list[Unmeasured] = []
    standing.describe(written, report)
    task = source.checkpoint.task
    figures = measure(
        source.program,
        task,
        images,
        written,
        threads=job.threads,
        accuracy=job.evaluates,
        latency=job.measures_latency,
        clock=clock,
        missing=missing,
        cache=cache,
        elsewhere=elsewhere,
    )
    evidence = gather(source.program, task, table, written, figures, clock, missing, cache)
    samples = None
    with attempt(missing, "samples"), clock.step("samples", "Keeping samples"):
        samples = keep_samples(source.program, images.samples, written, job.folder, job.threads, missing, cache)
    _write_manifests(source, job.range_method, table, written, report, samples)
    standing.tidy()
    of_run = [each for each in missing if not each.artifact]
    of_artifacts = [each for each in missing if each.artifact]
    inputs = inputs_of(job, report.command, source, table, images)
    peaks = kept_peaks(job.threads) if job.measures_latency else None
    measured = Measured(written, figures, evidence, of_artifacts, peaks)
    return _with_missing(with_artifacts(report, measured, inputs, clock.seconds), of_run)


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


def judged(report: Report, job: ExportJob, baseline: Baseline | None) -> Report:
    """Check the job's rules, and compare with an earlier run where there is one."""
    missing: list[Unmeasured] = []
    with attempt(missing, "check of the gate's rules"):
        outcomes = check(report, bounds_of(job), job.precision)
        outcomes += strict_outcomes(report, job.precision) if job.strict else ()
        report = replace(report, gate=Gate(all(each.passed for each in outcomes), outcomes)) if outcomes else report
    if baseline:
        with attempt(missing, "comparison with the baseline"):
            report = _compared(report, job, baseline)
    return _with_missing(report, missing)


def _compared(report: Report, job: ExportJob, baseline: Baseline) -> Report:
    compared, notes = compare(report, baseline.report, job.precision)
    outcomes = (*(report.gate.rules if report.gate else ()), *compared)
    gate = Gate(all(each.passed for each in outcomes), outcomes) if outcomes else None
    warnings = (*report.warnings, *(Warning(RUN, note) for note in notes))
    return replace(report, baseline=baseline.origin, warnings=warnings, gate=gate)


def _with_missing(report: Report, missing: Sequence[Unmeasured]) -> Report:
    warnings = dict.fromkeys((*report.warnings, *map(missing_warning, missing)))
    return replace(report, warnings=tuple(warnings), unmeasured=(*report.unmeasured, *missing))


def publish(report: Report, job: ExportJob, baseline: Baseline | None) -> Report:
    """Judge and save a report and render its other forms; one that fails does not lose the others."""
    report, places, missing = judged(report, job, baseline), places_of(job), list[Unmeasured]()
    with attempt(missing, REPORT):
        save_report(report, places.report)
        if places.page:
            with attempt(missing, "page"):
                write_page(report, places.page)
    if places.summary:
        with attempt(missing, "summary"):
            write_summary(report, places.summary)
    if places.junit:
        with attempt(missing, "junit"):
            write_junit(report, places.junit)
    report = _with_missing(report, missing)
    if missing and not any(each.what == REPORT for each in missing):
        with attempt([], REPORT):  # the one before is there
            save_report(report, places.report)
    return report
