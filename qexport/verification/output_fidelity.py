"""How like the float file's outputs an artifact's are, where nobody says what they mean: SQNR and cosine.

Each column is compared by itself, too: see `qexport.detections.columns`. Where the model sorts its rows (TopK), near
ties change places: the columns are then compared sorted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.detections.columns import Array, columns_of
from qexport.programs.program import Program
from qexport.verification.outcome import OutputFidelity


class Comparison:
    """Sums over images, for one output: memory does not grow with their number."""

    def __init__(self, name: str, in_order: bool = True) -> None:
        self.name, self.in_order, self.images, self.noise = name, in_order, 0, 0.0
        self.sums: Array = np.zeros((3, 1))  # of each column: reference squared, actual squared, their product

    def add(self, reference: Array, actual: Array, images: int) -> None:
        """Compare what was made of a batch.

        Args:
            images: in the batch; outputs need not say.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != actual.shape:
            raise ValueError(f"{self.name} has the shape {actual.shape}, not {reference.shape}")
        one, other = (columns_of(each.astype(np.float64)) for each in (reference, actual))
        if not self.in_order:
            one, other = np.sort(one, axis=0), np.sort(other, axis=0)
        found = np.stack([(one * one).sum(axis=0), (other * other).sum(axis=0), (one * other).sum(axis=0)])
        self.sums = found if not self.images else self.sums + found
        self.noise += float(((one - other) ** 2).sum())
        self.images += images

    @property
    def fidelity(self) -> OutputFidelity:
        """What was seen so far."""
        reference, actual, product = self.sums
        seen = (reference > 0) & (actual > 0)
        each = product[seen] / np.sqrt(reference[seen] * actual[seen])
        signal = float(reference.sum())
        return OutputFidelity(
            name=self.name,
            sqnr_db=10 * math.log10(signal / self.noise) if self.noise and signal else None,
            cosine=_ratio(float(product.sum()), math.sqrt(signal * float(actual.sum()))),
            columns=float(each.mean()) if len(each) else None,
            images=self.images,
        )


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def comparisons(program: Program) -> list[Comparison]:
    """One for each output of a program."""
    in_order = not any(value.operation.startswith("topk") for value in program.values.values())
    return [Comparison(name, in_order) for name in program.graph.outputs]


def compare_outputs(
    program: Program,
    reference: Runner,
    actual: Runner,
    batches: Iterable[NDArray[np.float32]],
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[OutputFidelity, ...]:
    """Run both on every batch and compare their outputs, in order."""
    found = comparisons(program)
    for batch in batches:
        for comparison, one, other in zip(found, reference(batch), actual(batch), strict=True):
            comparison.add(one, other, len(batch))
        on_batch()
    return tuple(comparison.fidelity for comparison in found)
