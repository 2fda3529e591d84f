"""Weighted average precision: by hand, against Ultralytics, and against images that are really repeated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from conftest import demo_checkpoint
from torch import Tensor

from qexport.measurement.average_precision import (
    PERFECT,
    ImageScores,
    Scores,
    average_precision,
    by_class,
    class_precisions,
    mean_average_precision,
    validator_figures,
)
from qexport.measurement.evidence.bootstrap import resample_weights

CLASSES = 5


def scored(correct: Sequence[int], confidence: Sequence[float], labels: int) -> ImageScores:
    """One class and one threshold."""
    table = np.array(correct, dtype=bool).reshape(-1, 1)
    return ImageScores(table, np.array(confidence, dtype=float), np.zeros(len(table)), np.zeros(labels))


def boxes(random: np.random.Generator, count: int) -> Tensor:
    corners = random.uniform(0, 400, (count, 2))
    return torch.from_numpy(np.concatenate((corners, corners + random.uniform(20, 200, (count, 2))), axis=1)).float()


@pytest.fixture(scope="module")
def validated() -> tuple[Scores, Any]:
    """Random labels, detections near them and others, as Ultralytics' own validator matches them; and its metrics."""
    demo_checkpoint()  # repairs torchvision where it needs it
    from ultralytics.models.yolo.detect import DetectionValidator
    from ultralytics.utils.metrics import DetMetrics

    random, validator, metrics = np.random.default_rng(3), DetectionValidator(), DetMetrics(dict.fromkeys(range(9), ""))
    validator.niou = 10
    scores = {}
    for index in range(30):
        labels = int(random.integers(0, 8))
        truth = {"bboxes": boxes(random, labels), "cls": torch.from_numpy(random.integers(0, CLASSES, labels)).float()}
        near = truth["bboxes"] + torch.from_numpy(random.normal(0, 4, (labels, 4))).float()
        found = {
            "bboxes": torch.cat((near, boxes(random, 10))),
            "cls": torch.cat((truth["cls"], torch.from_numpy(random.integers(0, CLASSES + 1, 10)).float())),
            "conf": torch.from_numpy(random.permutation(np.linspace(0.01, 0.99, 10 + labels))).float()
            + 1e-4 * index,  # no two alike
        }
        stats = {
            **validator._process_batch(found, truth),
            "conf": found["conf"].numpy(),
            "pred_cls": found["cls"].numpy(),
            "target_cls": truth["cls"].numpy(),
        }
        metrics.update_stats({**stats, "target_img": np.unique(stats["target_cls"]), "im_name": str(index)})
        scores[str(index)] = ImageScores(stats["tp"], stats["conf"], stats["pred_cls"], stats["target_cls"])
    metrics.process()
    return scores, metrics


def test_every_image_once_is_ultralytics_own_figure(validated: tuple[Scores, Any]) -> None:
    scores, metrics = validated
    images = sorted(scores)  # another order than the validator's: "0", "1", "10", …
    found = mean_average_precision(by_class(scores, images), np.ones((2, 30), dtype=int))
    assert 0.2 < metrics.box.map < 0.8
    assert found == pytest.approx([metrics.box.map] * 2, abs=1e-12)
    assert validator_figures(by_class(scores, images)) == pytest.approx((metrics.box.map, metrics.box.map50), abs=1e-12)
    assert validator_figures(by_class(scores, list(scores))) == (metrics.box.map, metrics.box.map50)
    assert validator_figures(()) == (0.0, 0.0)
    rows = list(class_precisions(by_class(scores, images)))
    assert [number for number, _, _ in rows] == list(range(CLASSES))
    assert [labels for _, labels, _ in rows] == metrics.nt_per_class[:CLASSES].tolist()
    assert [figure for *_, figure in rows] == pytest.approx(metrics.box.all_ap.mean(axis=1).tolist(), abs=1e-12)


def test_a_weight_is_as_good_as_copies_of_the_image(validated: tuple[Scores, Any]) -> None:
    from ultralytics.utils.metrics import ap_per_class

    scores, _ = validated
    images = list(scores)
    weights = resample_weights(len(images), 20)
    found = mean_average_precision(by_class(scores, images), weights)
    fields = ("correct", "confidence", "classes", "labels")
    for row, figure in zip(weights, found, strict=True):
        copies = [scores[name] for name in np.repeat(images, row)]
        tp, confidence, classes, labels = (
            np.concatenate([getattr(each, field) for each in copies]) for field in fields
        )
        expected = ap_per_class(tp, confidence, classes, labels)[5].mean()
        assert figure == pytest.approx(float(expected), abs=1e-12)


def test_by_hand() -> None:
    # Right, wrong, right of two labels: precision 1 up to recall 0.5 and 2/3 behind it. Of 101 points 50 lie below 0.5
    # and 50 from 0.5 to 0.99; the first is worth half, and the last, at recall 1, is zero.
    scores = {"a": scored([1, 0, 1], [0.9, 0.8, 0.7], labels=2)}
    (one,) = by_class(scores, ["a"])
    assert average_precision(one, np.array([[1]]))[0] == pytest.approx(0.495 + 0.5 * 2 / 3)


def test_what_is_all_right_loses_half_of_the_last_point() -> None:
    from ultralytics.utils.metrics import ap_per_class

    right, seen, classes = np.ones((3, 10), dtype=bool), np.array([0.9, 0.8, 0.7]), np.zeros(3)
    assert ap_per_class(right, seen, classes, classes)[5].mean() == pytest.approx(PERFECT, abs=1e-12)


def test_weights_by_hand() -> None:
    scores = {"a": scored([1], [0.9], labels=1), "b": scored([0], [0.8], labels=1), "c": scored([], [], labels=0)}
    (one,) = by_class(scores, ["c", "b", "a"])
    weights = np.array([[1, 1, 1], [0, 0, 2], [0, 2, 1], [3, 0, 0]])
    # One of two; all; one of three (points below 1/3: 0 to 0.33); no label at all.
    assert average_precision(one, weights) == pytest.approx([0.495, 0.995, 0.335, np.nan], nan_ok=True)
    assert mean_average_precision([one], weights) == pytest.approx([0.495, 0.995, 0.335, 0.0])


def test_a_class_counts_where_a_resample_has_labels_of_it() -> None:
    right, missed = scored([1], [0.9], labels=1), scored([], [], labels=1)
    other = ImageScores(missed.correct.reshape(0, 1), missed.confidence, missed.classes, missed.labels + 4)
    classes = by_class({"a": right, "b": other}, ["a", "b"])
    assert [one.number for one in classes] == [0, 4]
    assert mean_average_precision(classes, np.array([[1, 1], [2, 0], [0, 2]])) == pytest.approx([0.4975, 0.995, 0.0])


def test_resamples_are_worked_on_in_blocks(monkeypatch: pytest.MonkeyPatch, validated: tuple[Scores, Any]) -> None:
    from qexport.measurement import average_precision as module

    scores, _ = validated
    classes, weights = by_class(scores, list(scores)), resample_weights(len(scores), 7)
    whole = mean_average_precision(classes, weights)
    monkeypatch.setattr(module, "BLOCK", 1)
    assert mean_average_precision(classes, weights).tolist() == whole.tolist()
