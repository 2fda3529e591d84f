"""The walk of one run: job → checkpoint → program → calibrate → plan → lower → verify → measure → report."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qexport.backends import Backend, EngineBuilder, find_backend
from qexport.calibrate import calibrate, preprocess_name
from qexport.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.checkpoint import Checkpoint, load_checkpoint
from qexport.clock import Clock
from qexport.dataset import fingerprint
from qexport.errors import InputError, QexportError, UsageError
from qexport.files import make_folder
from qexport.heads import split_head
from qexport.inputs import RunImages, select_images
from qexport.job import ExportJob
from qexport.lower import Source, Written, build_engine, write_float, write_int8
from qexport.measure import measure
from qexport.program import Program, capture
from qexport.progress import Progress
from qexport.report import Report, make_report, save_report
from qexport.resolve import resolve_model
from qexport.torchvision_repair import repair


def export(job: ExportJob, progress: Progress, command: str = "") -> Report:
    """Do one run and return its report, which is also saved.

    Raises:
        QexportError: one of its kinds; no half-written file is left behind.
    """
    clock = Clock(progress)
    with clock.step("read", "Reading model and data"):
        images = select_images(job)
        checkpoint = _read_checkpoint(job)
        _check_classes(checkpoint, images)
        folder = make_folder(job.folder)
        program = _capture(job, checkpoint)
    table = _table(job, program, images, folder, clock) if job.int8 else None
    written, failures = _write_all(Source(job, checkpoint, program, images.any, folder), table, clock)
    figures = measure(job, program, images, written, clock)
    report = make_report(job, command, checkpoint, program, table, images, written, figures, clock.seconds, failures)
    save_report(report, job.report or folder / "report.json")
    return report


def _read_checkpoint(job: ExportJob) -> Checkpoint:
    path = resolve_model(job.model)
    repair()
    checkpoint = load_checkpoint(path, job.trust_checkpoint)
    if checkpoint.channels != 3:
        raise InputError(f"{path} takes {checkpoint.channels} channels", "this version exports models of colour images")
    if checkpoint.task != "detect":
        raise InputError(f"{path} is a {checkpoint.task} model", "this version exports detection models")
    return checkpoint


def _check_classes(checkpoint: Checkpoint, images: RunImages) -> None:
    data = images.evaluation_data
    if data is not None and len(data.names) != len(checkpoint.names):
        raise InputError(
            f"{data.yaml} has {len(data.names)} classes, {checkpoint.path} has {len(checkpoint.names)}",
            "give the data set that the model was trained for, or --no-eval",
        )


def _capture(job: ExportJob, checkpoint: Checkpoint) -> Program:
    imgsz, stride = job.imgsz or (checkpoint.imgsz, checkpoint.imgsz), checkpoint.stride
    if any(size % stride for size in imgsz):
        nearest = " ".join(str(-(-size // stride) * stride) for size in imgsz)
        asked = "x".join(map(str, imgsz))
        raise UsageError(f"--imgsz {asked} is not a multiple of the model's stride {stride}", f"use {nearest}")
    module = split_head(checkpoint.module, job.head, imgsz, job.nms)
    return capture(module, imgsz, job.batch, checkpoint.channels, job.dynamic)


def _table(job: ExportJob, program: Program, images: RunImages, folder: Path, clock: Clock) -> CalibrationTable:
    if job.calibration:
        table = load_table(job.calibration)
        check_table(table, program.fingerprint, preprocess_name(program.imgsz), job.calibration)
        if images.calibration and table.images != fingerprint(images.calibration):
            raise InputError(f"{job.calibration} was made from other images than --data", "leave out one of the two")
        return table
    with clock.step("calibrate", "Calibrating", len(images.calibration)) as advance:
        table = calibrate(program, images.calibration, advance)
        save_table(table, folder / "calibration.npz")
    return table


def _write_all(
    source: Source, table: CalibrationTable | None, clock: Clock
) -> tuple[list[Written], list[tuple[str, QexportError]]]:
    """Write every format; one that fails does not lose the others.

    Raises:
        QexportError: nothing could be written at all.
    """
    written: list[Written] = []
    failures: list[tuple[str, QexportError]] = []
    for name in source.job.format:
        try:
            for item in _write_format(source, table, find_backend(name), clock):
                written.append(item)
        except QexportError as error:
            failures.append((name, error))
    if not written:
        raise failures[0][1]
    return written, failures


def _write_format(source: Source, table: CalibrationTable | None, backend: Backend, clock: Clock) -> Iterator[Written]:
    """What is asked for, FP32 where it is needed to compare with, and an engine where the format has one."""
    job, precision = source.job, source.job.precision
    with clock.step(f"lower_{backend.name}_{precision}", f"Writing {backend.name} {precision.upper()}"):
        asked = write_int8(source, backend, table) if table is not None else write_float(source, backend, precision)
    yield asked
    if precision != "fp32" and (not job.no_eval or (backend.timed and not job.no_latency)):
        with clock.step(f"lower_{backend.name}_fp32", f"Writing {backend.name} FP32"):
            yield write_float(source, backend, "fp32")
    if isinstance(backend, EngineBuilder):
        backend.write_script(source.folder)
        if not job.no_build:
            with clock.step(f"build_{backend.name}", f"Building {backend.name} engine"):
                yield build_engine(source, asked)
