"""The walk of one run: job → checkpoint → program → calibrate → plan → lower → verify → measure → report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from qexport.backends import Backend, EngineBuilder, find_backend, find_class
from qexport.calibration.calibrate import calibrate, preprocess_name
from qexport.calibration.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.checkpoints.source import Source, read_source
from qexport.clock import Clock
from qexport.data.data_check import check_data
from qexport.data.dataset import fingerprint
from qexport.data.inputs import RunImages, select_images
from qexport.data.resolve import resolve_model
from qexport.errors import InputError, QexportError
from qexport.files import make_folder
from qexport.job import ExportJob
from qexport.lowering.lower import Written, build_engine, write_calibrated, write_float
from qexport.lowering.second_process import Ask, EndedError, ReadSource, WriteArtifact, formats_apart
from qexport.measurement.evidence import gather
from qexport.measurement.measure import measure
from qexport.progress import Progress
from qexport.reporting.baseline import compare, refuse_other
from qexport.reporting.gate import Gate, bounds_of, check
from qexport.reporting.page import write_page
from qexport.reporting.renderings import write_renderings
from qexport.reporting.report import Report, evaluation_entry, make_report, model_entry, save_report, to_json
from qexport.reporting.saved_report import SavedReport, read_report
from qexport.verification.manifest import make_manifest, write_manifest
from qexport.verification.samples import FILE, save_samples, take_samples

Pending = dict[tuple[str, str], "Future[Written]"]
"""What a second process was asked to write, by format and precision."""


def export(job: ExportJob, progress: Progress, command: str = "", ask: Ask | None = None) -> Report:
    """Do one run and return its report, which is also saved.

    Args:
        ask: a second process, where the caller has one, that writes `formats_apart(job)` beside this one.

    Raises:
        QexportError: one of its kinds; no half-written file is left behind.
    """
    clock = Clock(progress)
    baseline = read_report(job.baseline) if job.baseline else None
    with clock.step("read", "Reading model and data"):
        images = select_images(job, labelled=knows_task(job))
        path = resolve_model(job.model)
        if ask:
            ask(ReadSource(job, path, images.any))
        source = read_source(job, path, images.any, partial(check_data, images=images))
        if baseline:
            _check_baseline(baseline, source, images)
        make_folder(job.folder)
    pending = _ask_for_float(job, ask) if ask else {}
    table = _table(source, images, clock) if job.calibrates else None
    if ask and len(job.format) > 1:
        pending |= {
            (name, job.precision): ask(WriteArtifact(name, job.precision, table)) for name in formats_apart(job)
        }
    written, failures = _write_all(source, table, pending, clock)
    figures = measure(job, source.checkpoint.task, source.program, images, written, clock)
    evidence = gather(source.program, source.checkpoint.task, table, written, figures, clock)
    _save_samples(source, written, clock)
    report = make_report(source, command, table, images, written, figures, clock.seconds, failures, evidence)
    for item in written:
        manifest = make_manifest(source, item, table, report.environment, command)
        write_manifest(manifest, item.artifact.path)
    report = judged(report, job, baseline)
    save_report(report, job.report_json)
    if job.page:
        write_page(job.report_json, job.page)
    write_renderings(job, json.loads(to_json(report)))
    return report


def judged(report: Report, job: ExportJob, baseline: SavedReport | None) -> Report:
    """Check the job's rules, and compare with an earlier run where there is one."""
    content = json.loads(to_json(report))
    outcomes = check(content, bounds_of(job), job.precision)
    if baseline:
        compared, warnings = compare(content, baseline.content, job.precision)
        outcomes += compared
        origin = {"path": str(baseline.path), "sha256": baseline.sha256}
        report = replace(report, baseline=origin, warnings=(*report.warnings, *warnings))
    return replace(report, gate=Gate(all(each.passed for each in outcomes), outcomes)) if outcomes else report


def _check_baseline(baseline: SavedReport, source: Source, images: RunImages) -> None:
    job, checkpoint = source.job, source.checkpoint
    evaluation = None if job.no_eval else evaluation_entry(job, checkpoint.task, images)
    refuse_other(baseline, job, model_entry(checkpoint, source.program), evaluation)


def _save_samples(source: Source, written: Sequence[Written], clock: Clock) -> None:
    """Keep what each artifact that runs here finds in a few images."""
    with clock.step("samples", "Keeping samples"):
        paths = {item.artifact.path: item.backend for item in written if item.runs_here}
        runners = {
            path.name: partial(backend.runner, path, source.job.threads)  # one at a time in memory
            for path, backend in paths.items()
        }
        samples, place = take_samples(source.program, source.samples, runners), source.job.folder / FILE
        if samples:
            save_samples(samples, place)
        else:
            place.unlink(missing_ok=True)  # those of an earlier run say nothing of these files


def knows_task(job: ExportJob) -> bool:
    """Whether the model says what its outputs mean, so that labels can be compared with them.

    Raises:
        InputError: it is a file that cannot be quantised, whatever the data are.
    """
    if not job.from_onnx or not Path(job.model).is_file():
        return True
    from qexport.backends.onnx_file import described, read_file

    return described(read_file(Path(job.model)).metadata) is not None


def _ask_for_float(job: ExportJob, ask: Ask) -> Pending:
    """FP32 files need no calibration: the second process starts with them."""
    wanted = (name for name in formats_apart(job) if job.compares(find_class(name).timed))
    return {(name, "fp32"): ask(WriteArtifact(name, "fp32")) for name in wanted}


def _table(source: Source, images: RunImages, clock: Clock) -> CalibrationTable:
    job, program = source.job, source.program
    if job.calibration:
        table = load_table(job.calibration)
        check_table(table, program.fingerprint, preprocess_name(program), job.calibration)
        if images.calibration and table.images != fingerprint(images.calibration):
            raise InputError(f"{job.calibration} was made from other images than --data", "leave out one of the two")
        return table
    with clock.step("calibrate", "Calibrating", len(images.calibration)) as advance:
        table = calibrate(program, images.calibration, advance)
        save_table(table, job.folder / "calibration.npz")
    return table


def _write_all(
    source: Source, table: CalibrationTable | None, pending: Pending, clock: Clock
) -> tuple[list[Written], list[tuple[str, QexportError]]]:
    """Write every format; one that fails does not lose the others. What a second process writes is waited for last.

    Raises:
        QexportError: nothing could be written at all.
    """
    written: dict[str, list[Written]] = {name: [] for name in source.job.format}
    errors: dict[str, QexportError] = {}
    for name in sorted(source.job.format, key=lambda name: (name, source.job.precision) in pending):
        try:
            for item in _write_format(source, table, find_backend(name), pending, clock):
                written[name].append(item)
        except QexportError as error:
            errors[name] = error
    failures = [(name, errors[name]) for name in source.job.format if name in errors]
    if not any(written.values()):
        raise failures[0][1]
    return [item for items in written.values() for item in items], failures


def _write_format(
    source: Source, table: CalibrationTable | None, backend: Backend, pending: Pending, clock: Clock
) -> Iterator[Written]:
    """What is asked for, FP32 where it is needed to compare with, and an engine where the format has one."""
    job, precision = source.job, source.job.precision
    with clock.step(f"lower_{backend.name}_{precision}", f"Writing {backend.name} {precision.upper()}"):
        asked = _write(source, table, backend, precision, pending)
    yield asked
    if job.compares(backend.timed):
        with clock.step(f"lower_{backend.name}_fp32", f"Writing {backend.name} FP32"):
            yield _write(source, None, backend, "fp32", pending)
    if isinstance(backend, EngineBuilder):
        backend.write_script(job.folder)
        if not job.no_build:
            with clock.step(f"build_{backend.name}", f"Building {backend.name} engine"):
                yield build_engine(source, asked)


def _write(
    source: Source, table: CalibrationTable | None, backend: Backend, precision: str, pending: Pending
) -> Written:
    """Wait for the second process, or write it here; here, too, where that process is gone."""
    reply = pending.get((backend.name, precision))
    if reply is not None:
        with suppress(EndedError):
            return reply.result()
    return write_calibrated(source, backend, table) if table is not None else write_float(source, backend, precision)
