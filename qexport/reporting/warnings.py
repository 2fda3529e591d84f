"""What a reader must know before believing a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qexport.backends.device_fit import DeviceFit
from qexport.calibration.calibration_table import CalibrationTable
from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.classes import class_numbers
from qexport.data.dataset import Dataset
from qexport.data.selection import RunImages
from qexport.job.options import ExportJob
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.dataset_check import mismatch
from qexport.measurement.latency import Latency
from qexport.system.machine import ANY, cpu_kind
from qexport.targets import TARGETS

MIN_EVALUATION_IMAGES = 50
MIN_MEANINGFUL_MAP = 0.01
"""FP32's mAP or top-1 below which what is kept of it is chance: of untrained models, or with another model's labels."""
WIDE_SPREAD = 0.20


def run_warnings(
    job: ExportJob, checkpoint: Checkpoint, table: CalibrationTable | None, images: RunImages
) -> tuple[str, ...]:
    """What a reader must know of the run as a whole."""
    found = list(checkpoint.notes)
    other = (
        mismatch(checkpoint.task_spec, images.calibration_dataset)
        if images.calibration_dataset and images.calibration_dataset is not images.evaluation_data
        else ""
    )
    if other:
        found.append(f"calibrated on a data set for something else: {other}")
    if table is not None and table.skipped:
        named = ", ".join(f"{name} ({reason})" for name, reason in table.skipped)
        found.append(f"{len(table.skipped)} calibration images were skipped: {named}")
    target = TARGETS.get(job.target or "")
    if target and not (target.here or target.remote or job.no_latency):
        found.append(
            f"latency was not measured: this machine's CPU ({cpu_kind()}) is not {job.target}'s ({target.cpu})"
        )
    found += images.notes
    if job.calibration and not images.calibration and images.evaluation:
        found.append("evaluation images were not compared with those of --calibration: add --data to do so")
    data = images.evaluation_data
    if data is not None and checkpoint.task and not _same_classes(checkpoint, data):
        found.append(f"class names of {data.yaml.name} differ from the model's: accuracy assumes the same order")
    return tuple(found)


def _same_classes(checkpoint: Checkpoint, data: Dataset) -> bool:
    """Whether classes are called the same; folders of classes are matched by name, so that some may be missing."""
    own, theirs = list(checkpoint.names.values()), list(data.names.values())
    return set(class_numbers(data, checkpoint.names)) <= set(own) if data.by_folder else own == theirs


def accuracy_warnings(images: int, unread: Sequence[str], overlapping: int) -> tuple[str, ...]:
    """What a reader must know before believing an accuracy."""
    found = []
    if unread:
        found.append(f"{len(unread)} evaluation images or their labels could not be read: {', '.join(unread)}")
    if images < MIN_EVALUATION_IMAGES:
        found.append(f"accuracy is of {images} images only: differences of a few percent are noise")
    if overlapping:
        found.append(f"{overlapping} of {images} evaluation images were calibrated on: accuracy is flattered")
    return tuple(found)


def reference_warnings(accuracy: Accuracy | None) -> tuple[str, ...]:
    """Say where the float file finds next to nothing, so that retention and drop mean nothing."""
    if accuracy is None or accuracy.map >= MIN_MEANINGFUL_MAP:
        return ()
    return (f"FP32's accuracy is {accuracy.map:.4f}: retention and drop say nothing; is it trained, on such data?",)


def latency_warnings(*latencies: Latency) -> tuple[str, ...]:
    """Say when the machine was too restless for its medians to be trusted."""
    widest = max(latency.spread for latency in latencies)
    if widest <= WIDE_SPREAD:
        return ()
    return (f"latency varied: the 95th percentile is {widest:.0%} above the median",)


def cpu_warnings(quantisation: Mapping[str, str] | None, here: str) -> tuple[str, ...]:
    """Say when a file was timed on another kind of CPU than it is planned for."""
    planned = (quantisation or {}).get("cpu", ANY)
    if planned in (ANY, here):
        return ()
    return (f"latency is that of this machine ({here}), but the file is planned for {planned}",)


def device_warning(fit: DeviceFit) -> str:
    """What the device leaves to others, and why, in one line."""
    reasons = "; ".join(f"{each.count} {each.kind} ({each.reason})" for each in fit.lacking)
    if fit.in_front is None:
        return f"{fit.device} lacks operators: {reasons}"
    behind = fit.operators - fit.in_front
    return (
        f"{fit.device} leaves {behind} of {fit.operators} operators to the CPU, from the first of these on: {reasons}"
    )
