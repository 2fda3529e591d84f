"""Fidelity of plans before any file is written: candidates are simulated in torch and scored as artifacts are."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule

from qexport.data.selection import RunImages
from qexport.measurement.accuracy import evaluate_shards
from qexport.measurement.measure import evaluation_shards
from qexport.optimisation.candidate import Candidate
from qexport.programs.captured_graph import shared_copy
from qexport.progress import Progress
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert


class SimulatedRunner:
    """A graph in the place of a file."""

    def __init__(self, graph: GraphModule) -> None:
        self._graph = graph

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch; see `qexport.backends.protocol.Runner`."""
        with torch.no_grad():
            made = self._graph(torch.from_numpy(batch))
        return tuple(each.numpy() for each in (made if isinstance(made, tuple | list) else (made,)))


def simulated_fidelity(
    candidates: Sequence[Candidate], task: str, images: RunImages, progress: Progress
) -> tuple[float | None, ...]:
    """Return each candidate's mAP50-95 against the detections of the float program that all are of, 0..1.

    Args:
        images: with `evaluation_data`.

    Raises:
        InputError: none of the images can be scored.
    """
    reference = candidates[0].reference
    graphs = [shared_copy(reference), *(insert(each.program, each.plan, Fused) for each in candidates)]
    found, layout, batch = list[float | None](), reference.layout, reference.input.batch
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as scratch:
        shards = evaluation_shards(reference, task, images, Path(scratch) / "data")
        count = sum(len(each.links) for each in shards)
        with progress.step("Scoring what was simulated", len(graphs) * count) as advance:
            detections = None
            for runner in map(SimulatedRunner, graphs):
                load = partial(_same, runner)
                scored = evaluate_shards(
                    load, layout, task, shards, batch=batch, reference=detections, on_image=advance
                )
                detections = detections or scored.detections
                found.append(scored.fidelity)
    return tuple(found[1:])


def _same(runner: SimulatedRunner) -> SimulatedRunner:
    return runner
