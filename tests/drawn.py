"""A runner without a model, which other processes import: detections are drawn by the bytes of each image."""

from __future__ import annotations

import os
import signal

import numpy as np
from numpy.typing import NDArray

ROWS, CLASSES, COEFFICIENTS = 60, 6, 32


class DrawnRunner:
    """Finds as many boxes in every image, the same ones in the same image.

    Args:
        masks: with prototypes of masks.
        moved: pixels that all of them are further to the right.
    """

    def __init__(self, masks: bool = False, moved: float = 0.0) -> None:
        self.masks, self.moved, self.batches = masks, moved, 0

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `qexport.backends.protocol.Runner`."""
        self.batches += 1
        height, width = batch.shape[2:]
        draws = [np.random.default_rng(int(1e6 * float(image.mean()))) for image in batch]
        rows = np.stack([self._rows(each, height, width) for each in draws])
        if not self.masks:
            return (rows,)
        grids = [each.normal(size=(COEFFICIENTS, height // 4, width // 4)) for each in draws]
        return rows, np.stack(grids).astype(np.float32)

    def _rows(self, draw: np.random.Generator, height: int, width: int) -> NDArray[np.float32]:
        corners = draw.uniform(0, 0.6, (ROWS, 2)) * (width, height) + (self.moved, 0)
        boxes = np.concatenate((corners, corners + draw.uniform(0.1, 0.4, (ROWS, 2)) * (width, height)), axis=1)
        scores = np.sort(draw.integers(1, 40, ROWS))[::-1] / 40  # many are alike, as those of integers are
        parts = [boxes, scores[:, None], draw.integers(0, CLASSES, (ROWS, 1))]
        extras = [draw.normal(size=(ROWS, COEFFICIENTS))] if self.masks else []
        return np.concatenate((*parts, *extras), axis=1).astype(np.float32)


class DyingRunner(DrawnRunner):
    """One that kills its process in its fourth batch."""

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """See `qexport.backends.protocol.Runner`."""
        if self.batches == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
