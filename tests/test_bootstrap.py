"""Intervals against what statistics says they have to be."""

from __future__ import annotations

import numpy as np
import pytest

from qexport.measurement.average_precision import ImageScores, Scores
from qexport.measurement.evidence.bootstrap import RESAMPLES, Intervals, interval, intervals, resample_weights
from qexport.measurement.top1 import class_shares, top1


def answers(right: list[bool], labels: list[int] | None = None) -> Scores:
    given = labels or [0] * len(right)
    return {
        f"{index:04d}": ImageScores(np.array([[hit]]), np.ones(1), np.array([0]), np.array([label]))
        for index, (hit, label) in enumerate(zip(right, given, strict=True))
    }


def test_every_resample_draws_as_many_images_and_the_same_every_time() -> None:
    weights = resample_weights(60)
    assert weights.shape == (RESAMPLES, 60) == (1000, 60)
    assert set(weights.sum(axis=1)) == {60}
    assert np.array_equal(weights, resample_weights(60))
    drawn_at_once = np.random.default_rng(0).multinomial(60, np.full(60, 1 / 60), size=1000)
    assert np.array_equal(weights, drawn_at_once)
    # Each is drawn Poisson-like: in 1/e of the resamples not at all.
    assert (weights == 0).mean() == pytest.approx((1 - 1 / 60) ** 60, abs=0.005)


def test_an_interval_is_the_middle_of_the_samples() -> None:
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.array([1.0, np.nan, 1.0])) == (1.0, 1.0)
    assert interval(np.array([np.nan])) is None


def test_top1_has_the_interval_of_a_binomial_share() -> None:
    scores = answers([index % 5 > 0 for index in range(400)])
    found = intervals(top1(scores, sorted(scores), resample_weights(400)), None)
    half = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert found.map == pytest.approx((0.8 - half, 0.8 + half), abs=0.005)
    assert (found.drop, found.retention, found.resamples) == (None, None, 1000)


def test_the_difference_is_a_paired_one() -> None:
    images = 400
    weights, names = resample_weights(images), [f"{index:04d}" for index in range(images)]
    float_file = top1(answers([index % 5 > 0 for index in range(images)]), names, weights)
    same = intervals(float_file, float_file)
    assert (same.drop, same.retention) == ((0.0, 0.0), (1.0, 1.0))
    # Wrong on 8 of the images that the other has right: the interval is that of a share of 8 in 400.
    worse = top1(answers([index % 5 > 0 and index % 50 != 1 for index in range(images)]), names, weights)
    found = intervals(worse, float_file)
    half = 1.96 * (0.02 * 0.98 / images) ** 0.5
    assert found.drop == pytest.approx((0.02 - half, 0.02 + half), abs=0.003)
    assert found.retention == pytest.approx((1 - (0.02 + half) / 0.8, 1 - (0.02 - half) / 0.8), abs=0.004)


def test_a_float_file_that_finds_nothing_has_no_retention() -> None:
    nothing = np.zeros(10)
    assert intervals(nothing, nothing) == Intervals((0.0, 0.0), (0.0, 0.0), None, 10)


def test_each_class_has_its_share() -> None:
    scores = answers([True, False, True, True], [3, 3, 1, 3])
    assert list(class_shares(scores)) == [(1, 1, 1.0), (3, 3, pytest.approx(2 / 3))]
