"""The walk of one run: job → checkpoint → program → calibrate → plan → lower → verify → measure → report."""

from __future__ import annotations

from pathlib import Path

from qexport.backends import Backend, find_backend
from qexport.calibrate import calibrate, preprocess_name
from qexport.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.checkpoint import Checkpoint, load_checkpoint
from qexport.clock import Clock
from qexport.dataset import fingerprint
from qexport.errors import InputError, UsageError
from qexport.files import make_folder
from qexport.heads import split_head
from qexport.inputs import RunImages, select_images
from qexport.job import ExportJob
from qexport.lower import Written, plan_for, write_float, write_int8
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
    written: list[Written] = []
    for name in job.format:
        written += _write_format(job, checkpoint, program, table, images, find_backend(name), folder, clock)
    figures = measure(job, program, images, written, clock)
    report = make_report(job, command, checkpoint, program, table, images, written, figures, clock.seconds)
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
    return capture(split_head(checkpoint.module, job.head, imgsz, job.nms), imgsz, job.batch, checkpoint.channels)


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


def _write_format(
    job: ExportJob,
    checkpoint: Checkpoint,
    program: Program,
    table: CalibrationTable | None,
    images: RunImages,
    backend: Backend,
    folder: Path,
    clock: Clock,
) -> list[Written]:
    """INT8 where it is asked for, and float where it is the result or needed to compare with."""
    written = []
    if table is not None:
        plan = plan_for(job, program, table, backend, folder)
        with clock.step("lower_int8", f"Writing {backend.name} INT8"):
            written.append(write_int8(job, checkpoint, program, plan, backend, images.any, folder))
    if table is None or not job.no_eval or not job.no_latency:
        with clock.step("lower_fp32", f"Writing {backend.name} FP32"):
            written.append(write_float(job, checkpoint, program, backend, images.any, folder))
    return written
