"""Check an artifact: is the plan in the file, and does the runtime compute what the plan says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.backends.protocol import Runner
from qexport.detections.agreement import MIN_AGREEMENT, Agreement, compare, compare_anchors, faults, findings, remark
from qexport.detections.decode import HeadLayout
from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.planning.weights import weight_array
from qexport.programs.program import Program, every_output
from qexport.simulation.simulate import Run, simulation
from qexport.verification.constants import check_biases
from qexport.verification.output_fidelity import comparisons
from qexport.verification.plan_check import compare_plan, weight_names

MIN_COSINE = 0.9
"""Cosine similarity that prototypes of masks, and outputs of unknown meaning, have at least; INT8 was seen to keep
more than 0.99 of prototypes."""
MIN_NAMED = 0.85
"""Share of the planned tensors that a file must still name; converters merge a few into their neighbours."""
COVERAGE_TOLERANCE = 0.005
SOMETHING_ELSE = "the runtime computes something else: report the model and the runtime's version"


@dataclass(frozen=True)
class Verification:
    """What was checked of one artifact.

    Attributes:
        tensors: planned tensors found in the file with dtype, scale and zero point as planned.
        unnamed: planned tensors that the converter merged into another kernel, so that no name is left to check.
        agreement: share of confident detections of either side, simulation and runtime, that the other has, too, 0..1;
            of a classifier the share of probability; None when neither finds anything on the sample images.
        images: images that the agreement is of.
        coverage: share of multiply-accumulates that the runtime has in integer kernels on this machine, 0..1.
        cosine: in place of the agreement where nobody knows what the outputs mean: least cosine similarity of an
            output, or mean of those of its columns.
        min_agreement: the least agreement that passes; of the cosine where there is one.
        planned_coverage: the share that plan and file have in integers, 0..1.
        overlap: mean overlap of the boxes that are in both, 0..1.
        shift: mean difference of their scores, the runtime's minus the simulation's.
        remark: what has to be said of the agreement, "" for nothing.
    """

    tensors: int
    unnamed: int
    agreement: float | None
    images: int
    coverage: float
    _: KW_ONLY
    cosine: float | None = None
    min_agreement: float | None = None
    planned_coverage: float | None = None
    overlap: float | None = None
    shift: float | None = None
    remark: str = ""

    @property
    def runs_less(self) -> bool:
        """Whether the runtime computes in float what plan and file have in integers."""
        return self.planned_coverage is not None and self.planned_coverage - self.coverage > COVERAGE_TOLERANCE


@dataclass(frozen=True)
class OutputCheck:
    """What became of comparing a runtime's outputs; one of the two.

    Attributes:
        agreement: of what was found.
        cosine: where nobody knows what the outputs mean; None where an output is zero everywhere.
    """

    agreement: Agreement | None
    cosine: float | None = None


def verify(
    program: Program,
    plan: QuantPlan,
    stored: StoredGraph,
    runner: Runner,
    inputs: Sequence[NDArray[np.float32]],
    reference: Run | None = None,
) -> Verification:
    """Compare an artifact with its plan and with the simulated program.

    Args:
        inputs: batches (n, channels, height, width) of real images.
        reference: the simulated program, where the caller has one that it learns more from.

    Raises:
        VerificationError: a tensor differs from the plan, a planned tensor stayed float, or outputs disagree.
    """
    found = check_plan(program, plan, stored)
    check_biases(program, plan, stored)
    share = check_coverage(program, plan, stored)
    same = check_outputs(reference or simulation(program, plan), program, runner, inputs, plan.profile)
    planned = sum(not t.is_float for t in plan.tensors.values())
    images, alike, coverage = len(inputs) * program.input.batch, same.agreement, stored.coverage
    if alike is None:
        return Verification(
            found,
            planned - found,
            None,
            images,
            coverage,
            cosine=same.cosine,
            min_agreement=MIN_COSINE,
            planned_coverage=share,
        )
    return Verification(
        tensors=found,
        unnamed=planned - found,
        agreement=alike.share,
        images=images,
        coverage=coverage,
        min_agreement=MIN_AGREEMENT,
        planned_coverage=share,
        overlap=_rounded(alike.overlap),
        shift=_rounded(alike.shift),
        remark=remark(alike),
    )


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)


def check_outputs(
    reference: Run, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]], runtime: str
) -> OutputCheck:
    """Compare what a runtime finds with what a graph does.

    Where nobody knows what the outputs mean their likeness is compared (`output_likeness`).

    Raises:
        VerificationError: there is no image to compare on, or the two compute something else, with what shows it.
    """
    if not inputs:
        raise VerificationError(f"{runtime}: no image to verify with", "add --data")
    if program.layout.head == "unknown":
        return OutputCheck(None, output_likeness(reference, program, runner, inputs, runtime))
    found = compared(reference, program, runner, inputs)
    wrong = faults(found, program.layout)
    if wrong:
        raise VerificationError(f"{runtime}: {'; '.join(wrong)}", SOMETHING_ELSE)
    return OutputCheck(found)


def check_coverage(program: Program, plan: QuantPlan, stored: StoredGraph) -> float:
    """Compare the integer share of multiply-accumulates that a file has with the planned one; return it, 0..1.

    How much of it the runtime really has integer kernels for is no fault of the file: see `Verification.runs_less`.

    Raises:
        VerificationError: more or fewer are in integers than planned.
    """
    total = sum(value.macs for value in program.values.values())
    planned = sum(value.macs for value in program.values.values() if value.name in plan.integer) / max(total, 1)
    if abs(stored.stored_coverage - planned) > COVERAGE_TOLERANCE:
        raise VerificationError(
            f"{plan.profile}: {stored.stored_coverage:.1%} of the arithmetic is in integers, {planned:.1%} was planned",
            "the converter did not obey the plan: report the model and the converter's version",
        )
    return planned


def check_plan(program: Program, plan: QuantPlan, stored: StoredGraph) -> int:
    """Compare every planned tensor that the file names; return how many were found.

    Raises:
        VerificationError: some differ, or too few are named at all.
    """
    same = compare_plan(plan, stored, weight_names(program), partial(weight_array, program))
    if same.wrong:
        raise VerificationError(
            f"{plan.profile}: the file differs from the plan in {same.summary}",
            "the converter did not obey the plan: report the model and the converter's version",
        )
    if len(same.found) < MIN_NAMED * same.planned:
        raise VerificationError(
            f"{plan.profile}: only {len(same.found)} planned tensors are in the file", "report the model"
        )
    return len(same.found)


def compared(reference: Run, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]]) -> Agreement:
    """Compare what a graph and a runtime find in every image.

    Raises:
        VerificationError: an output has another shape, or prototypes of masks differ.
    """
    found = Agreement()
    with torch.no_grad():
        for batch in inputs:
            expected = [output.numpy() for output in every_output(reference(torch.from_numpy(batch)))]
            actual = list(runner.outputs(batch))
            if program.raw.prototypes:
                check_prototypes(torch.from_numpy(expected[1]), torch.from_numpy(actual[1]))
            for one, other in zip(expected[0], actual[0], strict=True):
                found += compared_image(one, other, program.layout)
    return found


def compared_image(one: NDArray[np.floating], other: NDArray[np.floating], layout: HeadLayout) -> Agreement:
    """Compare one image of two decoded outputs: what was found, and where there are anchors those, too."""
    alike = compare(findings(one, layout), findings(other, layout), layout)
    return alike + compare_anchors(one, other, layout)


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
        for comparison, one, other in zip(found, expected, runner.outputs(batch), strict=True):
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
