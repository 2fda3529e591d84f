"""Outputs of unknown meaning as columns, which are compared one by one.

An output often holds pixels and scores side by side, and pixels, which are a thousand times larger, would hide
everything else in one figure. A column is what most likely is of one kind: a side of the box, a class, a channel.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def columns_of(output: Array) -> Array:
    """(rows, columns): of (n, c) and (n, c, h, w) the columns are c, of (n, a, b) the shorter one."""
    if output.ndim < 2:
        return output.reshape(-1, 1)
    axis = 1 if output.ndim != 3 or output.shape[1] < output.shape[2] else 2
    return np.moveaxis(output, axis, -1).reshape(-1, output.shape[axis])
