"""Does a runtime compute what the program does? By what both find in real images, or by how like their outputs are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.backends.protocol import Runner
from qexport.detections.agreement import Agreement, compare_decoded
from qexport.detections.faults import faults
from qexport.errors import VerificationError
from qexport.programs.program import Program, every_output
from qexport.simulation.simulate import Run
from qexport.verification.output_fidelity import comparisons

MIN_COSINE = 0.9
"""Cosine similarity that prototypes of masks, and outputs of unknown meaning, have at least; INT8 was seen to keep
more than 0.99 of prototypes."""
ENOUGH = 20
"""Confident detections of both sides, or images of a classifier, that faults are believed of: of fewer, a score of an
uncertain object that two copies share is all that there is."""
MOST_FURTHER = 32
"""Batches that are run where there are fewer than `ENOUGH`."""
SOMETHING_ELSE = "the runtime computes something else: report the model and the runtime's version"


@dataclass(frozen=True)
class OutputCheck:
    """What became of comparing a runtime's outputs; one of the first two.

    Attributes:
        batches: how many were run.
        agreement: of what was found.
        cosine: least output similarity of a model of unknown task; None where an output is zero everywhere.
    """

    batches: int
    agreement: Agreement | None
    cosine: float | None = None


def check_outputs(
    reference: Run,
    program: Program,
    runner: Runner,
    inputs: Sequence[NDArray[np.float32]],
    runtime: str,
    further: Iterable[NDArray[np.float32]] = (),
) -> OutputCheck:
    """Compare what a runtime finds with what a graph does.

    If the task is unknown, compares output similarity instead (`output_likeness`).

    Args:
        further: batches that are run, too, where the first ones show a fault in few detections.

    Raises:
        VerificationError: there is no image to compare on, or the two compute something else, with what shows it.
    """
    if not inputs:
        raise VerificationError(f"{runtime}: no image to verify with", "add --data")
    if program.layout.head == "unknown":
        return OutputCheck(len(inputs), None, output_likeness(reference, program, runner, inputs, runtime))
    found, count = compared(reference, program, runner, inputs), len(inputs)
    if faults(found, program.layout) and found.evidence < ENOUGH:
        for batch in islice(further, MOST_FURTHER):
            found, count = found + compared(reference, program, runner, [batch]), count + 1
            if found.evidence >= ENOUGH:
                break
    if wrong := faults(found, program.layout):
        raise VerificationError(f"{runtime}: {'; '.join(wrong)}", SOMETHING_ELSE)
    return OutputCheck(count, found)


def compared(reference: Run, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]]) -> Agreement:
    """Compare what a graph and a runtime find in every image.

    Raises:
        VerificationError: an output has another shape, or prototypes of masks differ.
    """
    found = Agreement()
    with torch.no_grad():
        for batch in inputs:
            expected = [output.numpy() for output in every_output(reference(torch.from_numpy(batch)))]
            actual = list(runner(batch))
            if program.raw.prototypes:
                check_prototypes(torch.from_numpy(expected[1]), torch.from_numpy(actual[1]))
            for one, other in zip(expected[0], actual[0], strict=True):
                found += compare_decoded(one, other, program.layout)
    return found


def output_likeness(
    reference: Run, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]], runtime: str
) -> float | None:
    """Return the least cosine similarity of an output, as a whole or in the mean of its columns.

    Raises:
        VerificationError: it is less than `MIN_COSINE`.
    """
    found = comparisons(program)
    for batch in inputs:
        expected = every_output(reference(torch.from_numpy(batch)))
        for comparison, one, other in zip(found, expected, runner(batch), strict=True):
            comparison.add(one.numpy(), other, len(batch))
    least: float | None = None
    for each in (comparison.fidelity for comparison in found):
        for cosine in (each.cosine, each.columns):
            if cosine is not None and not cosine >= MIN_COSINE:
                raise VerificationError(
                    f"{runtime}: output {each.name} is only {cosine:.2f} like the program's (cosine)",
                    SOMETHING_ELSE,
                )
            least = cosine if least is None or cosine is None else min(least, cosine)
    return least


def check_prototypes(expected: Tensor, actual: Tensor) -> None:
    """Raise `VerificationError` where a runtime's prototypes of masks point elsewhere than the program's."""
    cosine = float(torch.nn.functional.cosine_similarity(expected.flatten(), actual.flatten(), dim=0))
    if not cosine >= MIN_COSINE:
        raise VerificationError(
            f"the prototypes of masks are {cosine:.2f} like the program's, {MIN_COSINE} is the least",
            SOMETHING_ELSE,
        )
