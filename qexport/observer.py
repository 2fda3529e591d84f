"""Watch one value of the program while calibration images pass."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.statistics import BINS, LEAST_LIMIT, Statistics, limit_for, widen

MOST_SAMPLES = 32768
"""Elements of a tensor that go into the histogram for each image; minimum and maximum see them all."""


class Observer:
    """Accumulate the `Statistics` of one value in constant memory."""

    def __init__(self) -> None:
        self._minimum = np.inf
        self._maximum = -np.inf
        self._seen = False
        self._limit = LEAST_LIMIT
        self._counts = np.zeros(BINS, dtype=np.int64)

    def update(self, tensor: Tensor) -> None:
        """Add one image's tensor (any shape, float).

        Raises:
            ValueError: the tensor holds a value that is not finite.
        """
        low, high = (float(extreme) for extreme in torch.aminmax(tensor))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("not finite")
        self._minimum, self._maximum = min(self._minimum, low), max(self._maximum, high)
        limit = limit_for(max(abs(low), abs(high)))
        if self._seen:
            limit = max(self._limit, limit)
            self._counts = widen(self._counts, self._limit, limit)
        self._limit = limit
        self._counts += histogram(self._sample(tensor), limit)
        self._seen = True

    def _sample(self, tensor: Tensor) -> Tensor:
        """Every k-th element, the same positions for each image: the order of images must not matter."""
        flat = tensor.reshape(-1)
        step = -(-flat.numel() // MOST_SAMPLES)
        # An even step would visit the same columns in every row of a feature map.
        step += step > 1 and step % 2 == 0
        return flat[::step]

    def statistics(self) -> Statistics:
        """Return what was seen so far; at least one image must have passed."""
        if not self._seen:
            raise ValueError("no image was observed")
        return Statistics(
            minimum=self._minimum,
            maximum=self._maximum,
            limit=self._limit,
            counts=self._counts.copy(),
        )


def histogram(values: Tensor, limit: float) -> NDArray[np.int64]:
    """Count `values` (1-D float32, none beyond `limit`) into BINS equal bins over [-limit, limit].

    Multiplying by a power of two is exact, so an element near an edge always falls on the same side of it and
    widening loses nothing; `torch.histc` subtracts the lower limit first and does not promise that.

    Returns:
        int64 of shape (BINS,).
    """
    scaled = torch.floor(values * (BINS / (2 * limit))).to(torch.int64) + BINS // 2
    counted: NDArray[np.int64] = torch.bincount(scaled.clamp_(0, BINS - 1), minlength=BINS).numpy()
    return counted
