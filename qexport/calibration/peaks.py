"""The largest magnitude of every value over a few runs, where no calibration table has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Interpreter, Node

from qexport.programs.graph import FileGraph
from qexport.programs.program import MOVES_DATA, Program


class _Watching(Interpreter):
    """Runs a captured graph node by node; values are freed as soon as nothing reads them."""

    def __init__(self, graph: Any) -> None:
        super().__init__(graph)
        self.peaks: dict[str, float] = {}

    def run_node(self, n: Node) -> Any:
        """Run one node and note how far its result reaches."""
        result = super().run_node(n)
        if isinstance(result, Tensor):
            _note(self.peaks, n.name, result)
        return result


def measured_peaks(program: Program, inputs: Sequence[NDArray[np.float32]]) -> dict[str, float]:
    """Run the float program on batches in its own form and return the largest magnitude of each value, by name."""
    graph, peaks = program.graph, dict[str, float]()
    with torch.no_grad():
        for batch in map(torch.from_numpy, inputs):
            if isinstance(graph, FileGraph):
                body = (value for value in program.values.values() if value.region == "body")
                watched = [value.name for value in body if value.operation not in MOVES_DATA]
                for name, tensor in graph.computed(batch, watched):
                    _note(peaks, name, tensor)
                continue
            watching = _Watching(graph)
            watching.run(batch)
            for name, peak in watching.peaks.items():
                peaks[name] = max(peak, peaks.get(name, 0.0))
    return peaks


def _note(peaks: dict[str, float], name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel():
        peaks[name] = max(float(tensor.abs().max()), peaks.get(name, 0.0))
