"""What a file is going to be made from: a program, its plan, and the float program that both are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from qexport.errors import ConversionError
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs


@dataclass(frozen=True)
class Candidate:
    """A program with the plan for it.

    Attributes:
        program: what is written and what the file is verified against; passes change its weights.
        plan: made for `program`.
        reference: the float program as it came, which errors are measured against.
        densify: zeros of pruned weights may become something else: see `qexport.optimisation.sparsity`.
    """

    program: Program
    plan: QuantPlan
    reference: Program
    densify: bool = False

    def __post_init__(self) -> None:
        """Hold program and plan together.

        Raises:
            ConversionError: the plan is another program's.
        """
        if self.plan.program != self.program.fingerprint:
            raise ConversionError("the plan was made for another program", "plan again")

    @property
    def measurable(self) -> bool:
        """Whether errors can be measured: torch computes the graph, and it has raw outputs."""
        return self.program.graph.instrumentable and bool(self.program.raw.all)

    def with_parameters(self, changed: Mapping[str, Tensor]) -> Candidate:
        """Return the candidate with other weights or biases, by path, and the same plan for them."""
        program = self.program.with_parameters(changed)
        return replace(self, program=program, plan=replace(self.plan, program=program.fingerprint))


def changed_parameters(before: Program, after: Program) -> dict[str, Tensor]:
    """Weights and biases of `after`, by path in order, that are not those of `before`."""
    values = after.values.values()
    paths = sorted({path for value in values for path in (value.weight, value.bias) if path})
    pairs = ((path, after.graph.parameter(path), before.graph.parameter(path)) for path in paths)
    return {path: tensor for path, tensor, old in pairs if not torch.equal(tensor, old)}


def batches(program: Program, images: Sequence[Path]) -> Iterator[Tensor]:
    """Yield batches (n, channels, height, width) float32 one after the other; what cannot be read is left out."""
    for start in range(0, len(images), program.input.batch):
        yield from map(torch.from_numpy, sample_inputs(images[start : start + program.input.batch], program, 1))


def batch_count(program: Program, images: Sequence[Path]) -> int:
    """How many `batches` there are at most."""
    return -(-len(images) // program.input.batch)
