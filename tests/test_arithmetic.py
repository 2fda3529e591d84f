"""Affine arithmetic: properties over random ranges, values by hand, and torch's own quantisers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qexport.planning.arithmetic import (
    INT8,
    INT8_NARROW,
    INT16,
    SMALLEST_SCALE,
    UINT8,
    IntegerType,
    affine_parameters,
    dequantise,
    pair_safe_scales,
    quantise,
    symmetric_scale,
    weight_scales,
)

KINDS = st.sampled_from([INT8, INT8_NARROW, UINT8, INT16])
BOUND = st.floats(-1e4, 1e4).map(lambda x: x if abs(x) > 1e-3 else 0.0)
RANGES = st.tuples(BOUND, BOUND).map(sorted).filter(lambda pair: pair[0] < pair[1])


@given(RANGES, KINDS, st.floats(0, 1))
def test_a_round_trip_inside_the_range_is_within_half_a_step(
    bounds: list[float], kind: IntegerType, share: float
) -> None:
    low, high = bounds
    scale, zero_point = affine_parameters(low, high, kind)
    real = np.array([low + share * (high - low)])
    back = dequantise(quantise(real, scale, zero_point, kind), scale, zero_point)
    assert abs(back[0] - real[0]) <= scale / 2 * (1 + 1e-6)


@given(RANGES, KINDS, st.floats(1, 1e6))
def test_outside_the_range_integers_saturate(bounds: list[float], kind: IntegerType, extras: float) -> None:
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    scale, zero_point = affine_parameters(low, high, kind)
    outside = np.array([low - extras * scale, high + extras * scale])
    assert quantise(outside, scale, zero_point, kind).tolist() == [kind.low, kind.high]


@given(RANGES, KINDS)
def test_zero_is_exact_and_the_zero_point_is_an_integer_of_the_type(bounds: list[float], kind: IntegerType) -> None:
    scale, zero_point = affine_parameters(bounds[0], bounds[1], kind)
    integers = quantise(np.zeros(1), scale, zero_point, kind)
    assert integers.tolist() == [zero_point]
    assert dequantise(integers, scale, zero_point).tolist() == [0.0]
    assert kind.low <= zero_point <= kind.high


@given(RANGES, KINDS, st.lists(st.floats(-2e4, 2e4), min_size=2, max_size=50))
def test_quantisation_is_monotone(bounds: list[float], kind: IntegerType, values: list[float]) -> None:
    integers = quantise(np.array(sorted(values)), *affine_parameters(bounds[0], bounds[1], kind), kind)
    assert (np.diff(integers) >= 0).all()


@given(RANGES, st.integers(0, 2**32 - 1))
def test_the_integers_are_those_of_torch(bounds: list[float], seed: int) -> None:
    low, high = bounds
    scale, zero_point = affine_parameters(low, high, INT8)
    real = np.random.default_rng(seed).uniform(low - 1, high + 1, 256).astype(np.float32)
    faked = torch.fake_quantize_per_tensor_affine(torch.from_numpy(real), scale, zero_point, -128, 127)
    expected = np.rint(faked.numpy() / scale) + zero_point
    ours = quantise(real, scale, zero_point, INT8)
    # torch multiplies by the reciprocal in float32: a value in the middle between two integers may go either way.
    position = real.astype(np.float64) / scale
    middle = np.abs(np.abs(position - np.floor(position)) - 0.5) < 1e-2
    np.testing.assert_array_equal(ours[~middle], expected[~middle])
    assert np.abs(ours - expected).max() <= 1


def test_the_round_trip_is_torchs_fake_quantisation() -> None:
    scale, zero_point = affine_parameters(-1.0, 3.0, INT8)
    real = torch.linspace(-2, 4, 1001)
    expected = torch.fake_quantize_per_tensor_affine(real, scale, zero_point, -128, 127)
    ours = dequantise(quantise(real.numpy(), scale, zero_point, INT8), scale, zero_point)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "kind", "scale", "zero_point"),
    [
        (0.0, 1.0, INT8, 1 / 255, -128),
        (-1.0, 0.0, INT8, 1 / 255, 127),
        (-64.0, 191.0, UINT8, 1.0, 64),
        (2.0, 5.1, UINT8, 0.02, 0),  # widened to reach zero
        (-5.1, -2.0, UINT8, 0.02, 255),
        (-128.0, 127.0, INT8, 1.0, 0),
        (-32768.0, 32767.0, INT16, 1.0, 0),
        (0.0, 0.0, INT8, SMALLEST_SCALE, -128),
    ],
)
def test_parameters_by_hand(low: float, high: float, kind: IntegerType, scale: float, zero_point: int) -> None:
    assert affine_parameters(low, high, kind) == pytest.approx((scale, zero_point))


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.5), (float("nan"), 1.0), (0.0, float("inf")), (-float("inf"), 0.0)])
def test_what_is_no_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="not a range"):
        affine_parameters(low, high, INT8)


def test_halves_round_to_even_and_the_ends_saturate() -> None:
    real = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 200.0, -200.0])
    assert quantise(real, 1.0, 0, INT8).tolist() == [0, 2, 2, 0, -2, 127, -128]
    assert quantise(real, 1.0, 0, INT8_NARROW).tolist() == [0, 2, 2, 0, -2, 127, -127]
    assert quantise(real, 0.5, 10, UINT8).tolist() == [11, 13, 15, 9, 7, 255, 0]


@given(st.floats(1e-3, 1e6), KINDS.filter(lambda kind: kind.low < 0))
def test_a_symmetric_scale_holds_both_peaks_with_zero_point_zero(peak: float, kind: IntegerType) -> None:
    scale = symmetric_scale(peak, kind)
    both = np.array([-peak, peak])
    back = dequantise(quantise(both, scale, 0, kind), scale, 0)
    np.testing.assert_allclose(back, both, rtol=1e-9)
    assert symmetric_scale(-peak, kind) == scale


def test_symmetric_scales_by_hand() -> None:
    assert symmetric_scale(12.7, INT8) == pytest.approx(0.1)  # 127 steps, -128 is beyond the peak
    assert symmetric_scale(12.7, INT8_NARROW) == pytest.approx(0.1)
    assert symmetric_scale(0.0, INT8) == SMALLEST_SCALE


@pytest.mark.parametrize("axis", [0, 1, 2, 3])
def test_each_channel_of_a_weight_has_the_scale_of_its_own_peak(axis: int) -> None:
    weight = np.random.default_rng(axis).normal(size=(5, 4, 3, 2)).astype(np.float32)
    slices = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    expected = [max(abs(s.min()), abs(s.max())) / 127 for s in slices]
    scales = weight_scales(weight, axis)
    np.testing.assert_allclose(scales, expected, rtol=1e-6)
    assert scales.dtype == np.float32
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    integers = quantise(weight, scales.reshape(shape), 0, INT8_NARROW)
    peaks = np.abs(np.moveaxis(integers, axis, 0).reshape(weight.shape[axis], -1)).max(axis=1)
    assert peaks.tolist() == [127] * weight.shape[axis]


def test_a_channel_of_zeros_has_a_scale_that_runtimes_accept() -> None:
    weight = np.stack([np.zeros((2, 3, 3)), np.full((2, 3, 3), -2.54)]).astype(np.float32)
    np.testing.assert_allclose(weight_scales(weight, 0), [SMALLEST_SCALE, 0.02], rtol=1e-6)


def test_per_channel_integers_are_those_of_torch() -> None:
    weight = np.random.default_rng(7).normal(size=(6, 3, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, 0)
    zeros = torch.zeros(6, dtype=torch.int32)
    faked = torch.fake_quantize_per_channel_affine(
        torch.from_numpy(weight), torch.from_numpy(scales), zeros, 0, -127, 127
    )
    by_channel = scales.reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(quantise(weight, by_channel, 0, INT8_NARROW), np.rint(faked.numpy() / by_channel))


def test_the_number_formats() -> None:
    assert [(k.name, k.low, k.high, k.levels) for k in (INT8, INT8_NARROW, UINT8, INT16)] == [
        ("int8", -128, 127, 255),
        ("int8", -127, 127, 254),
        ("uint8", 0, 255, 255),
        ("int16", -32768, 32767, 65535),
    ]


def saturating_pair_accumulation(integers: NDArray[np.integer]) -> int:
    """Furthest sum of two neighbouring input channels' products with unsigned bytes, either of them 0 to 255."""
    pairs = integers.astype(np.int64).reshape(len(integers), integers.shape[1] // 2, 2, -1)
    above, below = np.maximum(pairs, 0).sum(2), np.maximum(-pairs, 0).sum(2)
    return 255 * int(max(above.max(), below.max()))


def rounded(weight: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.int32]:
    """Integers of a weight with one scale for each output channel."""
    return quantise(weight, scales.reshape(-1, *[1] * (weight.ndim - 1)), 0, INT8_NARROW)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 6), st.integers(1, 8).map(lambda n: 2 * n), st.sampled_from([1, 3])),
    power=st.sampled_from([1, 3, 9]),
    shift=st.sampled_from([-1.0, 0.0, 1.0]),
    size=st.floats(1e-5, 1e3),
)
def test_pairs_of_products_fit_16_bits(
    seed: int, shape: tuple[int, int, int], power: int, shift: float, size: float
) -> None:
    """Odd powers make a few weights large and the others small; the shift gives neighbours one sign."""
    out, inputs, kernel = shape
    drawn = np.random.default_rng(seed).uniform(-1, 1, (out, inputs, kernel, kernel))
    weight = (size * (drawn**power + shift)).astype(np.float32)
    given_scales = weight_scales(weight, 0)
    scales = pair_safe_scales(weight, given_scales)
    assert saturating_pair_accumulation(rounded(weight, scales)) <= 32767
    assert (scales >= given_scales).all()
    assert (scales <= given_scales * np.float32(127 / 64)).all()
    assert scales.dtype == np.float32


@pytest.mark.parametrize(
    ("pair", "scale"),
    [
        ((127.0, -127.0), 1.0),  # opposite signs relieve each other
        ((127.0, 0.0), 1.0),
        ((100.0, 27.0), 1.0),
        ((127.0, 64.0), 191 / 127),
        ((-127.0, -64.0), 191 / 127),
        ((127.0, 127.0), 127 / 64),  # 64 + 64 steps, as with seven bits
    ],
)
def test_pair_scales_by_hand(pair: tuple[float, float], scale: float) -> None:
    peak = np.ones(1, np.float32) * np.float32(max(map(abs, pair)) / 127)
    weight = np.array([pair], np.float32)
    assert pair_safe_scales(weight, peak).tolist() == pytest.approx([scale])


def test_the_worst_pair_of_each_output_channel_decides() -> None:
    weight = np.zeros((3, 4, 1, 2), np.float32)
    weight[0, 1:3, 0, 0] = 127  # channels 1 and 2 are neighbours, but of different pairs
    weight[1, 0, 0, 0] = weight[1, 1, 0, 1] = 127  # one pair, but at different places of the kernel
    weight[2, 2:, 0, 1] = (100, 60)
    weight[2, 0, 0, 0] = 127
    scales = pair_safe_scales(weight, weight_scales(weight, 0))
    np.testing.assert_allclose(scales, [1, 1, 160 / 127], rtol=1e-6)
    assert saturating_pair_accumulation(rounded(weight, scales)) <= 32767


@pytest.mark.parametrize("inputs", [1, 3, 5])
def test_an_odd_number_of_channels_gets_seven_bits(inputs: int) -> None:
    weight = np.random.default_rng(inputs).normal(size=(4, inputs, 3, 3)).astype(np.float32)
    scales = pair_safe_scales(weight, weight_scales(weight, 0))
    np.testing.assert_allclose(scales, np.abs(weight).max(axis=(1, 2, 3)) / 64, rtol=1e-6)
    assert np.abs(rounded(weight, scales)).max(axis=(1, 2, 3)).tolist() == [64] * 4
