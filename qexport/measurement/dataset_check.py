"""Whether a data set suits a model: refused where accuracy is asked for, a warning where only images are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qexport.data.classes import class_numbers, other_order, strays, unknown_classes
from qexport.data.dataset import Dataset, label_path
from qexport.data.labels import Wanted, read_labels
from qexport.data.selection import RunImages
from qexport.errors import InputError
from qexport.tasks import TaskSpec


def check_data(model: TaskSpec, images: RunImages, compares: bool = True) -> RunImages:
    """Refuse to score a model on a data set that is not for it, or whose labels are wrong.

    Args:
        compares: artifacts are compared with FP32 ones, for which images need no labels.

    Returns:
        The images, with what a reader must know of the labels all the same. Labels beside images that were given alone
        may be for something else: such images count as unlabelled.

    Raises:
        InputError: classes, channels, the task or a label does not fit.
    """
    data = images.evaluation_data
    if data is None:
        return images
    fits_images = _channels(model, data) if model.task else ""
    reason = mismatch(model, data) or _renumbered(model, data) if images.labelled else fits_images
    if reason:
        raise InputError(reason, "give the data set that the model was trained for, or --no-eval")
    if not model.task or not images.labelled:
        return images
    if data.by_folder:
        notes = _check_folders(model, data, images.evaluation)
        return replace(images, notes=(*images.notes, *notes))
    try:
        notes = _check_files(model, data, images.evaluation)
    except InputError as error:
        if not (data.undivided and compares):
            raise
        note = f"labels beside the images of {data.yaml} were not used, fidelity only: {error.what}"
        return replace(images, labelled=False, notes=(*images.notes, note))
    return replace(images, notes=(*images.notes, *notes))


def _check_files(model: TaskSpec, data: Dataset, images: Sequence[Path]) -> tuple[str, ...]:
    """Read every label file."""
    if model.task == "classify":
        raise InputError("label files are not for classifiers", "give folders of classes as --eval-data, or --no-eval")
    points = data.kpt_shape if _is_described(data) else model.kpt_shape
    labels = read_labels(images, data.labels, Wanted(model.task, len(data.names) or len(model.names), points))
    if labels.fault:
        others = f" and {labels.faulty - 1} more label files are wrong" if labels.faulty > 1 else ""
        raise InputError(f"{labels.fault}{others}", "correct the labels, give --eval-data, or --no-eval")
    if not labels.rows:
        first = label_path(images[0], data.labels)
        raise InputError(
            f"label files of {data.yaml} are empty (the first is {first})", "give --eval-data, or --no-eval"
        )
    return labels.notes


def _check_folders(model: TaskSpec, data: Dataset, images: Sequence[Path]) -> tuple[str, ...]:
    reason = unknown_classes(data, images, class_numbers(data, model.names))
    if reason:
        raise InputError(reason, "rename or remove the folder, or --no-eval")
    said = strays(data)
    return (said,) if said else ()


def as_trained(model: TaskSpec, images: RunImages) -> RunImages:
    """The images as the training had them: with `single_cls`, labels of all classes as one, of the model's name.

    What a set does not say of itself, or not of labels that nobody has, is the model's.
    """
    data = images.evaluation_data
    if data is None or data.by_folder:
        return images
    if not _is_described(data):
        data = replace(data, channels=model.channels, kpt_shape=model.kpt_shape)
    if not images.labelled:
        data = replace(data, names=dict(model.names), kpt_shape=model.kpt_shape)
    if model.single_class:
        data = replace(data, names=dict(model.names), single_class=True)
    return replace(images, evaluation_data=data)


def mismatch(model: TaskSpec, data: Dataset) -> str:
    """What does not fit between a model and a data set's description, "" if nothing is known to."""
    if not model.task:  # of an ONNX file nobody may know what labels would mean
        return ""
    if data.by_folder:
        if model.task != "classify":
            return f"{data.yaml} is for classification, {model.path} is a {model.task} model"
        return "" if class_numbers(data, model.names) else _other_classes(model, data)
    if data.names and len(data.names) != len(model.names) and not model.single_class:
        return f"{data.yaml} has {len(data.names)} classes, {model.path} has {len(model.names)}"
    if not _is_described(data):
        return ""  # images alone are for any task
    if model.task == "classify":
        return f"{data.yaml} is a YAML, and {model.path} is a classifier: its data are folders of classes"
    if reason := _channels(model, data):
        return reason
    if model.kpt_shape and data.kpt_shape != model.kpt_shape:
        there = f"kpt_shape {list(data.kpt_shape)}" if data.kpt_shape else "no kpt_shape"
        return f"{data.yaml} has {there}, {model.path} has {list(model.kpt_shape)}"
    return ""


def _is_described(data: Dataset) -> bool:
    """Whether a YAML says what the images are; a folder or a list of them is for any model."""
    return data.yaml.is_file() and data.yaml.suffix != ".txt"


def _channels(model: TaskSpec, data: Dataset) -> str:
    """Whether images have other channels than the model takes, as far as anybody says."""
    if not _is_described(data) or data.channels == model.channels:
        return ""
    return f"{data.yaml} has images of {data.channels} channels, {model.path} takes {model.channels}"


def _renumbered(model: TaskSpec, data: Dataset) -> str:
    """Whether labels mean other classes than the model's of the same names."""
    if data.by_folder or model.single_class or not model.task:
        return ""
    swapped = other_order(data.names, model.names)
    return f"{data.yaml} and {model.path} number the same classes differently: {swapped}" if swapped else ""


def _other_classes(model: TaskSpec, data: Dataset) -> str:
    """Which folders are no class of a classifier."""
    other = [name for name in data.names.values() if name not in model.names.values()]
    shown = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
    counts = f"{data.yaml} has {len(data.names)} classes, {model.path} has {len(model.names)}"
    return f"{counts} (no class of it: {shown})" if other else counts
