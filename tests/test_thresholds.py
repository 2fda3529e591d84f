"""Thresholds that stand for FP32's 0.25: expected values are computed by hand from how the logits were moved."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from qexport.detections.detections import NOTHING, Detections
from qexport.detections.equating import thresholds
from qexport.detections.thresholds import Thresholds

QUARTER = np.log(1 / 3)
"""The logit of 0.25."""
LOGITS = QUARTER + np.array([2.0, 1.5, 1.1, 0.8, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, -0.02, -0.1, -0.3, -0.5])
"""Ten of fourteen are confident."""


def score(logit: ArrayLike) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-np.asarray(logit))))


def image(logits: ArrayLike, classes: ArrayLike = 0) -> Detections:
    """Objects side by side, so that each pairs with its own."""
    scores = score(logits).astype(np.float32)
    corners = np.arange(len(scores))[:, None] * 100 + np.array([0, 0, 50, 50])
    numbers = np.broadcast_to(np.asarray(classes, np.int64), scores.shape)
    return Detections(corners.astype(np.float32), scores, numbers, np.zeros((len(scores), 0), np.float32))


def found(one: list[Detections], other: list[Detections], right: list[list[bool]] | None = None) -> Thresholds:
    flags = [np.array(each) for each in right] if right else None
    made = thresholds(one, other, (flags, flags) if flags else None)
    assert made is not None
    return made


def test_equal_scores_have_equal_thresholds() -> None:
    same = found([image(LOGITS), image(LOGITS, 3)], [image(LOGITS), image(LOGITS, 3)])
    assert same == Thresholds(0.25, 0.25, {"0": 0.25, "3": 0.25}, 0.0, 2, {"0": 10, "3": 10})


def test_a_threshold_moves_as_far_as_the_logits() -> None:
    """All of one class half a logit lower: σ(ln ⅓ − 0.5) = 1 / (1 + 3·e^0.5) = 0.1682; the other class 0.4 higher."""
    lower, higher = LOGITS[:11], LOGITS[:11]
    made = found(
        [image(lower), image(higher, 1)],
        [image(lower - 0.5), image(higher + 0.4, 1)],
    )
    assert made.classes == pytest.approx({"0": 0.1682, "1": 0.3321}, abs=6e-4)
    assert made.classes["0"] < made.everything < made.classes["1"]
    assert made.count == {"0": 10, "1": 10}
    moved = np.concatenate((score(lower[:10] - 0.5) - score(lower[:10]), score(higher[:10] + 0.4) - score(higher[:10])))
    assert made.shift == pytest.approx(moved.mean(), abs=6e-4)
    assert made.images == 2


def test_a_class_that_is_seldom_found_shares_the_threshold_of_all() -> None:
    made = found([image(LOGITS), image(LOGITS[:9], 7)], [image(LOGITS - 0.5), image(LOGITS[:9] - 0.2, 7)])
    assert made.count == {"0": 10, "7": 9}
    assert made.classes["7"] == made.everything != made.classes["0"]


def test_against_labels_the_same_share_is_right() -> None:
    """FP32: 40 right above 0.25 and none else. Of INT8's a step of 20 wrong ones is above them until 0.5."""
    right, wrong = np.full(40, 1.5), np.full(20, -3.0)
    flags = [[True] * 40 + [False] * 20]
    one, other = [image(np.concatenate((right, wrong)))], [image(np.concatenate((right, wrong + 2.9)))]
    # Without labels 40 are to be found, and 60 are: between the two heights, where 40 of the best remain.
    assert 0.5 < found(one, other).everything < score(1.5)
    against = found(one, other, flags).everything
    assert score(-0.1) < against < score(1.5)
    # Half of FP32's are wrong from the first to the last: INT8, of which half are wrong everywhere, keeps the count.
    half = [[True, False] * 20 + [True, False] * 10]
    mixed = [image(np.concatenate((right, right[:20])))]
    assert found(mixed, mixed, half).everything == 0.25


def test_what_is_right_decides_where_counts_do_not_tell() -> None:
    """INT8 finds as many, but ten of its forty are wrong and lie lowest: its threshold lies above them."""
    logits = np.concatenate((np.linspace(1.0, 3.0, 30), np.full(10, 0.0)))
    one, other = [image(np.linspace(1.0, 3.0, 40))], [image(logits)]
    flags = [np.ones(40, bool)], [np.arange(40) < 30]
    made = thresholds(one, other, flags)
    counted = thresholds(one, other, None)
    assert made is not None
    assert counted is not None
    assert counted.everything < score(0.0)
    assert score(0.0) < made.everything < score(1.0)


def test_no_threshold_is_under_the_least_score_that_is_compared() -> None:
    made = found([image(LOGITS)], [image(np.concatenate((LOGITS[:1], LOGITS[1:] - 3)))])
    assert made.everything == 0.1


def test_where_nothing_pairs_there_is_no_threshold() -> None:
    assert thresholds([NOTHING], [NOTHING], None) is None
    assert thresholds([image(LOGITS - 3)], [image(LOGITS)], None) is None
    assert thresholds([image(LOGITS)], [image(LOGITS, 1)], None) is None
