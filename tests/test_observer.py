"""Watching a value: exact extremes, a histogram of bounded size, no dependence on the order of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.calibration.observer import MAX_SAMPLES, Observer, histogram, samples_each
from qexport.calibration.statistics import BINS, MIN_LIMIT, Statistics


def watch(*tensors: torch.Tensor) -> Statistics:
    observer = Observer()
    for tensor in tensors:
        observer.update(tensor)
    return observer.statistics()


def image(seed: int, spread: float, size: int = 600) -> torch.Tensor:
    return torch.randn(1, 1, size, generator=torch.Generator().manual_seed(seed)) * spread


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 999), st.sampled_from([0.01, 0.3, 1.0, 20.0])), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_the_order_of_images_does_not_matter(recipes: list[tuple[int, float]], random: object) -> None:
    images = [image(*recipe) for recipe in recipes]
    one = watch(*images)
    random.shuffle(images)  # type: ignore[attr-defined]
    other = watch(*images)
    assert (one.minimum, one.maximum, one.limit) == (other.minimum, other.maximum, other.limit)
    np.testing.assert_array_equal(one.counts, other.counts)


def test_widening_a_histogram_of_many_elements_is_exact() -> None:
    """Float32 elements and bins that are powers of two wide: the bin of each element is exact arithmetic."""
    values = image(0, 2.0, 32768).flatten().clamp(-7.9, 7.9)
    exact = np.floor(values.double().numpy() * (BINS / 16)).astype(int) + BINS // 2
    expected = np.bincount(exact, minlength=BINS)
    np.testing.assert_array_equal(watch(values, torch.tensor([7.999])).counts[:-1], expected[:-1])


def test_the_order_of_large_images_does_not_matter() -> None:
    one, other = (image(seed, 1.0, 3 * MAX_SAMPLES) for seed in (1, 2))
    np.testing.assert_array_equal(watch(one, other).counts, watch(other, one).counts)


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=5))
def test_statistics_are_those_of_all_elements_together(seeds: list[int]) -> None:
    images = [image(seed, 1 + seed % 7) for seed in seeds]
    seen = watch(*images)
    everything = np.concatenate([i.numpy().ravel() for i in images])
    assert (seen.minimum, seen.maximum) == (everything.min(), everything.max())
    assert seen.counts.sum() == everything.size
    # Cumulative counts at a few edges, against the raw data; float32 bins may move an element on an edge by one.
    for edge in (BINS // 4, BINS // 2, 3 * BINS // 4):
        below = (everything < seen.edges[edge]).sum()
        assert abs(int(seen.counts[:edge].sum()) - below) <= 2


def test_the_histogram_fits_the_largest_image() -> None:
    assert watch(torch.tensor([0.3, -0.1])).limit == 0.5
    assert watch(torch.tensor([0.3]), torch.tensor([-5.0])).limit == 8.0
    assert watch(torch.tensor([-5.0]), torch.tensor([0.3])).limit == 8.0
    assert watch(torch.zeros(4)).limit == MIN_LIMIT


def test_a_limit_of_one_splits_one_half_by_hand() -> None:
    counts = histogram(torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0]), 1.0)
    found = {int(i): int(counts[i]) for i in np.flatnonzero(counts)}
    assert found == {0: 1, BINS // 4: 1, BINS // 2: 1, 3 * BINS // 4: 1, BINS - 1: 1}


def test_extremes_see_every_element_of_a_large_tensor() -> None:
    large = torch.zeros(3, 5 * MAX_SAMPLES + 1)
    large[1, 1234], large[2, 77] = -7.5, 3.25
    seen = watch(large)
    assert (seen.minimum, seen.maximum) == (-7.5, 3.25)
    assert seen.counts.sum() <= MAX_SAMPLES


@pytest.mark.parametrize("rows", [2, 3, 5, 8])
def test_a_sample_of_a_large_tensor_looks_like_the_whole(rows: int) -> None:
    width = MAX_SAMPLES
    column = torch.arange(width).expand(rows, width) % 2  # even columns 0, odd columns 1
    seen = watch(column.float())
    ones = int(seen.counts[seen.centres > 0.5].sum())
    assert ones / seen.counts.sum() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        watch(torch.tensor([1.0, bad, 2.0]))


def test_an_observer_that_saw_nothing_has_no_statistics() -> None:
    with pytest.raises(ValueError, match="no image"):
        Observer().statistics()


def test_statistics_are_a_copy_that_later_images_leave_alone() -> None:
    observer = Observer()
    observer.update(torch.ones(10))
    early = observer.statistics()
    observer.update(torch.ones(10))
    assert early.counts.sum() == 10


def test_images_share_a_million_samples_of_each_value() -> None:
    """128 × 8192 is 2**20; few images give more each, many not less than a histogram has bins."""
    assert {n: samples_each(n) for n in (0, 1, 4, 16, 32, 128, 5000)} == {
        0: 65536, 1: 65536, 4: 65536, 16: 65536, 32: 32768, 128: 8192, 5000: 8192,
    }  # fmt: skip


def test_fewer_samples_where_they_are_asked_for() -> None:
    observer = Observer(samples=100)
    observer.update(torch.arange(1000.0))
    seen = observer.statistics()
    assert seen.counts.sum() == 91  # every 11th: ten is even
    assert (seen.minimum, seen.maximum) == (0.0, 999.0)


def test_the_order_of_channels_in_memory_changes_no_statistic() -> None:
    feature = torch.randn(1, 5, 7, 6, generator=torch.Generator().manual_seed(3))
    one, other = watch(feature), watch(feature.contiguous(memory_format=torch.channels_last))
    assert (one.minimum, one.maximum, one.limit) == (other.minimum, other.maximum, other.limit)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.counts.sum() == feature.numel()
