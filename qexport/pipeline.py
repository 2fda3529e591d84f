"""A run: resolve → read → calibrate → for each target plan → optimise → lower → verify → measure → report.

Nothing below knows of a job: what a step needs of it is given as a noun.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from qexport.backends.info import options_from
from qexport.backends.protocol import Backend, EngineBuilder
from qexport.backends.registry import available_formats, find_backend, find_info, formats_from_onnx
from qexport.calibration.calibration_table import CalibrationTable
from qexport.clock import WAITED, Clock
from qexport.compat.one_at_a_time import TRACING
from qexport.errors import QexportError
from qexport.execution.executor import Executor, Task, WorkerDiedError
from qexport.inspection.run_folder import Model, run_folder
from qexport.job.export_job import ExportJob
from qexport.job.offload import offloaded_formats
from qexport.opening import Run, calibrated, opened, table_notes, target_of
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.sensitivity_record import Sensitivity
from qexport.optimisation.tune_record import TuneRecord
from qexport.progress import Progress, Silent
from qexport.publish import Standing, begin_report, check_baseline, inputs_of, measure_run, publish
from qexport.reporting.load import load_baseline
from qexport.reporting.report import Report
from qexport.steps.build import BuildRequest, Built, companion_path, planned_candidate
from qexport.steps.lower import build_engine
from qexport.steps.plan import computes_in_integers
from qexport.steps.repair import Scorer, repaired
from qexport.steps.reuse import artifact_key, build_once
from qexport.steps.scoring import scoring_processes
from qexport.steps.sensitivity import sensitivity
from qexport.steps.tune import Tuned, searched, tuned, tuning_key
from qexport.sweeps.turns import Turns
from qexport.verification.result import ArtifactResult

SILENT = Silent()


def export(
    job: ExportJob,
    progress: Progress = SILENT,
    command: str = "",
    beside: Executor | None = None,
    turns: Turns | None = None,
) -> Report:
    """Do one run and return its report, which is also saved.

    What cannot be measured or rendered is in the report with its reason; what was written stays.

    Args:
        job: see `make_job`, which checks it.
        progress: shows steps; nothing does unless given.
        command: for the report, as one string.
        beside: a second process, where the caller has one, that builds `offloaded_formats(job)` beside this one.
        turns: of runs that share the machine, of which one at a time measures latency.

    Raises:
        QexportError: one of its kinds; no half-written file is left behind.
    """
    with TRACING:  # torch traces what other threads run, so that runs wait for each other
        clock = Clock(progress, partial(turns.alone, progress)) if turns else Clock(progress)
        return _exported(job, clock, command, beside)


def _exported(job: ExportJob, clock: Clock, command: str, beside: Executor | None) -> Report:
    progress = clock.progress
    baseline = load_baseline(job.baseline) if job.baseline else None
    run = opened(job, clock, beside)
    if baseline:
        check_baseline(baseline, job, run.source, run.images)
    checkpoint, program = run.source.checkpoint, run.source.program
    model = Model(checkpoint.path.name, checkpoint.fingerprint, program.fingerprint)
    with run_folder(job.folder, job.out is not None, model, progress) as folder, scoring_processes(job.jobs) as several:
        run = replace(run, job=replace(job, out=folder), progress=progress, elsewhere=several)
        pending = _submit_float(run)
        table, taken = calibrated(run)
        run = replace(run, images=replace(run.images, notes=(*run.images.notes, *table_notes(run, table))))
        inputs = inputs_of(run.job, command, run.source, table, run.images, taken)
        standing = Standing(run.source, run.job, table, inputs)
        run = replace(run, written=standing.add)
        pending |= _submit_calibrated(run, table)
        for reply in pending.values():
            reply.add_done_callback(partial(_tell, run))
        written, failures = write_all(run, table, pending)
        begun = begin_report(inputs, written, failures, clock.seconds)
        measured = measure_run(
            run.source, run.job, run.images, table, written, begun, clock, standing, run.cache, run.elsewhere
        )
        return publish(measured, run.job, baseline)


def sensitivity_of(job: ExportJob, count: int, max_settings: int | None, progress: Progress = SILENT) -> Sensitivity:
    """Measure what each part of the plan for a job's first format costs; nothing is written.

    Args:
        count, max_settings: see `qexport.steps.sensitivity.sensitivity`.

    Raises:
        QexportError: one of its kinds.
    """
    run = opened(job, Clock(progress), None)
    table, _ = calibrated(run, keep=False)
    candidate, _ = planned_candidate(run.source, request(run, job.format[0], job.precision, table))
    assert candidate is not None  # of precisions that have a plan
    return sensitivity(candidate, run.images.calibration, progress, count=count, max_settings=max_settings)


Pending = dict[tuple[str, str], "Future[Built]"]
"""What is being built beside this process, by format and precision."""


def _submit_float(run: Run) -> Pending:
    """FP32 files need no calibration: the second process starts with them."""
    job, beside = run.job, run.beside
    if beside is None:
        return {}
    wanted = [name for name in offloaded_formats(job) if job.needs_float_counterpart(find_info(name).timed)]
    return _submitted(run, beside, [request(run, name, "fp32") for name in wanted])


def _submit_calibrated(run: Run, table: CalibrationTable | None) -> Pending:
    job, beside = run.job, run.beside
    if beside is None or len(job.format) == 1:
        return {}
    return _submitted(run, beside, [request(run, name, job.precision, table) for name in offloaded_formats(job)])


def _submitted(run: Run, beside: Executor, asked: Sequence[BuildRequest]) -> Pending:
    """What is built beside; files of an earlier run are not waited for: this process takes them when it gets there."""
    keys = [artifact_key(run.cache, run.source, each, run.fingerprint) for each in asked]
    return {
        (each.target.format, each.target.precision): _submit(run, beside, each, key)
        for each, key in zip(asked, keys, strict=True)
        if not run.cache.holds(key)
    }


def _tell(run: Run, reply: Future[Built]) -> None:
    """Tell of what was built beside; what failed there is told where it is waited for."""
    if not reply.cancelled() and reply.exception() is None:
        run.written(reply.result().result)


def _submit(run: Run, executor: Executor, asked: BuildRequest, key: str) -> Future[Built]:
    return executor.submit(Task(build_once, (asked, run.cache, key), run.reading, shown=True))


def request(run: Run, name: str, precision: str, table: CalibrationTable | None = None) -> BuildRequest:
    """What is to be built of a job for one format and precision, beside what is asked for its FP32 file."""
    job, info, target = run.job, find_info(name), target_of(run.job, name, precision)
    path, own = job.folder / f"{job.stem}_{precision}{info.suffix}", precision == job.precision
    able = formats_from_onnx() if job.from_onnx else available_formats()
    beside = target, path, job.stem, len(job.format) == 1
    return BuildRequest(
        target=target,
        path=path,
        plan_path=companion_path("plan.json", *beside),
        samples=run.images.samples,
        model=run.source.checkpoint.fingerprint,
        plan=run.plan if own and job.plan else None,
        candidate=job.candidate if own else None,
        learned=own and run.plan is None and run.source.checkpoint.trained and computes_in_integers(target),
        candidate_path=companion_path("candidate.npz", *beside),
        table=table,
        ranges=job.range_method,
        keep_float=job.keep_float,
        densify=job.densify,
        passes=job.passes if own else (),
        images=run.images.calibration if own and job.calibrates else (),
        views=job.views,
        options=options_from(info, job.backend_options),
        threads=job.threads,
        device=job.target or "",
        others=tuple(each for each in able if each not in job.format),
    )


def write_all(
    run: Run, table: CalibrationTable | None, pending: Pending
) -> tuple[list[ArtifactResult], list[tuple[str, QexportError]]]:
    """Build every format; one that fails does not lose the others. What is built beside is waited for last.

    Raises:
        QexportError: nothing could be written at all.
    """
    job = run.job
    written: dict[str, list[ArtifactResult]] = {name: [] for name in job.format}
    errors: dict[str, QexportError] = {}
    for name in sorted(job.format, key=lambda name: (name, job.precision) in pending):
        try:
            for item in _write_format(run, table, find_backend(name), pending):
                run.written(item)
                written[name].append(item)
        except QexportError as error:
            errors[name] = error
    failures = [(name, errors[name]) for name in job.format if name in errors]
    if not any(written.values()):
        raise failures[0][1]
    return [item for items in written.values() for item in items], failures


def _write_format(
    run: Run, table: CalibrationTable | None, backend: Backend, pending: Pending
) -> Iterator[ArtifactResult]:
    """What is asked for, FP32 where it is needed to compare with, and an engine where the format has one."""
    job, precision, name = run.job, run.job.precision, backend.info.name
    asked, exact = _bettered(run, request(run, name, precision, table), pending)
    yield asked
    if job.needs_float_counterpart(backend.info.timed):
        yield exact or _built(run, request(run, name, "fp32"), pending)
    if isinstance(backend, EngineBuilder):
        backend.write_script(job.folder)
        if not job.no_build:
            assert backend.info.engine is not None
            path = job.folder / f"{job.stem}_{precision}{backend.info.engine.suffix}"
            options = {"most_images": max(16, job.batch), "likely_images": job.batch, **job.backend_options}
            with run.clock.step(f"build_{name}", f"Building {name} engine"):
                yield build_engine(run.source, asked, path, options)


def _bettered(run: Run, wanted: BuildRequest, pending: Pending) -> tuple[ArtifactResult, ArtifactResult | None]:
    """What is asked for, made faster and repaired where the job says so; with it FP32, where that was needed for it."""
    job, asked, exact, built_by = run.job, _built(run, wanted, pending), None, wanted
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        if job.tune:
            wait(pending.values())  # nothing is to work beside what is timed
            try:
                asked, built_by = _tuned(run, wanted, asked, Path(folder))
            except QexportError as error:
                asked = replace(asked, warnings=(*asked.warnings, f"not tuned: {error}"))
        if job.repairs:
            try:
                exact = _built(run, request(run, wanted.target.format, "fp32"), pending)
                asked = _repaired(run, replace(wanted, target=built_by.target), asked, exact, built_by)
            except QexportError as error:
                asked = replace(asked, warnings=(*asked.warnings, f"not repaired: {error}"))
    return asked, exact


def _tuned(run: Run, wanted: BuildRequest, asked: ArtifactResult, folder: Path) -> Tuned:
    """What is fastest here in the place of an artifact; see `qexport.steps.tune`."""
    job, source, clock, cache = run.job, run.source, run.clock, run.cache
    wanted = replace(wanted, images=run.images.calibration)
    before = artifact_key(cache, source, wanted, run.fingerprint)
    key = tuning_key(cache, before, asked, wanted, job.tune_seconds)

    def search(given: BuildRequest, candidate: Candidate) -> TuneRecord:
        with clock.alone(), clock.timed(f"tune_{given.target.format}"):
            return searched(given, candidate, source, job.tune_seconds, cache, key, run.progress)

    return tuned(wanted, asked, source, lambda given: _built(run, given, {}), search, folder)


def _repaired(
    run: Run, wanted: BuildRequest, asked: ArtifactResult, exact: ArtifactResult, built_by: BuildRequest
) -> ArtifactResult:
    """What meets the job's budget in the place of an artifact that does not; see `qexport.steps.repair`."""
    job, source, clock = run.job, run.source, run.clock
    if not asked.runs_here or job.max_drop is None:
        return asked
    task, images = source.checkpoint.task, run.images
    score = Scorer(
        source.program, task, images, exact, job.threads, job.measures_latency, clock, run.cache, run.elsewhere
    )
    wanted = replace(wanted, images=images.calibration)

    def build_again(given: BuildRequest) -> ArtifactResult:
        return _built(run, given, {})

    started, timed = perf_counter(), sum(clock.seconds.values())
    try:
        return repaired(wanted, asked, source.program, job.max_drop, score, build_again, run.progress, built_by)
    finally:  # building and scoring are timed by themselves
        own = perf_counter() - started - (sum(clock.seconds.values()) - timed)
        clock.add({f"repair_{wanted.target.format}": own})


def _built(run: Run, asked: BuildRequest, pending: Pending) -> ArtifactResult:
    """Wait for what is built beside, or build it here; here, too, where that process is gone."""
    target, clock, started = asked.target, run.clock, perf_counter()
    reply = pending.get((target.format, target.precision))
    with clock.shown(f"Writing {target.format} {target.precision.upper()}"):
        if reply is not None:
            with suppress(WorkerDiedError):
                built = reply.result()
                clock.add({f"{WAITED}{target.format}_{target.precision}": perf_counter() - started, **built.seconds})
                return built.result
        key = artifact_key(run.cache, run.source, asked, run.fingerprint)
        built = _submit(run, run.here, asked, key).result()
        clock.add(built.seconds)
        run.written(built.result)
        return built.result
