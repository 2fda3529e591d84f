"""The pass "fitted-weights"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qexport import Candidate, Progress

FACTORS = (1.0, 0.98, 0.985, 0.99, 0.995, 1.005, 1.01, 1.015, 1.02)
"""Of a scale, the plan's own first: in other steps other weights happen to be near to integers."""


class FittedWeights:
    """Gives every output channel the scale that rounds its weights with the least squared error."""

    name = "fitted-weights"

    def requires(self, candidate: Candidate) -> str:
        """Archives: other formats may store scales in FP16, or integer biases that other scales would overflow."""
        return "" if candidate.plan.profile == "archive" else "it is for archives"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress) -> Candidate:
        """Choose scales of weights; images would be those that the result is not judged by."""
        tensors = dict(candidate.plan.tensors)
        for path, tensor in candidate.plan.tensors.items():
            if tensor.axis is not None and tensor.rule == "own":
                weight = np.moveaxis(candidate.program.graph.parameter(path).numpy(), tensor.axis, 0)
                rows = weight.reshape(len(weight), -1)
                scales = least_error(rows, np.array(tensor.scale, np.float32), tensor.kind.high)
                tensors[path] = replace(tensor, scale=tuple(map(float, scales)), why=f"{tensor.why}, {self.name}")
        return replace(candidate, plan=replace(candidate.plan, tensors=tensors))

    def ensures(self, before: Candidate, after: Candidate) -> str:
        """Weights themselves are the same."""
        return "" if before.program is after.program else "the program has changed"


def least_error(rows: NDArray[np.float32], scales: NDArray[np.float32], high: int) -> NDArray[np.float32]:
    """Of each row, (channels, weights), the scale of the least squared error of rounding to -high..high."""
    tried = np.stack([scales * np.float32(factor) for factor in FACTORS])
    steps = np.clip(np.rint(rows / tried[..., None]), -high, high)
    errors = ((rows - steps * tried[..., None]) ** 2).sum(axis=-1)
    best: NDArray[np.float32] = np.take_along_axis(tried, errors.argmin(axis=0)[None], axis=0)[0]
    return best
