"""A stack of convolutions without a model around it: what a runtime's arithmetic is worth is timed on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

KERNEL = 3
ACTIVATION_SCALE = 4 / 255
"""Activations lie in 0..4: behind each ReLU they have the variance of those before (He et al., 2015)."""
SPREAD = 40
"""Standard deviation of the integers of a weight: three of them fit into a byte."""


@dataclass(frozen=True)
class ConvolutionStack:
    """Convolutions of 3 by 3, each with a ReLU behind it, as many channels out as in: where a detector's time goes.

    Attributes:
        channels, size, depth: of every activation, its height and width, how many convolutions.
    """

    channels: int = 128
    size: int = 40
    depth: int = 3

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return self.depth * (self.channels * KERNEL * self.size) ** 2

    @property
    def weight_scale(self) -> float:
        """Of every output channel; zero points are 0."""
        return float(np.sqrt(2 / (self.channels * KERNEL**2)) / SPREAD)

    def weights(self) -> list[NDArray[np.int8]]:
        """Integers of each convolution, (out, in, height, width), from a seed."""
        generator = np.random.default_rng(0)
        shape = self.channels, self.channels, KERNEL, KERNEL
        drawn = (generator.standard_normal(shape) * SPREAD for _ in range(self.depth))
        return [np.clip(each, -127, 127).astype(np.int8) for each in drawn]

    def batch(self) -> NDArray[np.float32]:
        """What goes in, (1, channels, height, width) in 0..1, from a seed."""
        shape = 1, self.channels, self.size, self.size
        return np.random.default_rng(1).random(shape, dtype=np.float32)
