"""Check an artifact: is the plan in the file, and does the runtime compute what the plan says?"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.detections.faults import MIN_AGREEMENT, remark
from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.planning.weights import weight_array
from qexport.programs.program import Program
from qexport.simulation.simulate import Run, simulation
from qexport.verification.constants import check_biases
from qexport.verification.coverage import check_coverage
from qexport.verification.outcome import Verification
from qexport.verification.output_check import MIN_COSINE, check_outputs
from qexport.verification.plan_check import compare_plan, weight_names

MIN_NAMED = 0.85
"""Share of the planned tensors that a file must still name; converters merge a few into their neighbours."""


def verify(
    program: Program,
    plan: QuantPlan,
    stored: StoredGraph,
    runner: Runner,
    inputs: Sequence[NDArray[np.float32]],
    reference: Run | None = None,
    further: Iterable[NDArray[np.float32]] = (),
) -> Verification:
    """Compare an artifact with its plan and with the simulated program.

    Args:
        inputs: batches (n, channels, height, width) of real images.
        reference: the simulated program, where the caller has one that it learns more from.
        further: batches for where a fault shows in few detections, see `check_outputs`.

    Raises:
        VerificationError: a tensor differs from the plan, a planned tensor stayed float, or outputs disagree.
    """
    found = check_plan(program, plan, stored)
    check_biases(program, plan, stored)
    share = check_coverage(program, plan, stored)
    same = check_outputs(reference or simulation(program, plan), program, runner, inputs, plan.profile, further)
    planned = sum(not t.is_float for t in plan.tensors.values())
    checked = Verification(found, planned - found, None, same.batches * program.input.batch, stored.coverage)
    checked = replace(checked, planned_coverage=share)
    if same.agreement is None:
        return replace(checked, cosine=same.cosine, min_agreement=MIN_COSINE)
    return replace(
        checked,
        agreement=same.agreement.share,
        min_agreement=MIN_AGREEMENT,
        overlap=_rounded(same.agreement.overlap),
        shift=_rounded(same.agreement.shift),
        remark=remark(same.agreement),
    )


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 4)


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
