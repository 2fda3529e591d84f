"""Whether a data set suits a model: refused where accuracy is asked for, a warning where only images are used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.dataset import Dataset
from qexport.data.evaluation_set import label_path
from qexport.data.inputs import RunImages
from qexport.errors import InputError

LOOKED_AT = 20
"""Label files that are looked into: the first ones with a line in them."""
BOX, TURNED, LEAST_POLYGON = 5, 9, 7
"""Columns of a line with a class and a box, a box's four corners, a polygon of three points."""


def check_data(checkpoint: Checkpoint, images: RunImages) -> None:
    """Refuse to score a model on a data set that is not for it.

    Raises:
        InputError: classes, channels, the task or the labels do not fit.
    """
    data = images.evaluation_data
    if data is None:
        return
    reason = mismatch(checkpoint, data)
    if not reason and checkpoint.task:
        reason = _labels_mismatch(checkpoint, data, images.evaluation)
    if reason:
        raise InputError(reason, "give the data set that the model was trained for, or --no-eval")


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
    if data.names and len(data.names) != len(checkpoint.names) and not checkpoint.single_class:
        return f"{data.yaml} has {len(data.names)} classes, {checkpoint.path} has {len(checkpoint.names)}"
    if not data.yaml.is_file() or data.yaml.suffix == ".txt":
        folders = data.by_folder or not data.names  # images alone are for any task
        return "" if folders and (checkpoint.task == "classify") >= data.by_folder else _for_another(checkpoint, data)
    if checkpoint.task == "classify":
        return f"{data.yaml} is a YAML, and {checkpoint.path} is a classifier: its data are folders of classes"
    if data.channels != checkpoint.channels:
        return f"{data.yaml} has images of {data.channels} channels, {checkpoint.path} takes {checkpoint.channels}"
    points = _keypoints(checkpoint)
    if points and data.kpt_shape != points:
        there = f"kpt_shape {list(data.kpt_shape)}" if data.kpt_shape else "no kpt_shape"
        return f"{data.yaml} has {there}, {checkpoint.path} has {list(points)}"
    return ""


def _for_another(checkpoint: Checkpoint, data: Dataset) -> str:
    return f"{data.yaml} is for classification, {checkpoint.path} is a {checkpoint.task} model"


def _keypoints(checkpoint: Checkpoint) -> tuple[int, ...] | None:
    """(how many, values of each) of a pose model."""
    layers = getattr(checkpoint.module, "model", None)  # an ONNX file has none
    shape = getattr(layers[-1], "kpt_shape", None) if layers is not None and checkpoint.task == "pose" else None
    return tuple(int(size) for size in shape) if shape else None


def _labels_mismatch(checkpoint: Checkpoint, data: Dataset, images: tuple[Path, ...]) -> str:
    """What is wrong with the labels for the model's task, seen in their first lines."""
    if data.by_folder:
        return ""
    lines = list(_first_lines(data, images))
    for place, columns in lines:
        if not _suits(checkpoint.task, columns, data.kpt_shape):
            return f"labels for {checkpoint.task} do not have {columns} columns ({place})"
    return "" if lines else f"label files of {data.yaml} are empty (the first is {label_path(images[0], data.labels)})"


def _first_lines(data: Dataset, images: tuple[Path, ...]) -> Iterator[tuple[Path, int]]:
    """Label files that are not empty, and how many columns their first line has."""
    found = 0
    for image in images:
        place = label_path(image, data.labels)
        text = place.read_text(encoding="utf-8", errors="replace").split("\n") if place.is_file() else []
        columns = next((len(line.split()) for line in text if line.strip()), 0)
        if columns:
            yield place, columns
            found += 1
        if found == LOOKED_AT:
            return


def _suits(task: str, columns: int, kpt_shape: tuple[int, ...] | None) -> bool:
    """Whether a line of so many columns can be a label of the task.

    Polygons are labels for detection, too: Ultralytics takes the box around them, and COCO's come that way.
    """
    pose = BOX + kpt_shape[0] * kpt_shape[1] if kpt_shape else None
    if task == "pose":
        return columns == pose
    polygon = columns >= LEAST_POLYGON and columns % 2 == 1 and columns != pose
    if task == "obb":
        return columns == TURNED
    return polygon or (task == "detect" and columns == BOX)
