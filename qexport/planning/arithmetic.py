"""Affine quantisation arithmetic: real = scale * (quantised - zero_point).

Follows Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (2018): asymmetric per-tensor activations whose range always contains zero, symmetric per-channel weights.
All arrays are NumPy; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]

SMALLEST_SCALE = 1e-9
"""Scale of an all-zero tensor: any positive number would do, runtimes refuse zero."""


@dataclass(frozen=True)
class IntegerType:
    """A quantised number format: the integers from `low` to `high` inclusive."""

    name: str
    low: int
    high: int

    @property
    def levels(self) -> int:
        """Steps between the lowest and the highest integer."""
        return self.high - self.low


INT8 = IntegerType("int8", -128, 127)
INT8_NARROW = IntegerType("int8", -127, 127)
"""Weights leave -128 unused: symmetric, and the product of two extremes still fits the kernels' 16-bit sums."""
UINT8 = IntegerType("uint8", 0, 255)
INT16 = IntegerType("int16", -32768, 32767)
INT32 = IntegerType("int32", -(2**31), 2**31 - 1)
"""Biases, and the sums that kernels add products to."""
INT64 = IntegerType("int64", -(2**47), 2**47 - 1)
"""Biases of 16-bit activations: 64 bits are stored, of which TFLite's kernels rescale 48."""
TYPES: Mapping[str, IntegerType] = {kind.name: kind for kind in (INT8, UINT8, INT16)}
"""What activations can become, by the plan's name."""
WEIGHT_AXIS: Mapping[str, int] = {"conv": 0, "conv_transpose": 1, "linear": 0}
"""Along which a layer's weight has one scale each, by operation."""


@dataclass(frozen=True)
class Quantiser:
    """How real ranges become the integers of one type.

    Attributes:
        symmetric: zero point 0, whatever the range.
    """

    kind: IntegerType
    symmetric: bool = False

    def parameters(self, low: float, high: float) -> tuple[float, int]:
        """Return (scale, zero point) for the real range [low, high], widened to contain 0.

        Raises:
            ValueError: a bound is not finite, or low exceeds high.
        """
        scale, zero_point = affine_parameters(low, high, self.kind)
        return (symmetric_scale(max(-low, high), self.kind), 0) if self.symmetric else (scale, zero_point)


def affine_parameters(low: float, high: float, kind: IntegerType) -> tuple[float, int]:
    """Return (scale, zero point) that map the real range [low, high], widened to contain 0, onto `kind`.

    Zero is represented exactly: padding and SiLU's floor must not become a bias.

    Raises:
        ValueError: a bound is not finite, or low exceeds high.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise ValueError(f"not a range: [{low}, {high}]")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / kind.levels, SMALLEST_SCALE)
    zero_point = round(kind.low - low / scale)
    return scale, int(np.clip(zero_point, kind.low, kind.high))


def symmetric_scale(peak: float, kind: IntegerType) -> float:
    """Return the scale that maps [-peak, peak] onto `kind` with zero point 0."""
    return max(abs(peak) / min(-kind.low, kind.high), SMALLEST_SCALE)


def weight_scales(weight: FloatArray, axis: int, kind: IntegerType = INT8_NARROW) -> NDArray[np.float32]:
    """Return one symmetric scale for each slice of `weight` along `axis` (float32, shape (weight.shape[axis],))."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peaks = np.abs(weight).max(axis=others)
    return np.array([symmetric_scale(float(p), kind) for p in peaks], dtype=np.float32)


def pair_safe_scales(weight: FloatArray, scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Widen weight scales (axis 0) until two neighbouring products with unsigned bytes fit 16 bits.

    x86 kernels without VNNI add the products of two neighbouring input channels in 16 bits (VPMADDUBSW), which hold
    255 * 128. Weights of opposite sign relieve each other, so that most channels keep almost all of their steps,
    where 7-bit weights, the usual remedy, give up half of them in every channel.

    Args:
        weight: (out, in, …); where the number of input channels is odd, neighbours are not known: 7 bits it is.
        scales: symmetric scales (out,) for 127 steps.
    """
    least = scales * np.float32(127 / 64)
    if weight.shape[1] % 2:
        return least
    left, right = weight[:, 0::2], weight[:, 1::2]
    sums = [np.maximum(sign * left, 0) + np.maximum(sign * right, 0) for sign in (1, -1)]
    peaks = np.maximum(*sums).reshape(len(weight), -1).max(axis=1)
    safe: NDArray[np.float32] = np.clip((peaks / 127).astype(np.float32), scales, least)
    return safe


def bias_safe_scales(
    weight: FloatArray,
    axis: int,
    scales: NDArray[np.float32],
    bias: FloatArray,
    given: tuple[float, IntegerType],
    sums: IntegerType,
) -> NDArray[np.float32]:
    """Widen weight scales until bias and products, in steps of input scale times weight scale, fit the kernel's sums.

    A filter of next to no weights has next to no scale, and its bias would saturate. With wider steps its weights
    become coarser, which is nothing beside such a bias. Half of the sums' range is for the bias, as in TensorFlow
    Lite's own quantiser (AdjustWeightsForBiasScale), the other half for the products.

    Args:
        scales: symmetric scales (channels,) of `weight` along `axis`.
        bias: (channels,), or (groups * channels,) where groups share the scales of a transposed convolution.
        given: scale and type of the input's integers.
        sums: what the kernel adds up in.
    """
    input_scale, kind = given
    others = tuple(i for i in range(weight.ndim) if i != axis)
    half, rounding = sums.high / 2, kind.levels * (weight.size // len(scales)) / 2
    products = kind.levels * np.abs(weight).sum(axis=others, dtype=np.float64) / (half - rounding)
    biases = np.abs(bias.astype(np.float64)).reshape(-1, len(scales)).max(axis=0) / input_scale / half
    safe: NDArray[np.float32] = np.maximum(scales, np.maximum(biases, products).astype(np.float32))
    return safe


def quantise(real: FloatArray, scale: FloatArray | float, zero_point: int, kind: IntegerType) -> NDArray[np.int32]:
    """Round half to even, shift by the zero point and saturate, as the runtimes' QUANTIZE operators do."""
    shifted = np.rint(np.asarray(real, dtype=np.float64) / scale) + zero_point
    quantised: NDArray[np.int32] = np.clip(shifted, kind.low, kind.high).astype(np.int32)
    return quantised


def dequantise(quantised: NDArray[np.integer], scale: FloatArray | float, zero_point: int) -> NDArray[np.float64]:
    """Return scale * (quantised - zero_point) in float64."""
    return (quantised.astype(np.float64) - zero_point) * scale
