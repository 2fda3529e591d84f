"""Range methods, against raw data and a histogram error worked out with NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import statistics_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qexport.calibration.statistics import BINS, Statistics
from qexport.planning.arithmetic import INT8, INT16, UINT8, IntegerType, Quantiser
from qexport.planning.least_error import mse as least_error
from qexport.planning.ranges import above, minmax, percentile

SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, size: int = 4000) -> NDArray[np.float64]:
    """Values with a long tail on either side, as activations have."""
    generator = np.random.default_rng(seed)
    values: NDArray[np.float64] = np.clip(generator.standard_t(3, size) * 2 + generator.uniform(-3, 3), -63, 63)
    return values


def histogram_error(of: Statistics, low: float, high: float, kind: IntegerType) -> float:
    """Mean squared error of the bin centres after a round trip, from the definition."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / (kind.high - kind.low)
    zero_point = round(kind.low - low / scale)
    stored = np.clip(np.round(of.centres / scale) + zero_point, kind.low, kind.high)
    back = (stored - zero_point) * scale
    return float(np.average((of.centres - back) ** 2, weights=of.counts))


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


@given(SEEDS, st.sampled_from([INT8, UINT8]))
@settings(deadline=None, max_examples=30)
def test_least_error_is_never_worse_than_the_extremes(seed: int, kind: IntegerType) -> None:
    of = statistics_of(draw(seed), 64.0)
    chosen, extremes = least_error(of, Quantiser(kind)), minmax(of)
    assert extremes[0] <= chosen[0] <= 0 <= chosen[1] <= extremes[1]
    assert histogram_error(of, *chosen, kind) <= histogram_error(of, *extremes, kind) * (1 + 1e-9)


def test_least_error_weighs_an_outlier_against_finer_steps() -> None:
    """With n values in 255 steps over [-4, c] and one at 60 the error is n (c + 4)^2 / (12 255^2) + (60 - c)^2.

    Its minimum for n = 100 000 lies at c = 52.7; candidates are a 24th of 60 apart.
    """
    data = np.concatenate((np.random.default_rng(1).normal(size=100_000), [60.0]))
    of = statistics_of(data, 64.0)
    low, high = least_error(of, Quantiser(INT8))
    assert high == pytest.approx(52.7, abs=60 / 24)
    assert data.min() <= low < -2
    assert histogram_error(of, low, high, INT8) < histogram_error(of, *minmax(of), INT8)


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
    _, high = least_error(statistics_of(data, 64.0), quantiser)
    assert high == pytest.approx(best, abs=60 / 24)


@given(SEEDS, st.sampled_from([(INT8, 127), (INT16, 32767)]), st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=30)
def test_no_symmetric_range_has_less_error(seed: int, kind: tuple[IntegerType, int], share: float) -> None:
    """Against every scale of a grid, by the definition of symmetric rounding."""
    of = statistics_of(draw(seed), 64.0)

    def error(peak: float) -> float:
        scale = peak / kind[1]
        back = np.clip(np.round(of.centres / scale), -kind[1] - 1, kind[1]) * scale
        return float(np.average((of.centres - back) ** 2, weights=of.counts))

    low, high = least_error(of, Quantiser(kind[0], symmetric=True))
    steps = max(-of.minimum, of.maximum) * np.arange(1, 25) / 24
    assert error(max(-low, high)) <= min(map(error, steps)) * (1 + 1e-6)
    assert of.minimum <= low <= 0 <= high <= of.maximum


@pytest.mark.parametrize("method", [minmax, percentile, lambda of: least_error(of, Quantiser(INT8))])
@pytest.mark.parametrize(("low", "high"), [(2.0, 5.0), (-5.0, -2.0), (0.0, 0.0)])
def test_every_range_contains_zero(method: object, low: float, high: float) -> None:
    of = statistics_of(np.linspace(low, high, 1000), 8.0)
    found = method(of)  # type: ignore[operator]
    assert found[0] <= 0 <= found[1]
    assert found[0] >= min(low, 0.0)
    assert found[1] <= max(high, 0.0)


def test_extremes_by_hand() -> None:
    assert minmax(Statistics(-4.0, 9.0, 16.0, np.zeros(BINS, dtype=np.int64))) == (-4.0, 9.0)


def test_above_raises_the_lower_bound_only() -> None:
    assert above((-20.0, 5.0), -8.0) == (-8.0, 5.0)
    assert above((-3.0, 5.0), -8.0) == (-3.0, 5.0)
