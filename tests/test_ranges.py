"""Range methods, against raw data and a histogram error worked out with NumPy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import statistics_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qexport.calibration.observer import Observer
from qexport.calibration.statistics import BINS, Statistics, merge, together
from qexport.planning.arithmetic import INT8, INT16, UINT8, IntegerType, Quantiser
from qexport.planning.entropy import divergence, entropy
from qexport.planning.least_error import mse
from qexport.planning.ranges import RangeEstimator, above, average_minmax, minmax, percentile
from qexport.planning.registry import RANGES, needs_importance
from qexport.planning.weighted_ranges import AUTO, EVENLY, WEIGHTED_MSE, CheapestAtOutputs, weighted_mse

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, size: int = 4000) -> NDArray[np.float64]:
    """Values with a long tail on either side, as activations have."""
    generator = np.random.default_rng(seed)
    values: NDArray[np.float64] = np.clip(generator.standard_t(3, size) * 2 + generator.uniform(-3, 3), -63, 63)
    return values


def weighted(seed: int, size: int = 4000) -> Statistics:
    """Statistics of three images, with importance that is another mixture of the same bins."""
    data, generator = draw(seed, size), np.random.default_rng(seed + 1)
    of = statistics_of(data, 64.0)
    lowest, highest = (sum(f(each) for each in np.array_split(data, 3)) for f in (np.min, np.max))
    importance = of.counts * generator.exponential(size=BINS) * np.exp(-0.05 * of.centres)
    return replace(of, lowest=float(lowest), highest=float(highest), images=3, importance=importance)


def besides(of: Statistics) -> NDArray[np.float64]:
    """Importance, and a share of its mean for every element."""
    assert of.importance is not None
    weights: NDArray[np.float64] = of.importance + EVENLY * of.importance.sum() * (of.counts / of.counts.sum())
    return weights


def error(
    of: Statistics,
    weights: NDArray[np.floating] | NDArray[np.integer],
    chosen: tuple[float, float],
    quantiser: Quantiser,
) -> float:
    """Weighted mean squared error of sixteen points in each bin after a round trip, from the definition."""
    low, high = chosen
    kind = quantiser.kind
    if quantiser.symmetric:
        scale, zero_point = max(-low, high) / kind.high, 0
    else:
        scale = (high - low) / (kind.high - kind.low)
        zero_point = round(kind.low - low / scale)
    width = 2 * of.limit / BINS
    points = of.centres[:, None] + (np.arange(16) + 0.5) / 16 * width - width / 2
    back = (np.clip(np.round(points / scale) + zero_point, kind.low, kind.high) - zero_point) * scale
    return float(np.average(((points - back) ** 2).mean(axis=1), weights=weights))


@given(SEEDS, st.floats(90, 100))
def test_a_percentile_leaves_just_its_share_outside(seed: int, percent: float) -> None:
    data = draw(seed)
    low, high = percentile(statistics_of(data, 64.0), percent=percent)
    share, width = 1 - percent / 100, 2 * 64.0 / BINS
    slack = 1e-9
    if low < 0 and low > data.min():
        assert np.mean(data < low) <= share + slack
        assert np.mean(data < low + 1.001 * width) >= share - slack  # one bin tighter would cut off too many
    if high > 0 and high < data.max():
        assert np.mean(data > high) <= share + slack
        assert np.mean(data > high - 1.001 * width) >= share - slack


@given(SEEDS, st.sampled_from([99.0, 99.9, 99.99]))
def test_a_percentile_is_numpys_to_a_bin(seed: int, percent: float) -> None:
    data = draw(seed)
    low, high = percentile(statistics_of(data, 64.0), percent=percent)
    width = 2 * 64.0 / BINS
    for found, wanted in ((low, 100 - percent), (high, percent)):
        # Between two elements NumPy may choose either; both choices are its own.
        lower, higher = (float(np.percentile(data, wanted, method=m)) for m in ("lower", "higher"))
        assert lower - width <= found <= higher + width


@given(SEEDS, st.integers(0, 400))
def test_a_percentile_treats_both_sides_alike(seed: int, outside: int) -> None:
    of = statistics_of(draw(seed, 4000), 64.0)
    mirrored = Statistics(-of.maximum, -of.minimum, 64.0, of.counts[::-1].copy())
    percent = 100 - (outside + 0.5) / 40  # never a whole number of elements, which rounding may put on either side
    low, high = percentile(of, percent=percent)
    assert percentile(mirrored, percent=percent) == (-high, -low)


@given(SEEDS, st.floats(50, 100), st.floats(50, 100))
def test_percentiles_are_nested_inside_the_extremes(seed: int, one: float, other: float) -> None:
    of = statistics_of(draw(seed), 64.0)
    narrow, wide = percentile(of, percent=min(one, other)), percentile(of, percent=max(one, other))
    least, most = minmax(of)
    assert least <= wide[0] <= narrow[0] <= 0 <= narrow[1] <= wide[1] <= most


def test_a_percentile_by_hand() -> None:
    # 10 000 elements: one at -4, one at 4, the rest at -1, 0 and 1.
    data = np.array([-4.0, 4.0] + [-1.0] * 3000 + [1.0] * 3000 + [0.0] * 3998)
    of = statistics_of(data, 8.0)
    width = 16 / BINS
    assert percentile(of, percent=100) == (-4.0, 4.0)
    assert percentile(of, percent=99.98) == pytest.approx((-1.0, 1.0), abs=width)
    assert percentile(of, percent=60) == pytest.approx((0.0, 0.0), abs=width)


def test_least_error_weighs_an_outlier_against_finer_steps() -> None:
    """With n values in 255 steps over [-4, c] and one at 60 the error is n (c + 4)^2 / (12 255^2) + (60 - c)^2.

    Its minimum for n = 100 000 lies at c = 52.7; candidates are a 24th of 60 apart.
    """
    data = np.concatenate((np.random.default_rng(1).normal(size=100_000), [60.0]))
    of = statistics_of(data, 64.0)
    low, high = mse(of, Quantiser(INT8))
    assert high == pytest.approx(52.7, abs=60 / 24)
    assert data.min() <= low < -2
    assert error(of, of.counts, (low, high), Quantiser(INT8)) < error(of, of.counts, minmax(of), Quantiser(INT8))


@pytest.mark.parametrize(
    ("quantiser", "best"),
    [
        (Quantiser(INT8), 52.7),
        (Quantiser(UINT8), 52.7),
        (Quantiser(INT8, symmetric=True), 39.6),
        (Quantiser(INT16, symmetric=True), 60.0),
        (Quantiser(INT16), 60.0),
    ],
)
def test_the_least_error_is_that_of_the_runtimes_own_integers(quantiser: Quantiser, best: float) -> None:
    """As above; symmetric steps of c / 127 are twice as wide, and n c^2 / (12 127^2) + (60 - c)^2 is least at 39.6.

    Steps of 16 bits cost nothing, so that nothing is cut.
    """
    data = np.concatenate((np.random.default_rng(1).normal(size=100_000), [60.0]))
    _, high = mse(statistics_of(data, 64.0), quantiser)
    assert high == pytest.approx(best, abs=60 / 24)


@given(SEEDS, st.sampled_from([INT8, INT16]))
@settings(deadline=None, max_examples=10)
def test_no_symmetric_range_has_less_error(seed: int, kind: IntegerType) -> None:
    """Against every scale of a grid, by the definition of symmetric rounding."""
    of = statistics_of(draw(seed), 64.0)

    quantiser = Quantiser(kind, symmetric=True)
    low, high = mse(of, quantiser)
    peak = max(-of.minimum, of.maximum)
    grid = [(max(of.minimum, -peak * step / 24), min(of.maximum, peak * step / 24)) for step in range(1, 25)]
    least = min(error(of, of.counts, each, quantiser) for each in grid)
    assert error(of, of.counts, (low, high), quantiser) <= least * 1.01
    assert of.minimum <= low <= 0 <= high <= of.maximum


QUANTISERS = st.sampled_from([Quantiser(INT8), Quantiser(UINT8), Quantiser(INT8, True), Quantiser(INT16, True)])
ESTIMATORS: dict[str, RangeEstimator] = {name: RANGES.find(name) for name in RANGES.own}


@pytest.mark.parametrize("name", ESTIMATORS)
@given(SEEDS, QUANTISERS, st.integers(-3, 3))
@settings(deadline=None, max_examples=6)
def test_ranges_hold_zero_lie_within_the_extremes_and_grow_with_the_values(
    name: str, seed: int, quantiser: Quantiser, doublings: int
) -> None:
    of, factor = weighted(seed), 2.0**doublings
    low, high = ESTIMATORS[name](of, quantiser)
    least, most = minmax(of)
    assert least <= low <= 0 <= high <= most
    grown = {key: getattr(of, key) * factor for key in ("minimum", "maximum", "limit", "lowest", "highest")}
    assert ESTIMATORS[name](replace(of, **grown), quantiser) == pytest.approx((low * factor, high * factor), rel=1e-12)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize(("low", "high"), [(2.0, 5.0), (-5.0, -2.0), (0.0, 0.0)])
@pytest.mark.parametrize("quantiser", [Quantiser(UINT8), Quantiser(INT8, True), Quantiser(INT16, True)])
def test_every_range_contains_zero(name: str, low: float, high: float, quantiser: Quantiser) -> None:
    of = statistics_of(np.linspace(low, high, 1000), 8.0)
    of = replace(of, lowest=low, highest=high, images=1, importance=of.counts.astype(np.float64))
    found = ESTIMATORS[name](of, quantiser)
    assert min(low, 0.0) <= found[0] <= 0 <= found[1] <= max(high, 0.0)


@pytest.mark.parametrize("name", ESTIMATORS)
@given(SEEDS, QUANTISERS, st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=4)
def test_how_statistics_are_merged_does_not_matter(name: str, seed: int, quantiser: Quantiser, random: Any) -> None:
    parts = [weighted(seed + number, 1000) for number in range(4)]
    whole = ESTIMATORS[name](merge(parts), quantiser)
    random.shuffle(parts)
    again = merge([merge(parts[:1]), merge(parts[1:])])
    assert ESTIMATORS[name](again, quantiser) == pytest.approx(whole, rel=1e-9)


@given(SEEDS, QUANTISERS)
@settings(deadline=None, max_examples=10)
def test_estimators_are_never_worse_than_the_extremes_on_their_own_measure(seed: int, quantiser: Quantiser) -> None:
    of = weighted(seed)
    extremes = minmax(of)
    for estimate, weights in ((mse, of.counts), (weighted_mse, besides(of))):
        chosen = estimate(of, quantiser)
        # The search integrates over bins, this measure takes their centres: they differ by a per cent or two.
        assert error(of, weights, chosen, quantiser) <= error(of, weights, extremes, quantiser) * 1.03
    measure = divergence(of, quantiser)
    assert entropy(of, quantiser) == extremes or measure(entropy(of, quantiser)) <= measure(extremes)


@given(SEEDS, QUANTISERS)
@settings(deadline=None, max_examples=10)
def test_auto_costs_no_more_than_any_other(seed: int, quantiser: Quantiser) -> None:
    of = weighted(seed)
    weights = besides(of)
    chosen = error(of, weights, ESTIMATORS["auto"](of, quantiser), quantiser)
    for name in RANGES.own:
        assert chosen <= error(of, weights, ESTIMATORS[name](of, quantiser), quantiser) * 1.03, name


def test_the_extremes_of_three_images_by_hand() -> None:
    observer = Observer()
    for low, high in ((-1.0, 2.0), (-4.0, 3.0), (-1.0, 10.0)):
        observer.update(torch.tensor([low, 0.5, high]))
    of = observer.statistics()
    assert average_minmax(of) == (-2.0, 5.0)
    assert average_minmax(replace(of, images=0)) == minmax(of) == (-4.0, 10.0)
    other = replace(of, lowest=-3.0, highest=30.0, maximum=12.0)
    assert average_minmax(together([of, other])) == (-2.0, 10.0)  # the widest means of values that share a scale
    assert average_minmax(merge([of, other])) == (-1.5, 7.5)  # the mean over six images
    positive = Observer()
    positive.update(torch.tensor([1.0, 3.0]))
    assert average_minmax(positive.statistics()) == (0.0, 3.0)


def important(where: dict[float, float], low: float = -8.0, high: float = 8.0) -> Statistics:
    """Elements spread evenly from `low` to `high`, with importance from each key on up to the next."""
    of = statistics_of(np.linspace(low, high, 80_001), 8.0)
    edges = [*where, high + 1]
    share = sum(
        weight * ((of.centres >= at) & (of.centres < to))
        for (at, weight), to in zip(where.items(), edges[1:], strict=True)
    )
    return replace(of, importance=of.counts * share)


def test_a_tail_that_does_not_matter_is_cut_and_only_that() -> None:
    """What only a SiLU reads: nothing below -3 changes the outputs, and few elements lie there."""
    of = important({-8.0: 0.0, -3.0: 1.0})
    of = replace(of, counts=np.where(of.centres < -3, np.arange(BINS) % 40 == 0, of.counts * 1000).astype(np.int64))
    low, high = weighted_mse(of, Quantiser(UINT8))
    bounds = np.linspace(-8, -2, 61).tolist()
    best = min(bounds, key=lambda bound: error(of, besides(of), (bound, 8.0), Quantiser(UINT8)))
    assert low == pytest.approx(best, abs=0.15)
    assert low > -4
    assert high == pytest.approx(8.0, abs=0.1)
    assert weighted_mse(important({-8.0: 1.0}), Quantiser(UINT8)) == pytest.approx((-8.0, 8.0), abs=0.1)
    # Both bounds of symmetric integers move together, and the upper one matters.
    assert weighted_mse(of, Quantiser(INT8, True)) == pytest.approx((-8.0, 8.0), abs=0.1)


@pytest.mark.parametrize("weight", [0.0, 1e-4, 1.0])
def test_the_bound_is_where_finer_steps_and_cut_elements_balance(weight: float) -> None:
    """Uniform from 0 to 1 with weight 1 and on to 8 with another; the best of 4000 bounds by the definition."""
    of = important({0.0: 1.0, 1.0: weight}, low=0.0)
    weights = besides(of)
    inside, beyond = (float(weights[mask].sum()) for mask in (of.centres < 1, of.centres >= 1))
    bounds = np.linspace(1, 8, 4000)
    rounding = (inside + beyond * (bounds - 1) / 7) * (bounds / 255) ** 2 / 12
    cut = beyond * (8 - bounds) / 7 * (8 - bounds) ** 2 / 3
    best = bounds[np.argmin(rounding + cut)]
    low, high = weighted_mse(of, Quantiser(UINT8))
    assert low == 0
    assert high == pytest.approx(best, rel=0.02)


def test_where_importance_says_nothing_a_percentile_is_chosen_and_named() -> None:
    of = weighted(5)
    one = np.zeros(BINS)
    one[[100, 5000, 5001]] = 1e-30, 1.0, 0.5
    zero = np.zeros(BINS)
    zero[BINS // 2] = 1.0
    for importance in (None, one, zero, np.zeros(BINS)):
        bare = replace(of, importance=importance)
        assert WEIGHTED_MSE.named(bare, Quantiser(INT8)) == ("percentile", percentile(of))
        assert AUTO.named(bare, Quantiser(INT8)) == ("percentile", percentile(of))
    assert WEIGHTED_MSE.named(of, Quantiser(INT8)) == ("weighted-mse", weighted_mse(of, Quantiser(INT8)))


def test_an_equal_cost_goes_to_the_first_and_a_lower_one_wins() -> None:
    of, quantiser = weighted(7), Quantiser(INT8)
    tables: list[dict[str, RangeEstimator]] = [{"a": minmax, "b": minmax}, {"a": minmax, "b": weighted_mse}]
    assert [CheapestAtOutputs(each).named(of, quantiser)[0] for each in tables] == ["a", "b"]


def test_only_two_of_them_need_importance() -> None:
    assert [name for name in RANGES.own if needs_importance(name)] == ["weighted-mse", "auto"]


def test_entropy_cuts_a_lonely_tail_and_keeps_a_full_one() -> None:
    """A normal distribution with one element of a hundred thousand far out, against a uniform one."""
    data = np.concatenate((np.random.default_rng(1).normal(size=100_000), [60.0]))
    of = statistics_of(data, 64.0)
    for quantiser in (Quantiser(UINT8), Quantiser(INT8), Quantiser(INT8, True)):
        low, high = entropy(of, quantiser)
        assert 2 < high < 20
        assert -8 < low < -2
    even = statistics_of(np.linspace(-30, 50, 200_001), 64.0)
    assert entropy(even, Quantiser(UINT8)) == pytest.approx((-30, 50), rel=0.05)
    assert entropy(even, Quantiser(INT16, True)) == minmax(even)


def test_divergence_by_hand() -> None:
    """Steps of two bins: (3, 1) become (2, 2), (2, 2) stay, and what is cut (4) is added to the last bin that is not.

    So (3, 1, 2, 6) of 12 against (2, 2, 2, 2) of 8; levels are the integers 1 and 2, whose steps are centred.
    """
    counts, width = np.zeros(BINS, dtype=np.int64), 2 * 8.0 / BINS
    counts[BINS // 2 + 1 : BINS // 2 + 5] = 3, 1, 2, 2
    counts[BINS // 2 + 100] = 4
    of = Statistics(0.0, 101 * width, 8.0, counts)
    two = Quantiser(IntegerType("two bits", 0, 2))
    share = np.array([3, 1, 2, 6]) / 12
    expected = float(np.sum(share * np.log(share / 0.25)))
    assert divergence(of, two)((0.0, 4 * width)) == pytest.approx(expected)
    assert divergence(of, two)((0.0, 1.9 * width)) == np.inf  # narrower than bins


def test_extremes_by_hand() -> None:
    assert minmax(Statistics(-4.0, 9.0, 16.0, np.zeros(BINS, dtype=np.int64))) == (-4.0, 9.0)


def test_above_raises_the_lower_bound_only() -> None:
    assert above((-20.0, 5.0), -8.0) == (-8.0, 5.0)
    assert above((-3.0, 5.0), -8.0) == (-3.0, 5.0)
