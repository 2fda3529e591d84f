"""The tasks of models: what labels have to fit, which validator of Ultralytics scores each, how metrics are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TaskSpec:
    """What a model was trained for, as far as a data set's labels have to fit it.

    Attributes:
        path: the model's file, for messages.
        task: a key of `SCORING`; "" where an ONNX file does not say.
        names: class index → class name.
        channels: of its input.
        kpt_shape: of a pose model how many keypoints, and values of each; None for other tasks, or where nobody says.
        single_class: labels of all classes count as one.
    """

    path: Path
    task: str
    names: Mapping[int, str]
    channels: int
    kpt_shape: tuple[int, ...] | None = None
    single_class: bool = False


METRICS = ("mAP50-95", "mAP50")
"""What the two figures of accuracy are called where a task does not say otherwise."""


@dataclass(frozen=True)
class Scoring:
    """How Ultralytics scores a task.

    Attributes:
        title: what the task is called in a sentence.
        module, validator: where its validator is.
        metric: which of the validator's metrics is the task's own.
        other: the second one, such as that of the boxes around masks; "" for none.
        names: what the two figures of that metric are called.
        correct: which of the validator's statistics says whether a detection is right; "" for a classifier.
        extras: what heads say of each object besides its box: "coefficients" of masks, "keypoints" or "angles".
    """

    title: str
    module: str
    validator: str
    metric: str
    other: str = ""
    names: tuple[str, str] = METRICS
    correct: str = "tp"
    extras: str = ""


SCORING = {
    "detect": Scoring("object detection", "ultralytics.models.yolo.detect", "DetectionValidator", "box"),
    "segment": Scoring(
        "instance segmentation",
        "ultralytics.models.yolo.segment",
        "SegmentationValidator",
        "seg",
        "box",
        ("mask mAP50-95", "mask mAP50"),
        "tp_m",
        "coefficients",
    ),
    "pose": Scoring(
        "pose estimation",
        "ultralytics.models.yolo.pose",
        "PoseValidator",
        "pose",
        "box",
        ("pose mAP50-95", "pose mAP50"),
        "tp_p",
        "keypoints",
    ),
    "obb": Scoring("oriented boxes", "ultralytics.models.yolo.obb", "OBBValidator", "box", extras="angles"),
    "classify": Scoring(
        "classification", "ultralytics.models.yolo.classify", "ClassificationValidator", "", "", ("top-1", "top-5"), ""
    ),
}


QUERIES = Scoring("object detection", "ultralytics.models.rtdetr", "RTDETRValidator", "box")
"""RT-DETR's: it stretches images, and its boxes are centre and size in 0..1."""


def extras_of(task: str) -> str:
    """What heads of a task say of each object besides its box; "" for nothing, and for a task that nobody knows."""
    return SCORING[task].extras if task in SCORING else ""
