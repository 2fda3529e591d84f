"""Which images a run calibrates with and which it evaluates on, listed before anything slow happens."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexport.data.choice import limit_of, take
from qexport.data.dataset import Dataset, image_list, overlap
from qexport.data.evaluation_set import label_path
from qexport.data.resolve import resolve_data
from qexport.errors import InputError
from qexport.job import ExportJob


@dataclass(frozen=True)
class RunImages:
    """The images of one run.

    Attributes:
        calibration, evaluation: image files; empty where not needed.
        evaluation_data: the data set that the evaluation images belong to.
        both: evaluation images that are calibrated on, too.
        data: the data set that the calibration images belong to.
        available: how many images the calibration images were chosen from.
        notes: what was left out of the images, in one line each.
    """

    calibration: tuple[Path, ...] = ()
    evaluation: tuple[Path, ...] = ()
    evaluation_data: Dataset | None = None
    both: tuple[Path, ...] = ()
    data: Dataset | None = None
    available: int = 0
    notes: tuple[str, ...] = ()

    @property
    def any(self) -> tuple[Path, ...]:
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
    data = resolve_data(job.data) if job.data else None
    calibration: tuple[Path, ...] = ()
    available = 0
    if data and (job.calibrates or job.no_eval):
        every = image_list(data, "train")
        calibration, available = take(every, job.fraction, limit_of(job.calib_images, job.fraction)), len(every)
    if job.no_eval:
        return RunImages(calibration, data=data, available=available)
    evaluation_data = resolve_data(job.eval_data) if job.eval_data else data
    if evaluation_data is None:
        raise InputError("no data set to evaluate on", "add --eval-data, or --no-eval")
    if not labelled:
        split = "val" if "val" in evaluation_data.splits else "train"
        evaluation = image_list(evaluation_data, split)
        both = overlap(evaluation, calibration)
        return RunImages(calibration, evaluation, evaluation_data, both, available=available)
    evaluation = image_list(evaluation_data, "val")
    places = [label_path(image, evaluation_data.labels) for image in evaluation]
    if not evaluation_data.by_folder and not any(place.is_file() for place in places):
        raise InputError(
            f"no label files for the images of {evaluation_data.yaml} (looked for {places[0]})",
            "accuracy needs labels: give --eval-data with labels, or --no-eval",
        )
    both = overlap(evaluation, calibration)
    return RunImages(calibration, evaluation, evaluation_data, both, data, available)


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
