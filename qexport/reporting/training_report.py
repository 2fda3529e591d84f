"""What a training run came to: `train.json`, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qexport.optimisation.pass_record import PassRecord
from qexport.reporting.record_file import load_record, save_record
from qexport.training.record import TrainingRecord

SCHEMA = 1


@dataclass(frozen=True)
class ProfileTraining:
    """One runtime profile's training.

    Attributes:
        formats: that are planned by the profile.
        record: epoch by epoch.
        passes: what became of each pass before training.
        fidelity_before, fidelity: mAP50-95 of the simulated network against FP32's detections on the evaluation
            images, before training and of what was kept; None where nothing was evaluated.
    """

    formats: tuple[str, ...]
    record: TrainingRecord
    passes: tuple[PassRecord, ...] = ()
    fidelity_before: float | None = None
    fidelity: float | None = None


@dataclass(frozen=True)
class TrainingReport:
    """A run of `qexport qat`.

    Attributes:
        model: name of the model's file; `sha256`: of its bytes.
        file: path of the checkpoint that was written.
        command: as it was typed; "" from Python.
        version: of qexport.
        data: data set that was trained on.
        imgsz: height and width in pixels.
        profiles: in the order of the formats.
        seconds: step of the run → what it took.
        notes: what must be known besides, one line each.
        interrupted: training ended before it was done, by the user.
    """

    model: str
    sha256: str
    file: Path
    command: str
    version: str
    data: str
    precision: str
    imgsz: tuple[int, int]
    profiles: tuple[ProfileTraining, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    interrupted: bool = False


def save_training(report: TrainingReport, path: Path) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    save_record(report, SCHEMA, path)


def load_training(path: str | Path) -> TrainingReport:
    """Read what `save_training` wrote.

    Raises:
        InputError: it cannot be read, is something else, or was written by a later version.
    """
    return load_record(TrainingReport, SCHEMA, path, "training that qexport recorded", "train again")
