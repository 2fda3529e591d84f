"""Watch one value of the program while calibration images pass."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.calibration.statistics import BINS, MIN_LIMIT, Statistics, limit_for, widen

ALL_SAMPLES = 2**20
"""Elements of a value that go into its histogram over all images: enough for its 99.997th percentile."""
MIN_SAMPLES, MAX_SAMPLES = 2**13, 2**16
"""Bounds of those taken from one image; minimum and maximum see every element."""
EXTREME_STEPS = 2.0**32
"""To the unit, for extremes that are added up: sums of such numbers are exact, in whatever order, up to 2**20."""


def samples_each(images: int) -> int:
    """How many elements of a tensor go into its histogram for each of `images` images."""
    return min(max(ALL_SAMPLES // max(images, 1), MIN_SAMPLES), MAX_SAMPLES)


def sample_step(elements: int, samples: int) -> int:
    """Every how many elements one is taken: the same positions for each image, whose order must not matter."""
    step = -(-elements // samples)
    # An even step would visit the same columns, or channels, in every row of a feature map.
    return step + (step > 1 and step % 2 == 0)


class Observer:
    """Accumulate the `Statistics` of one value in constant memory; at most `samples` elements of each image."""

    def __init__(self, samples: int = MAX_SAMPLES) -> None:
        self._samples = samples
        self._minimum = np.inf
        self._maximum = -np.inf
        self._lowest = self._highest = 0.0
        self._images = 0
        self._limit = MIN_LIMIT
        self._counts = np.zeros(BINS, dtype=np.int64)

    def update(self, tensor: Tensor) -> None:
        """Add one image's tensor (any shape, float).

        Raises:
            ValueError: the tensor holds a value that is not finite.
        """
        elements = _in_memory_order(tensor)
        low, high = (float(extreme) for extreme in torch.aminmax(elements))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("not finite")
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)
        self._lowest += round(low * EXTREME_STEPS) / EXTREME_STEPS
        self._highest += round(high * EXTREME_STEPS) / EXTREME_STEPS
        limit = limit_for(max(abs(low), abs(high)))
        if self._images:
            limit = max(self._limit, limit)
            self._counts = widen(self._counts, self._limit, limit)
        self._limit = limit
        self._counts += histogram(elements[:: sample_step(elements.numel(), self._samples)], limit)
        self._images += 1

    def statistics(self) -> Statistics:
        """Return what was seen so far; at least one image must have passed."""
        if not self._images:
            raise ValueError("no image was observed")
        return Statistics(
            minimum=self._minimum,
            maximum=self._maximum,
            limit=self._limit,
            counts=self._counts.copy(),
            lowest=self._lowest,
            highest=self._highest,
            images=self._images,
        )


def _in_memory_order(tensor: Tensor) -> Tensor:
    """All elements in one dimension, without moving them where the channels are innermost."""
    last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return (tensor.permute(0, 2, 3, 1) if last else tensor).reshape(-1)


def histogram(values: Tensor, limit: float) -> NDArray[np.int64]:
    """Count `values` (1-D float32, none beyond `limit`) into BINS equal bins over [-limit, limit].

    Multiplying by a power of two is exact, so an element near an edge always falls on the same side of it and
    widening loses nothing; `torch.histc` subtracts the lower limit first and does not promise that.

    Returns:
        int64 of shape (BINS,).
    """
    counted: NDArray[np.int64] = torch.bincount(bins_of(values, limit), minlength=BINS).numpy()
    return counted


def bins_of(values: Tensor, limit: float) -> Tensor:
    """The number of each element's bin (int64), as `histogram` counts them."""
    scaled = (values * (BINS / (2 * limit))).floor_().add_(BINS // 2).clamp_(0, BINS - 1)
    return scaled.to(torch.int64)
