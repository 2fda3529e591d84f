"""The largest magnitude of every value over a few runs, where no calibration table has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.programs.program import Program, Region, observed_sources


def measured_peaks(program: Program, inputs: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Run the float program on batches in its own form.

    Returns:
        The largest magnitude of each value that the body computes or moves elements of, by name.
    """
    body = [value.name for value in program.values.values() if value.region is Region.BODY]
    names = dict.fromkeys(source for name in body for source in observed_sources(program, name))
    peaks: dict[str, float] = {}

    def see(name: str, tensor: Tensor) -> None:
        if tensor.is_floating_point() and tensor.numel():
            peaks[name] = max(float(tensor.abs().max()), peaks.get(name, 0.0))

    run = program.graph.watched(tuple(names), see)
    with torch.no_grad():
        for batch in inputs:
            run(torch.from_numpy(batch))
    return peaks
