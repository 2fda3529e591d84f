"""What every epoch is judged by, on images that are held out from training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import HeldOut, distance, raw_outputs
from qexport.programs.captured_graph import on_device
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert
from qexport.training.images import Batch, pieces
from qexport.training.losses import Labelled, by_labels
from qexport.training.record import Judged


@dataclass(frozen=True)
class Judge:
    """Images that are held out, as they are, and with labels where training has labels.

    Attributes:
        held_out: for the distance.
        batches: with targets, the same for every epoch; none without labels.
        labelled: the loss that they are judged by.
    """

    held_out: HeldOut
    batches: Sequence[Batch] = ()
    labelled: Labelled | None = None

    def judged(self, candidate: Candidate, device: str = "cpu") -> Judged:
        """Run the simulated program over all of them on a device of PyTorch."""
        return Judged(distance(candidate, self.held_out, device=device).mean, self._loss(candidate, device))

    def _loss(self, candidate: Candidate, device: str) -> float | None:
        if not self.batches or self.labelled is None:
            return None
        program = candidate.program
        inserted = insert(program, candidate.plan, Fused, on_device(program, device))
        graph, sums, count = raw_outputs(program, inserted).to(device), 0.0, 0
        with torch.no_grad():
            for batch in self.batches:
                for piece in pieces(batch, program.input.batch):
                    raw = graph(piece.pixels.to(device))
                    sums += float(by_labels(self.labelled, program, raw, piece).sum())
                    count += len(piece.pixels)
        return sums / count
