"""Which images a run calibrates with and which it evaluates on, listed before anything slow happens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qexport.data.choice import limit_of, note_of, take
from qexport.data.dataset import Dataset, image_list, label_path, overlap
from qexport.data.resolve import resolve_data
from qexport.errors import InputError


@dataclass(frozen=True)
class ImageChoice:
    """Which data sets a run uses, and how much of them.

    Attributes:
        data: data set whose train split calibrates and, unless `eval_data` is given, whose val split evaluates.
        eval_data: another one to evaluate on.
        calibrates: ranges of activations are taken from images, or the artifacts are verified on them.
        evaluates: the run scores its artifacts.
        fraction, count: share and greatest number of calibration images: see `qexport.data.choice`.
        calibrated: ranges are known already, so that how many images there are says nothing of them.
        compares: artifacts are compared with FP32 ones, for which images need no labels.
    """

    data: str | None = None
    eval_data: str | None = None
    calibrates: bool = False
    evaluates: bool = True
    fraction: float = 1.0
    count: int | None = None
    calibrated: bool = False
    compares: bool = True


@dataclass(frozen=True)
class LeftOut:
    """An image that no step can use, and why."""

    path: Path
    reason: str


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
        labelled: the evaluation images have labels; those without a label file then show nothing that has one.
        left_out, unscored: what `qexport.data.usable` has taken out of the calibration and the evaluation images.
    """

    calibration: tuple[Path, ...] = ()
    evaluation: tuple[Path, ...] = ()
    evaluation_data: Dataset | None = None
    overlap: tuple[Path, ...] = ()
    calibration_dataset: Dataset | None = None
    available: int = 0
    notes: tuple[str, ...] = ()
    classes: Mapping[int, str] = field(default_factory=dict)
    labelled: bool = True
    left_out: tuple[LeftOut, ...] = ()
    unscored: tuple[LeftOut, ...] = ()

    @property
    def samples(self) -> tuple[Path, ...]:
        """Images to try an artifact on: calibration images where there are some."""
        return self.calibration or self.evaluation


def select_images(choice: ImageChoice, task_known: bool = True) -> RunImages:
    """List the images of a run.

    Images that were given to evaluate on may be a folder or a list of them, and need no labels where artifacts are
    compared with FP32 ones.

    Args:
        task_known: it is known what the model finds; otherwise outputs are compared, on calibration images where the
            data set has no val split.

    Raises:
        InputError: a data set, split or image folder is missing or empty.
    """
    found = _calibration_images(choice)
    if not choice.evaluates:
        return found
    data = resolve_data(choice.eval_data) if choice.eval_data else found.calibration_dataset
    if data is None:
        raise InputError("no data set to evaluate on", "add --eval-data, or --no-eval")
    alone = not task_known or (bool(choice.eval_data) and data.undivided)
    evaluation = image_list(data, "train" if alone and "val" not in data.splits else "val")
    common = overlap(evaluation, found.calibration)
    found = replace(found, evaluation=evaluation, evaluation_data=data, overlap=common)
    if not task_known or has_labels(data, evaluation):
        return found
    missing = f"no label files for the images of {data.yaml} (looked for {label_path(evaluation[0], data.labels)})"
    if not choice.compares:
        raise InputError(missing, "accuracy needs labels: give --eval-data with labels, or --no-eval")
    # Who gives images alone knows that they have no labels.
    notes = found.notes if data.undivided else (*found.notes, f"{missing}: fidelity only")
    return replace(found, labelled=False, notes=notes)


def has_labels(data: Dataset, images: Sequence[Path]) -> bool:
    """Whether any of the images has labels: lies in a folder of classes, or has a label file."""
    return data.by_folder or any(label_path(image, data.labels).is_file() for image in images)


def _calibration_images(choice: ImageChoice) -> RunImages:
    """The images to calibrate with, or to try artifacts on where nothing is evaluated."""
    data = resolve_data(choice.data) if choice.data else None
    if data is None or not (choice.calibrates or not choice.evaluates):
        return RunImages(calibration_dataset=data)
    every = image_list(data, "train")
    noted = choice.calibrates and not choice.calibrated
    note = note_of(choice.count, choice.fraction, len(every)) if noted else ""
    calibration = take(every, choice.fraction, limit_of(choice.count, choice.fraction))
    return RunImages(calibration, calibration_dataset=data, available=len(every), notes=(note,) if note else ())


def image_files(images: str | Path | Sequence[Path], fraction: float = 1.0, count: int | None = None) -> Sequence[Path]:
    """Image files as they are given; of a data set those that it calibrates with.

    Args:
        images: files; or a data set whose train split is taken: a YAML, a folder of images, or a list in a file.
        fraction, count: share and greatest number of a data set's images, evenly chosen; None for 512, 0 for all.

    Raises:
        InputError: a data set is missing or has none.
    """
    if not isinstance(images, str | Path):
        return images
    choice = ImageChoice(data=str(images), calibrates=True, evaluates=False, fraction=fraction, count=count)
    return select_images(choice).calibration
