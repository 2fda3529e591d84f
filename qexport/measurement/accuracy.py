"""Accuracy of an artifact: what its runner finds, scored by Ultralytics' validator of the task.

One pass gives three things: mAP against the labels, the figure that `YOLO(artifact).val()` computes; the detections;
and fidelity, mAP against another model's detections as ground truth. Fidelity needs no labels and moves far less by
chance than mAP does, so it is the figure to compare quantisations by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.backends.protocol import Runner
from qexport.data.evaluation_set import EvaluationSet
from qexport.detections.layout import HeadLayout
from qexport.measurement.average_precision import (
    PERFECT,
    ImageScores,
    Scores,
    by_class,
    figure_once,
    validator_figures,
)
from qexport.measurement.image_detections import DetectionsByImage, ImageDetections
from qexport.measurement.recorder import Detections, matched
from qexport.measurement.shards import ShardRequest, ShardScores, score_shard
from qexport.measurement.spool import Spool


@dataclass(frozen=True)
class Accuracy:
    """What one artifact scores on one evaluation set. Mappings by image are in the order of the set.

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


class Elsewhere(Protocol):
    """Other processes that score shards."""

    def __call__(self, shards: Iterator[ShardRequest]) -> Iterator[tuple[ShardRequest, ShardScores | None]]:
        """Yield every shard in its order with what it comes to; None of one that is to be scored in this process."""
        ...


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
    request = layout, task, (data,)
    return evaluate_shards(lambda: runner, *request, batch=batch, reference=reference, on_image=on_image)


def evaluate_shards(
    load: Callable[[], Runner],
    layout: HeadLayout,
    task: str,
    shards: Sequence[EvaluationSet],
    *,
    batch: int = 1,
    reference: Detections | None = None,
    on_image: Callable[[], None] = lambda: None,
    elsewhere: Elsewhere | None = None,
) -> Accuracy:
    """Score what a runner finds in shards, in this process or elsewhere: figures are of all images in their order.

    Args:
        load: gives the runner, once; not called where everything is scored elsewhere.
        elsewhere: other processes, for more than one shard; None for this one.

    Others are as in `evaluate`.

    Raises:
        Exception: whatever Ultralytics raises where it can read no image at all.
    """
    requests = (ShardRequest(layout, task, each, batch, _of_shard(reference, each)) for each in shards)
    whole, runner = _Whole(), None
    for request, found in elsewhere(requests) if elsewhere and len(shards) > 1 else zip(requests, repeat(None)):
        if found is None:
            runner = runner or load()
            whole.add(score_shard(runner, request, on_image))
        else:
            whole.add(found)
            for _ in found.records:
                on_image()
    if whole.fault and not whole.detections:
        raise whole.fault
    return whole.accuracy(ShardRequest(layout, task, shards[0]))


def _of_shard(reference: Detections | None, data: EvaluationSet) -> Detections | None:
    return None if reference is None else {name: reference[name] for name in data.links if name in reference}


class _Whole:
    """All shards so far."""

    def __init__(self) -> None:
        self.detections: Spool[tuple[NDArray[Any], NDArray[Any]]] = Spool()
        self._found: Spool[ImageDetections] = Spool()
        self._scores: Spool[ImageScores] = Spool()
        self._box_scores: Spool[ImageScores] = Spool()
        self._fidelity_scores: Spool[ImageScores] = Spool()
        self._ranked: list[Tensor] = []
        self._unread: list[str] = []
        self.fault: Exception | None = None

    def add(self, shard: ShardScores) -> None:
        """Add the next one."""
        for each in shard.records:
            self.detections.add(each.name, each.confident)
            self._found.add(each.name, each.found)
            scores = (self._scores, each.scores), (self._box_scores, each.box_scores)
            for spool, value in (*scores, (self._fidelity_scores, each.fidelity_scores)):
                if value is not None:
                    spool.add(each.name, value)
            if each.ranked is not None:
                self._ranked.append(torch.from_numpy(each.ranked))
        self._unread += shard.unread
        self.fault = self.fault or shard.fault

    def accuracy(self, request: ShardRequest) -> Accuracy:
        """The figures of all images."""
        classifies = request.task == "classify"
        first, second = None, None
        if request.data.labelled:
            first, second = self._top() if classifies else _figures(self._scores)
        return Accuracy(
            map=first,
            map50=second,
            fidelity=_share(self._fidelity_scores) if classifies else fidelity_of(self._fidelity_scores),
            images=len(self.detections),
            unread=tuple(self._unread),
            detections=self.detections,
            box_map=_figures(self._box_scores)[0] if self._box_scores else None,
            scores=self._scores,
            fidelity_scores=self._fidelity_scores,
            fidelity_ceiling=1.0 if classifies else PERFECT,
            found=self._found,
        )

    def _top(self) -> tuple[float, float]:
        """Top-1 and top-5 accuracy, by Ultralytics' own metrics."""
        from ultralytics.utils.metrics import ClassifyMetrics

        metrics, labels = ClassifyMetrics(), [torch.from_numpy(each.labels) for each in self._scores.values()]
        metrics.process(labels, [each[None] for each in self._ranked])
        return float(metrics.top1), float(metrics.top5)


def _figures(scores: Scores) -> tuple[float, float]:
    return validator_figures(by_class(scores, list(scores)))


def _share(scores: Scores) -> float | None:
    """Share of a classifier's answers that are right."""
    same = [bool(each.correct.item()) for each in scores.values()]
    return sum(same) / len(same) if same else None


def fidelity_of(scores: Scores) -> float | None:
    """mAP50-95 of detections that were matched with a reference's; None where that has none."""
    if not any(len(each.labels) for each in scores.values()):
        return None
    images = sorted(scores)
    return figure_once(by_class(scores, images), len(images))


def score_against(found: Mapping[str, Tensor], truth: Mapping[str, tuple[Tensor, Tensor]]) -> float | None:
    """mAP50-95 of detections with other detections as ground truth.

    Args:
        found: image → (n, 6) rows: corners in pixels, score, class.
        truth: image → boxes and classes.

    Returns:
        None where there is no ground truth.
    """
    from ultralytics.models.yolo.detect import DetectionValidator

    validator = DetectionValidator(args={"task": "detect", "plots": False})
    return fidelity_of(
        {
            name: matched(validator, {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5]}, *truth[name])
            for name, rows in found.items()
        }
    )
