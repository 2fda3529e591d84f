"""The walk of one run: job → checkpoint → program → calibrate → plan → lower → verify → measure → report."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from qexport.backends.protocol import Backend, EngineBuilder
from qexport.backends.registry import find_backend, find_info
from qexport.calibration.calibrate import calibrate, preprocess_name
from qexport.calibration.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.clock import Clock
from qexport.data.dataset import fingerprint
from qexport.data.resolve import resolve_model
from qexport.data.selection import RunImages, select_images
from qexport.errors import InputError, QexportError
from qexport.execution.worker import ReadSource, Submit, WorkerDiedError, WriteArtifact, offloaded_formats
from qexport.inspection.run_folder import Model, run_folder
from qexport.job.options import ExportJob
from qexport.measurement.dataset_check import as_trained, check_data
from qexport.programs.build import Source, read_source
from qexport.progress import Progress
from qexport.publish import begin_report, check_baseline, inputs_of, measure_run, publish
from qexport.reporting.load import load_baseline
from qexport.reporting.report import Report
from qexport.steps import build_engine, write_calibrated, write_float
from qexport.verification.result import ArtifactResult

Pending = dict[tuple[str, str], "Future[ArtifactResult]"]
"""What a second process was asked to write, by format and precision."""


def export(job: ExportJob, progress: Progress, command: str = "", submit: Submit | None = None) -> Report:
    """Do one run and return its report, which is also saved.

    What cannot be measured or rendered is in the report with its reason; what was written stays.

    Args:
        submit: a second process, where the caller has one, that writes `formats_apart(job)` beside this one.

    Raises:
        QexportError: one of its kinds; no half-written file is left behind.
    """
    clock = Clock(progress)
    baseline = load_baseline(job.baseline) if job.baseline else None
    with clock.step("read", "Reading model and data"):
        images = select_images(job, labelled=has_task_metadata(job))
        path = resolve_model(job.model)
        if submit:
            submit(ReadSource(job, path, images.samples))
        notes: list[str] = []
        source = read_source(
            job, path, images.samples, lambda checkpoint: notes.extend(check_data(checkpoint.task_spec, images))
        )
        images = as_trained(source.checkpoint.task_spec, images)
        images = replace(images, notes=(*images.notes, *notes), classes=source.checkpoint.names)
        if baseline:
            check_baseline(baseline, job, source, images)
    model = Model(source.checkpoint.path.name, source.checkpoint.fingerprint, source.program.fingerprint)
    with run_folder(job, model, progress) as folder:
        placed = replace(source, job=replace(job, out=folder))
        table, written, failures = _written(placed, images, submit, clock)
        begun = begin_report(inputs_of(placed.job, command, placed, table, images), written, failures, clock)
        measured = measure_run(placed, images, table, written, begun, clock)
        return publish(measured, placed.job, baseline)


def _written(
    source: Source, images: RunImages, submit: Submit | None, clock: Clock
) -> tuple[CalibrationTable | None, list[ArtifactResult], list[tuple[str, QexportError]]]:
    """Calibrate and write every format."""
    job = source.job
    pending = _ask_for_float(source, submit) if submit else {}
    table = _table(source, images, clock) if job.calibrates else None
    if submit and len(job.format) > 1:
        for name in offloaded_formats(job):
            pending[name, job.precision] = submit(_request(source, name, job.precision, table))
    return table, *_write_all(source, table, pending, clock)


def has_task_metadata(job: ExportJob) -> bool:
    """Whether the model says what its outputs mean, so that labels can be compared with them.

    Raises:
        InputError: it is a file that cannot be quantised, whatever the data are.
    """
    if not job.from_onnx or not Path(job.model).is_file():
        return True
    from qexport.programs.onnx.file import described, read_file

    return described(read_file(Path(job.model)).metadata) is not None


def _ask_for_float(source: Source, submit: Submit) -> Pending:
    """FP32 files need no calibration: the second process starts with them."""
    job = source.job
    wanted = (name for name in offloaded_formats(job) if job.needs_float_counterpart(find_info(name).timed))
    return {(name, "fp32"): submit(_request(source, name, "fp32")) for name in wanted}


def _request(source: Source, name: str, precision: str, table: CalibrationTable | None = None) -> WriteArtifact:
    return WriteArtifact(name, precision, table, source.job.folder, source.checkpoint.fingerprint)


def _table(source: Source, images: RunImages, clock: Clock) -> CalibrationTable:
    job, program = source.job, source.program
    if job.calibration:
        table = load_table(job.calibration)
        check_table(table, program.fingerprint, preprocess_name(program), job.calibration)
        if images.calibration and table.images != fingerprint(images.calibration):
            raise InputError(
                f"{job.calibration} was made from other images than --data",
                "leave out one of the two, or give its --calib-images and --fraction",
            )
        return table
    with clock.step("calibrate", "Calibrating", len(images.calibration)) as advance:
        table = calibrate(program, images.calibration, advance)
        save_table(table, job.folder / "calibration.npz")
    return table


def _write_all(
    source: Source, table: CalibrationTable | None, pending: Pending, clock: Clock
) -> tuple[list[ArtifactResult], list[tuple[str, QexportError]]]:
    """Write every format; one that fails does not lose the others. What a second process writes is waited for last.

    Raises:
        QexportError: nothing could be written at all.
    """
    written: dict[str, list[ArtifactResult]] = {name: [] for name in source.job.format}
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
) -> Iterator[ArtifactResult]:
    """What is asked for, FP32 where it is needed to compare with, and an engine where the format has one."""
    job, precision = source.job, source.job.precision
    with clock.step(f"lower_{backend.info.name}_{precision}", f"Writing {backend.info.name} {precision.upper()}"):
        asked = _write(source, table, backend, precision, pending)
    yield asked
    if job.needs_float_counterpart(backend.info.timed):
        with clock.step(f"lower_{backend.info.name}_fp32", f"Writing {backend.info.name} FP32"):
            yield _write(source, None, backend, "fp32", pending)
    if isinstance(backend, EngineBuilder):
        backend.write_script(job.folder)
        if not job.no_build:
            with clock.step(f"build_{backend.info.name}", f"Building {backend.info.name} engine"):
                yield build_engine(source, asked)


def _write(
    source: Source, table: CalibrationTable | None, backend: Backend, precision: str, pending: Pending
) -> ArtifactResult:
    """Wait for the second process, or write it here; here, too, where that process is gone."""
    reply = pending.get((backend.info.name, precision))
    if reply is not None:
        with suppress(WorkerDiedError):
            return reply.result()
    return write_calibrated(source, backend, table) if table is not None else write_float(source, backend, precision)
