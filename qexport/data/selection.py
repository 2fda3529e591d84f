"""Which images a run calibrates with and which it evaluates on, listed before anything slow happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from qexport.data.choice import limit_of, note_of, take
from qexport.data.dataset import Dataset, image_list, label_path, overlap
from qexport.data.resolve import resolve_data
from qexport.errors import InputError
from qexport.job.options import ExportJob


@dataclass(frozen=True)
class RunImages:
    """The images of one run.

    Attributes:
        calibration, evaluation: image files; empty where not needed.
        evaluation_data: the data set that the evaluation images belong to.
        overlap: evaluation images that are calibrated on, too.
        calibration_dataset: the data set that the calibration images belong to.
        available: how many images the calibration images were chosen from.
        notes: what was left out of the images, in one line each.
        classes: the model's, which folders of classes are matched with; empty for the data set's own.
    """

    calibration: tuple[Path, ...] = ()
    evaluation: tuple[Path, ...] = ()
    evaluation_data: Dataset | None = None
    overlap: tuple[Path, ...] = ()
    calibration_dataset: Dataset | None = None
    available: int = 0
    notes: tuple[str, ...] = ()
    classes: Mapping[int, str] = field(default_factory=dict)

    @property
    def samples(self) -> tuple[Path, ...]:
        """Images to try an artifact on: calibration images where there are some."""
        return self.calibration or self.evaluation


def select_images(job: ExportJob, labelled: bool = True) -> RunImages:
    """List the images of a run.

    Args:
        labelled: accuracy is measured, which needs labels; without, outputs are compared, on calibration images where
            the data set has no val split.

    Raises:
        InputError: a data set, split or image folder is missing or empty.
    """
    found = _calibration_images(job)
    if job.no_eval:
        return found
    data = resolve_data(job.eval_data) if job.eval_data else found.calibration_dataset
    if data is None:
        raise InputError("no data set to evaluate on", "add --eval-data, or --no-eval")
    evaluation = image_list(data, "val" if labelled or "val" in data.splits else "train")
    places = [label_path(image, data.labels) for image in evaluation]
    if labelled and not data.by_folder and not any(place.is_file() for place in places):
        raise InputError(
            f"no label files for the images of {data.yaml} (looked for {places[0]})",
            "accuracy needs labels: give --eval-data with labels, or --no-eval",
        )
    common = overlap(evaluation, found.calibration)
    return replace(found, evaluation=evaluation, evaluation_data=data, overlap=common)


def _calibration_images(job: ExportJob) -> RunImages:
    """The images to calibrate with, or to try artifacts on where nothing is evaluated."""
    data = resolve_data(job.data) if job.data else None
    if data is None or not (job.calibrates or job.no_eval):
        return RunImages(calibration_dataset=data)
    every = image_list(data, "train")
    note = note_of(job.calib_images, job.fraction, len(every)) if job.calibrates and not job.calibration else ""
    calibration = take(every, job.fraction, limit_of(job.calib_images, job.fraction))
    return RunImages(calibration, calibration_dataset=data, available=len(every), notes=(note,) if note else ())


def check_paths(job: ExportJob) -> None:
    """Refuse files that are not there, before anything slow is imported; bare names are resolved later.

    Raises:
        InputError: a path does not exist.
    """
    options: dict[str, str | Path | None]
    options = {"model": job.model, "--data": job.data, "--eval-data": job.eval_data}
    options |= {"--calibration": job.calibration, "--baseline": job.baseline}
    for option, given in options.items():
        path = Path(given) if given else None
        if path and not path.exists() and (option in ("--calibration", "--baseline") or path.name != str(given)):
            raise InputError(f"{option} {given} does not exist", "check the path")
