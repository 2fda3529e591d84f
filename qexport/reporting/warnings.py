"""What a reader must know before believing a figure: warnings with what they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qexport.backends.device_fit import DeviceFit
from qexport.calibration.calibration_table import CalibrationTable
from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.classes import class_numbers
from qexport.data.dataset import Dataset
from qexport.data.selection import LeftOut, RunImages
from qexport.data.usable import named
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.dataset_check import mismatch
from qexport.measurement.latency import Latency
from qexport.reporting.limits import MIN_EVALUATION_IMAGES, MIN_MEANINGFUL_MAP
from qexport.reporting.options import RunOptions
from qexport.reporting.report import ACCURACY, ARTIFACT, LATENCY, RUN, Warning
from qexport.system.machine import ANY, cpu_kind
from qexport.targets import TARGETS

ABOUT = {
    "accuracy": ACCURACY,
    "intervals of accuracy": ACCURACY,
    "accuracy of classes": ACCURACY,
    "parts of fidelity": ACCURACY,
    "latency": LATENCY,
}
"""What is missing → the figures that a warning of it is about; of all else it is about the artifact, or the run."""


def run_warnings(
    options: RunOptions, checkpoint: Checkpoint, table: CalibrationTable | None, images: RunImages
) -> tuple[Warning, ...]:
    """What a reader must know of the run as a whole."""
    found = [Warning(RUN, note) for note in checkpoint.notes]
    other = (
        mismatch(checkpoint.task_spec, images.calibration_dataset)
        if images.calibration_dataset and images.calibration_dataset is not images.evaluation_data
        else ""
    )
    if other:
        found.append(Warning(RUN, f"calibrated on a data set for something else: {other}"))
    skipped = skipped_in(table, images)
    if skipped:
        found.append(Warning(RUN, f"{len(skipped)} calibration images were skipped: {named(skipped)}"))
    if images.unscored:
        lost = f"{len(images.unscored)} evaluation images were skipped: {named(images.unscored)}"
        found.append(Warning(ACCURACY, lost))
    target = TARGETS.get(options.target)
    if target and options.timed and not (target.here or target.remote):
        text = f"latency was not measured: this machine's CPU ({cpu_kind()}) is not {options.target}'s ({target.cpu})"
        found.append(Warning(LATENCY, text))
    found += [Warning(RUN, note) for note in images.notes]
    if options.calibration and not images.calibration and images.evaluation:
        text = "evaluation images were not compared with those of --calibration: add --data to do so"
        found.append(Warning(ACCURACY, text))
    data = images.evaluation_data
    if data is not None and checkpoint.task and images.labelled and not _same_classes(checkpoint, data):
        reason = "differ from the model's" if data.names else "are not known"
        text = f"class names of {data.yaml.name} {reason}: accuracy assumes the same order"
        found.append(Warning(ACCURACY, text))
    return tuple(found)


def skipped_in(table: CalibrationTable | None, images: RunImages) -> tuple[LeftOut, ...]:
    """Calibration images that were left out: of this run, or of the one that a given table is from."""
    earlier = table.skipped if table is not None else ()
    return images.left_out or tuple(LeftOut(Path(name), reason) for name, reason in earlier)


def missing_warning(missing: Unmeasured) -> Warning:
    """What could not be measured or rendered, and why."""
    return Warning(ABOUT.get(missing.what, ARTIFACT if missing.artifact else RUN), missing.text)


def _same_classes(checkpoint: Checkpoint, data: Dataset) -> bool:
    """Whether classes are called the same; folders of classes are matched by name, so that some may be missing."""
    own, theirs = list(checkpoint.names.values()), list(data.names.values())
    return set(class_numbers(data, checkpoint.names)) <= set(own) if data.by_folder else own == theirs


def accuracy_warnings(images: int, unread: Sequence[str], overlapping: int) -> tuple[Warning, ...]:
    """What a reader must know before believing an accuracy."""
    found = []
    if unread:
        found.append(f"{len(unread)} evaluation images or their labels could not be read: {', '.join(unread)}")
    if images < MIN_EVALUATION_IMAGES:
        found.append(f"accuracy is of {images} images only: differences of a few percent are noise")
    if overlapping:
        found.append(f"{overlapping} of {images} evaluation images were calibrated on: accuracy is flattered")
    return tuple(Warning(ACCURACY, text) for text in found)


def reference_warnings(accuracy: Accuracy | None) -> tuple[Warning, ...]:
    """Say where the float file finds next to nothing, so that retention and drop mean nothing."""
    if accuracy is None or accuracy.map is None or accuracy.map >= MIN_MEANINGFUL_MAP:
        return ()
    found = f"FP32's accuracy is {accuracy.map:.4f}"
    return (Warning(ACCURACY, f"{found}: retention and drop say nothing; is it trained, on such data?"),)


def latency_warnings(*latencies: Latency) -> tuple[Warning, ...]:
    """Say when the machine was too restless for its medians to be trusted."""
    if not any(latency.restless for latency in latencies):
        return ()
    widest = max(latency.spread for latency in latencies)
    return (Warning(LATENCY, f"latency varied: the 95th percentile is {widest:.0%} above the median"),)


def cpu_warnings(quantisation: Mapping[str, str] | None, here: str) -> tuple[Warning, ...]:
    """Say when a file was timed on another kind of CPU than it is planned for."""
    planned = (quantisation or {}).get("cpu", ANY)
    if planned in (ANY, here):
        return ()
    return (Warning(LATENCY, f"latency is that of this machine ({here}), but the file is planned for {planned}"),)


def device_warning(fit: DeviceFit) -> Warning:
    """What the device leaves to others, and why, in one line."""
    reasons = "; ".join(f"{each.count} {each.kind} ({each.reason})" for each in fit.lacking)
    if fit.in_front is None:
        return Warning(ARTIFACT, f"{fit.device} lacks operators: {reasons}")
    left = f"{fit.device} leaves {fit.operators - fit.in_front} of {fit.operators} operators to the CPU"
    return Warning(ARTIFACT, f"{left}, from the first of these on: {reasons}")
