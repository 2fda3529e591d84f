"""Zeros of pruned weights, which kernels and compression make use of: nothing that changes weights gives them up."""

from __future__ import annotations

from torch import Tensor

from qexport.optimisation.candidate import Candidate
from qexport.programs.program import Program

MIN_SPARSITY = 0.3
"""Share of a weight's numbers that are exactly 0 from which it counts as pruned: of a dense one next to none are. Of
four numbers hardware skips two, which is half (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021)."""


def held_zeros(candidate: Candidate, path: str) -> Tensor | None:
    """Where a weight has to stay 0, bool of its shape: where a pruned weight of the float program is; None for nowhere.

    Args:
        path: of the weight in the candidate's programs.
    """
    if candidate.densify:
        return None
    zeros: Tensor = candidate.reference.graph.parameter(path) == 0
    return zeros if float(zeros.float().mean()) >= MIN_SPARSITY else None


def filled(before: Candidate, after: Candidate) -> str:
    """Path of a weight that has lost zeros which it has to keep, "" for none."""
    for path in weights_of(after.program):
        zeros = held_zeros(after, path)
        one, other = (each.program.graph.parameter(path) for each in (before, after))
        if zeros is not None and bool(other[zeros & (one == 0)].any()):
            return path
    return ""


def weights_of(program: Program) -> tuple[str, ...]:
    """Paths of the layers' weights, each once."""
    return tuple(dict.fromkeys(value.weight for value in program.values.values() if value.weight))
