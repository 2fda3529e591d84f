"""What is kept of a validator's images: detections, and how it matched them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.detections.matching import CONFIDENCE
from qexport.measurement.average_precision import ImageScores
from qexport.measurement.image_detections import ImageDetections, answer_in, found_in
from qexport.tasks import Scoring

Detections = Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
"""Image file name → boxes in input pixels, (n, 4) x1 y1 x2 y2 or turned (n, 5) x y w h angle, and classes (n,)."""


@dataclass(frozen=True)
class ImageRecord:
    """One image that was scored; can be pickled.

    Attributes:
        name: its file name in the evaluation set.
        confident: boxes and classes as in `Detections`; of a classifier probabilities and answer.
        found: what was found, in the image's own pixels.
        scores: matched with labels in the task's own metric; None without labels.
        box_scores: the same of the boxes around masks and keypoints; None for other tasks.
        fidelity_scores: boxes, or the answer, matched with the reference's; None without one.
        ranked: (5,) int32, the most probable classes of a classifier, or all where it has fewer; None without labels.
    """

    name: str
    confident: tuple[NDArray[Any], NDArray[Any]]
    found: ImageDetections
    scores: ImageScores | None = None
    box_scores: ImageScores | None = None
    fidelity_scores: ImageScores | None = None
    ranked: NDArray[np.int32] | None = None


class BoxRecorder:
    """Keep an artifact's confident detections and score all of them against a reference."""

    def __init__(self, reference: Detections | None, links: Mapping[str, Path], scoring: Scoring) -> None:
        self._reference, self._links, self._scoring = reference, links, scoring
        self._latest: list[str] = []
        self._confident: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {}
        self._found: dict[str, ImageDetections] = {}
        self._scores: dict[str, ImageScores] = {}
        self._box_scores: dict[str, ImageScores] = {}
        self._fidelity_scores: dict[str, ImageScores] = {}

    def record(self, validator: Any, predictions: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        """Keep a batch's detections, and score them against the reference."""
        self._latest = [Path(file).name for file in batch["im_file"]]
        for index, (name, found) in enumerate(zip(self._latest, predictions, strict=True)):
            self._found[name] = found_in(self._links[name], found, batch, index, CONFIDENCE)
            keep = found["conf"] >= CONFIDENCE
            self._confident[name] = (found["bboxes"][keep].numpy().copy(), found["cls"][keep].numpy().copy())
            if self._reference is not None:
                self._fidelity_scores[name] = matched(validator, found, *self._reference[name])

    def record_scores(self, validator: Any) -> None:
        """Keep what the validator has just added to its statistics of the latest images."""
        stats = validator.metrics.stats
        for number, name in enumerate(self._latest, start=-len(self._latest)):
            others = stats["conf"][number], stats["pred_cls"][number], stats["target_cls"][number]
            self._scores[name] = ImageScores(stats[self._scoring.correct][number], *others)
            if self._scoring.other:
                self._box_scores[name] = ImageScores(stats["tp"][number], *others)

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Of all images, in the validator's order."""
        return tuple(
            ImageRecord(
                name,
                confident,
                self._found[name],
                self._scores.get(name),
                self._box_scores.get(name),
                self._fidelity_scores.get(name),
            )
            for name, confident in self._confident.items()
        )


def matched(validator: Any, found: dict[str, Tensor], boxes: Any, classes: Any) -> ImageScores:
    """Match one image's detections with boxes and classes of a reference, arrays or tensors.

    Fidelity is that of the boxes: the validators of masks and keypoints want more of the truth than that.
    """
    from ultralytics.models.yolo.detect import DetectionValidator

    truth = {"bboxes": torch.as_tensor(boxes), "cls": torch.as_tensor(classes)}
    rotated = truth["bboxes"].shape[1] == 5
    process = type(validator)._process_batch if rotated else DetectionValidator._process_batch
    return ImageScores(
        correct=process(validator, found, truth)["tp"],
        confidence=found["conf"].numpy().copy(),
        classes=found["cls"].numpy().copy(),
        labels=np.asarray(classes),
    )


class AnswerRecorder:
    """Keep a classifier's answers, and whether they are the reference's."""

    def __init__(self, reference: Detections | None, links: Mapping[str, Path]) -> None:
        self._reference, self._links = reference, links
        self._latest: list[str] = []
        self._records: dict[str, ImageRecord] = {}
        self._labelled: dict[str, tuple[ImageScores, NDArray[np.int32]]] = {}

    def record(self, validator: Any, predictions: Tensor, _batch: dict[str, Any]) -> None:
        """Keep a batch's answers, and compare them with the reference's."""
        samples = validator.dataloader.dataset.samples
        done = len(self._records)  # in the order of the data set: see `validator.validate`
        self._latest = [Path(file).name for file, *_ in samples[done : done + len(predictions)]]
        for name, probabilities in zip(self._latest, predictions, strict=True):
            answer = probabilities.argmax()[None].numpy()
            same = None if self._reference is None else answered(answer, self._reference[name][1])
            found = answer_in(self._links[name], probabilities)
            self._records[name] = ImageRecord(name, (probabilities.numpy().copy(), answer), found, fidelity_scores=same)

    def record_scores(self, validator: Any) -> None:
        """Keep answers and label of the latest images."""
        ranked, labels = validator.pred[-1].numpy(), validator.targets[-1][:, None].numpy()
        for name, answers, label in zip(self._latest, ranked, labels, strict=True):
            self._labelled[name] = answered(answers[:1], label), answers

    @property
    def records(self) -> tuple[ImageRecord, ...]:
        """Of all images, in the validator's order."""
        nothing = None, None
        labelled = ((each, *self._labelled.get(name, nothing)) for name, each in self._records.items())
        return tuple(replace(each, scores=scores, ranked=ranked) for each, scores, ranked in labelled)


def answered(answer: Any, label: Any) -> ImageScores:
    """One image's answer and what it should be, (1,) each."""
    given, wanted = np.asarray(answer), np.asarray(label)
    return ImageScores((given == wanted)[:, None], np.ones(1), given, wanted)
