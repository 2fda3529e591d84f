"""Whether a data set suits a model: refused where accuracy is asked for, a warning where only images are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.classes import class_numbers, other_order, strays, unknown_classes
from qexport.data.dataset import Dataset, label_path
from qexport.data.labels import Wanted, read_labels
from qexport.data.selection import RunImages
from qexport.errors import InputError


def check_data(checkpoint: Checkpoint, images: RunImages) -> tuple[str, ...]:
    """Refuse to score a model on a data set that is not for it, or whose labels are wrong.

    Returns:
        What a reader must know of the labels all the same.

    Raises:
        InputError: classes, channels, the task or a label does not fit.
    """
    data = images.evaluation_data
    if data is None:
        return ()
    reason = mismatch(checkpoint, data) or _renumbered(checkpoint, data)
    if reason:
        raise InputError(reason, "give the data set that the model was trained for, or --no-eval")
    if not checkpoint.task:
        return ()
    if data.by_folder:
        return _check_folders(checkpoint, data, images.evaluation)
    classes = len(data.names) or len(checkpoint.names)
    labels = read_labels(images.evaluation, data.labels, Wanted(checkpoint.task, classes, data.kpt_shape))
    if labels.fault:
        others = f" and {labels.faulty - 1} more label files are wrong" if labels.faulty > 1 else ""
        raise InputError(f"{labels.fault}{others}", "correct the labels, give --eval-data, or --no-eval")
    if not labels.rows:
        first = label_path(images.evaluation[0], data.labels)
        raise InputError(
            f"label files of {data.yaml} are empty (the first is {first})", "give --eval-data, or --no-eval"
        )
    return labels.notes


def _check_folders(checkpoint: Checkpoint, data: Dataset, images: Sequence[Path]) -> tuple[str, ...]:
    reason = unknown_classes(data, images, class_numbers(data, checkpoint.names))
    if reason:
        raise InputError(reason, "rename or remove the folder, or --no-eval")
    said = strays(data)
    return (said,) if said else ()


def as_trained(checkpoint: Checkpoint, images: RunImages) -> RunImages:
    """The images as the training had them: with `single_cls`, labels of all classes as one, of the model's name."""
    data = images.evaluation_data
    if data is None or data.by_folder or not checkpoint.single_class:
        return images
    return replace(images, evaluation_data=replace(data, names=dict(checkpoint.names), single_class=True))


def mismatch(checkpoint: Checkpoint, data: Dataset) -> str:
    """What does not fit between a model and a data set's description, "" if nothing is known to."""
    if not checkpoint.task:  # of an ONNX file nobody may know what labels would mean
        return ""
    if data.by_folder:
        if checkpoint.task != "classify":
            return f"{data.yaml} is for classification, {checkpoint.path} is a {checkpoint.task} model"
        return "" if class_numbers(data, checkpoint.names) else _other_classes(checkpoint, data)
    if data.names and len(data.names) != len(checkpoint.names) and not checkpoint.single_class:
        return f"{data.yaml} has {len(data.names)} classes, {checkpoint.path} has {len(checkpoint.names)}"
    if not data.yaml.is_file() or data.yaml.suffix == ".txt":
        return ""  # images alone are for any task
    if checkpoint.task == "classify":
        return f"{data.yaml} is a YAML, and {checkpoint.path} is a classifier: its data are folders of classes"
    if data.channels != checkpoint.channels:
        return f"{data.yaml} has images of {data.channels} channels, {checkpoint.path} takes {checkpoint.channels}"
    points = _keypoints(checkpoint)
    if points and data.kpt_shape != points:
        there = f"kpt_shape {list(data.kpt_shape)}" if data.kpt_shape else "no kpt_shape"
        return f"{data.yaml} has {there}, {checkpoint.path} has {list(points)}"
    return ""


def _renumbered(checkpoint: Checkpoint, data: Dataset) -> str:
    """Whether labels mean other classes than the model's of the same names."""
    if data.by_folder or checkpoint.single_class or not checkpoint.task:
        return ""
    swapped = other_order(data.names, checkpoint.names)
    return f"{data.yaml} and {checkpoint.path} number the same classes differently: {swapped}" if swapped else ""


def _other_classes(checkpoint: Checkpoint, data: Dataset) -> str:
    """Which folders are no class of a classifier."""
    other = [name for name in data.names.values() if name not in checkpoint.names.values()]
    shown = ", ".join(other[:3]) + (", …" if len(other) > 3 else "")
    counts = f"{data.yaml} has {len(data.names)} classes, {checkpoint.path} has {len(checkpoint.names)}"
    return f"{counts} (no class of it: {shown})" if other else counts


def _keypoints(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """(how many, values of each) of a pose model."""
    layers = getattr(checkpoint.module, "model", None)  # an ONNX file has none
    shape = getattr(layers[-1], "kpt_shape", None) if layers is not None and checkpoint.task == "pose" else None
    return tuple(int(size) for size in shape) if shape else None
