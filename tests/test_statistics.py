"""Histograms that widen and merge without error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import statistics_of
from hypothesis import given
from hypothesis import strategies as st

from qexport.calibration.statistics import BINS, MIN_LIMIT, Statistics, limit_for, merge, together, widen

EXPONENTS = st.integers(-6, 6)
SEEDS = st.integers(0, 2**32 - 1)


def sample(seed: int, limit: float) -> Statistics:
    generator = np.random.default_rng(seed)
    data = generator.uniform(-limit, limit, 500).astype(np.float32)
    return statistics_of(data, limit)


def same(a: Statistics, b: Statistics) -> bool:
    numbers = ("minimum", "maximum", "limit")
    return all(getattr(a, n) == getattr(b, n) for n in numbers) and np.array_equal(a.counts, b.counts)


@given(st.floats(2.0**-40, 2.0**40, width=32))
def test_a_limit_is_the_smallest_power_of_two_that_holds_the_peak(peak: float) -> None:
    limit = limit_for(peak)
    mantissa, _ = np.frexp(limit)
    assert mantissa == 0.5
    assert limit >= peak
    assert limit / 2 < peak or limit == MIN_LIMIT


@pytest.mark.parametrize(
    ("peak", "limit"),
    [(0.0, MIN_LIMIT), (1e-9, MIN_LIMIT), (0.5, 0.5), (0.51, 1.0), (1.0, 1.0), (640.0, 1024.0)],
)
def test_limits_by_hand(peak: float, limit: float) -> None:
    assert limit_for(peak) == limit


@given(SEEDS, EXPONENTS, st.integers(0, 5))
def test_widening_keeps_every_element_in_the_bin_that_a_wider_histogram_puts_it_in(
    seed: int, exponent: int, doublings: int
) -> None:
    limit, wanted = 2.0**exponent, 2.0 ** (exponent + doublings)
    # Bin centres of the narrow histogram: no element lies on an edge, where bins of either width round alike.
    bins = np.random.default_rng(seed).integers(0, BINS, 300)
    data = (bins + 0.5) * (2 * limit / BINS) - limit
    narrow, _ = np.histogram(data, bins=BINS, range=(-limit, limit))
    expected, _ = np.histogram(data, bins=BINS, range=(-wanted, wanted))
    wide = widen(narrow.astype(np.int64), limit, wanted)
    np.testing.assert_array_equal(wide, expected)
    assert wide.sum() == 300


def test_widening_merges_pairs_into_the_middle_half() -> None:
    counts = np.arange(BINS, dtype=np.int64)
    wide = widen(counts, 1.0, 2.0)
    assert wide[: BINS // 4].sum() == wide[-BINS // 4 :].sum() == 0
    assert wide[BINS // 4] == 0 + 1
    assert wide[BINS // 4 + 1] == 2 + 3
    assert wide[3 * BINS // 4 - 1] == 2 * BINS - 3
    np.testing.assert_array_equal(widen(counts, 2.0, 2.0), counts)


def test_edges_and_centres_span_the_limit() -> None:
    of = statistics_of(np.array([0.0]), 4.0)
    np.testing.assert_allclose(of.edges, np.linspace(-4, 4, BINS + 1), atol=1e-12)
    np.testing.assert_allclose(of.centres, (of.edges[:-1] + of.edges[1:]) / 2, atol=1e-12)


@given(st.lists(st.tuples(SEEDS, EXPONENTS), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_merging_is_commutative_and_associative(parts: list[tuple[int, int]], random: object) -> None:
    every = [sample(seed, 2.0**exponent) for seed, exponent in parts]
    whole = merge(every)
    shuffled = list(every)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert same(merge(shuffled), whole)
    assert same(merge([merge(every[:1]), merge(every[1:])]), whole)
    assert same(merge([merge(every[:-1]), every[-1]]), whole)
    assert whole.counts.sum() == 500 * len(every)


def test_a_merge_is_the_histogram_of_everything() -> None:
    generator = np.random.default_rng(3)
    small, large = generator.uniform(-1, 1, 4000), generator.uniform(-8, 8, 4000)
    merged = merge([statistics_of(small, 1.0), statistics_of(large, 8.0)])
    both = np.concatenate((small, large))
    expected, _ = np.histogram(both, bins=BINS, range=(-8, 8))
    np.testing.assert_array_equal(merged.counts, expected)
    assert (merged.minimum, merged.maximum, merged.limit) == (both.min(), both.max(), 8.0)


def test_importance_is_merged_as_elements_are_and_only_where_all_have_it() -> None:
    small, large = sample(1, 1.0), sample(2, 8.0)
    one, other = (replace(each, importance=each.counts / 4) for each in (small, large))
    for combine in (merge, together):
        found = combine([one, other])
        assert found.importance is not None
        assert found.importance.dtype == np.float64
        np.testing.assert_allclose(found.importance, found.counts / 4)
        assert combine([one, large]).importance is None


def test_nothing_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="nothing"):
        merge([])
