"""Accuracy of an artifact: what its runner finds, scored by Ultralytics' validator of the task.

One pass gives three things: mAP against the labels, the figure that `YOLO(artifact).val()` computes; the detections;
and fidelity, mAP against another model's detections as ground truth. Fidelity needs no labels and moves far less by
chance than mAP does, so it is the figure to compare quantisations by.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qexport.backends.protocol import Runner
from qexport.data.evaluation_set import EvaluationSet
from qexport.detections.layout import HeadLayout
from qexport.detections.matching import CONFIDENCE
from qexport.errors import first_line
from qexport.measurement.attempt import MAX_REASON
from qexport.measurement.average_precision import PERFECT, ImageScores, Scores, by_class, figure_once
from qexport.measurement.image_detections import DetectionsByImage, ImageDetections, answer_in, found_in
from qexport.measurement.validator import make_validator, model_of, validate
from qexport.tasks import QUERIES, SCORING

Detections = Mapping[str, tuple[Tensor, Tensor]]
"""Image file name → boxes in input pixels, (n, 4) x1 y1 x2 y2 or turned (n, 5) x y w h angle, and classes (n,)."""


@dataclass(frozen=True)
class Accuracy:
    """What one artifact scores on one evaluation set.

    Attributes:
        map, map50: mAP50-95 and mAP50 over the classes that occur, 0..1; of masks, keypoints or turned boxes where the
            task has them; of a classifier top-1 and top-5 accuracy. None without labels.
        box_map: mAP50-95 of the boxes around masks and keypoints, None for other tasks.
        fidelity: mAP50-95 of the boxes against the reference's, or a classifier's share of equal answers; None without
            a reference.
        fidelity_ceiling: what the reference has against itself.
        images: how many images were scored.
        unread: images that the validator left out because it could not read them or their labels, and why.
        detections: confident detections, the reference for other artifacts.
        scores: by image how the validator matched detections and labels, in the task's own metric; {} without labels.
        fidelity_scores: the same of boxes, or answers, and the reference's; {} without a reference.
        found: by image what was found, in the image's own pixels.
    """

    map: float | None
    map50: float | None
    fidelity: float | None
    images: int
    unread: tuple[str, ...]
    detections: Detections
    box_map: float | None = None
    scores: Scores = field(default_factory=dict)
    fidelity_scores: Scores = field(default_factory=dict)
    fidelity_ceiling: float = PERFECT
    found: DetectionsByImage = field(default_factory=dict)


def evaluate(
    runner: Runner,
    layout: HeadLayout,
    task: str,
    data: EvaluationSet,
    *,
    batch: int = 1,
    reference: Detections | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Score what a runner finds.

    Args:
        runner: of any format, whether Ultralytics knows it or not.
        layout: the size of its input and what its outputs mean; "queries" are scored as Ultralytics scores RT-DETR.
        batch: images that it takes in one run.
        reference: detections of the float model for fidelity.
        on_image: called after each image, for a progress bar.
    """
    scoring = QUERIES if layout.head == "queries" else SCORING[task]
    links, labelled = data.links, data.labelled
    recorder = _ClassRecorder(reference, links) if task == "classify" else _Recorder(reference, links, scoring.correct)
    with tempfile.TemporaryDirectory(prefix="qexport-") as folder:
        validator = make_validator(scoring, task, data, layout, batch, Path(folder))
        metrics = validate(validator, model_of(runner, layout, batch), recorder, on_image, labelled, links)
    own = getattr(metrics, scoring.metric) if scoring.metric else None
    return Accuracy(
        map=float(own.map if own else metrics.top1) if labelled else None,
        map50=float(own.map50 if own else metrics.top5) if labelled else None,
        fidelity=recorder.fidelity(),
        images=len(recorder.confident),
        unread=tuple(_left_out(data, link) for link in data.links if link not in recorder.confident),
        detections=recorder.confident,
        box_map=float(getattr(metrics, scoring.other).map) if scoring.other and labelled else None,
        scores=recorder.scores,
        fidelity_scores=recorder.fidelity_scores,
        fidelity_ceiling=recorder.ceiling,
        found=recorder.found,
    )


def _left_out(data: EvaluationSet, link: str) -> str:
    """An image's name, and why Ultralytics leaves it out."""
    from ultralytics.data.utils import check_image

    root = data.yaml if data.yaml.is_dir() else data.yaml.parent
    reason = "its labels cannot be used"
    try:
        check_image(str(next(root.rglob(glob.escape(link)))))
    except ImportError:  # Ultralytics looks for a decoder of HEIF where none knows the file
        reason = "it is corrupt or not an image"
    except Exception as error:  # whatever a decoder raises of such a file
        reason = first_line(error).replace(str(root), "") or type(error).__name__
    return f"{data.links[link].name} ({reason[:MAX_REASON]})"


class _Recorder:
    """Keep an artifact's confident detections and score all of them against a reference."""

    ceiling = PERFECT

    def __init__(
        self, reference: Detections | None, links: Mapping[str, Path] | None = None, correct: str = "tp"
    ) -> None:
        self.reference = reference
        self.links = links or {}
        self.correct = correct
        self.confident: dict[str, tuple[Tensor, Tensor]] = {}
        self.found: dict[str, ImageDetections] = {}
        self.scores: dict[str, ImageScores] = {}
        self.fidelity_scores: dict[str, ImageScores] = {}
        self.latest: list[str] = []

    def record(self, validator: Any, predictions: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        self.latest = [Path(file).name for file in batch["im_file"]]
        for index, (name, found) in enumerate(zip(self.latest, predictions, strict=True)):
            if name in self.links:
                self.found[name] = found_in(self.links[name], found, batch, index, CONFIDENCE)
            keep = found["conf"] >= CONFIDENCE
            self.confident[name] = (found["bboxes"][keep].clone(), found["cls"][keep].clone())
            if self.reference is not None:
                self.score(validator, name, found, *self.reference[name])

    def record_scores(self, validator: Any) -> None:
        """Keep what the validator has just added to its statistics of the latest images."""
        stats = validator.metrics.stats
        for number, name in enumerate(self.latest, start=-len(self.latest)):
            self.scores[name] = ImageScores(
                correct=stats[self.correct][number],
                confidence=stats["conf"][number],
                classes=stats["pred_cls"][number],
                labels=stats["target_cls"][number],
            )

    def score(self, validator: Any, name: str, found: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> None:
        """Score one image's detections against boxes and classes."""
        from ultralytics.models.yolo.detect import DetectionValidator

        truth = {"bboxes": boxes, "cls": classes}
        # Fidelity is that of the boxes: the validators of masks and keypoints want more of the truth than that.
        rotated = boxes.shape[1] == 5
        process = type(validator)._process_batch if rotated else DetectionValidator._process_batch
        self.fidelity_scores[name] = ImageScores(
            correct=process(validator, found, truth)["tp"],
            confidence=found["conf"].numpy().copy(),
            classes=found["cls"].numpy().copy(),
            labels=classes.numpy(),
        )

    def fidelity(self) -> float | None:
        if not any(len(each.labels) for each in self.fidelity_scores.values()):
            return None
        images = sorted(self.fidelity_scores)
        return figure_once(by_class(self.fidelity_scores, images), len(images))


class _ClassRecorder:
    """Keep a classifier's answers and count how many are the reference's."""

    ceiling = 1.0

    def __init__(self, reference: Detections | None, links: Mapping[str, Path]) -> None:
        self.reference = reference
        self.links = links
        self.confident: dict[str, tuple[Tensor, Tensor]] = {}
        self.found: dict[str, ImageDetections] = {}
        self.scores: dict[str, ImageScores] = {}
        self.fidelity_scores: dict[str, ImageScores] = {}
        self.latest: list[str] = []

    def record(self, validator: Any, predictions: Tensor, _batch: dict[str, Any]) -> None:
        samples = validator.dataloader.dataset.samples
        done = len(self.confident)  # in the order of the data set: see `validator.validate`
        self.latest = [Path(file).name for file, *_ in samples[done : done + len(predictions)]]
        for name, probabilities in zip(self.latest, predictions, strict=True):
            self.confident[name] = (probabilities.clone(), probabilities.argmax()[None])
            self.found[name] = answer_in(self.links[name], probabilities)
            if self.reference:
                self.fidelity_scores[name] = _answered(self.confident[name][1], self.reference[name][1])

    def record_scores(self, validator: Any) -> None:
        """Keep answer and label of the latest images: one of each, right or wrong."""
        answers, labels = validator.pred[-1][:, :1].numpy(), validator.targets[-1][:, None].numpy()
        for name, answer, label in zip(self.latest, answers, labels, strict=True):
            self.scores[name] = _answered(answer, label)

    def fidelity(self) -> float | None:
        same = [bool(each.correct.item()) for each in self.fidelity_scores.values()]
        return sum(same) / len(same) if same else None


def _answered(answer: Any, label: Any) -> ImageScores:
    """One image's answer and what it should be, (1,) each."""
    given, wanted = np.asarray(answer), np.asarray(label)
    return ImageScores((given == wanted)[:, None], np.ones(1), given, wanted)


def score_against(found: Mapping[str, Tensor], truth: Detections) -> float | None:
    """mAP50-95 of detections with other detections as ground truth.

    Args:
        found: image → (n, 6) rows: corners in pixels, score, class.
        truth: image → boxes and classes.

    Returns:
        None where there is no ground truth.
    """
    from ultralytics.models.yolo.detect import DetectionValidator

    validator = DetectionValidator(args={"task": "detect", "plots": False})
    recorder = _Recorder(truth)
    for name, rows in found.items():
        each = {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5]}
        recorder.score(validator, name, each, *truth[name])
    return recorder.fidelity()
