"""Is as much of the arithmetic in integers as was planned?"""

from __future__ import annotations

from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program
from qexport.verification.tolerances import COVERAGE_TOLERANCE


def covers_the_same(one: float, other: float) -> bool:
    """Whether two shares of multiply-accumulates, 0..1, differ by what nobody planned at most."""
    return abs(one - other) <= COVERAGE_TOLERANCE


def check_coverage(program: Program, plan: QuantPlan, stored: StoredGraph) -> float:
    """Compare the integer share of multiply-accumulates that a file has with the planned one; return it, 0..1.

    How much of it the runtime really has integer kernels for is no fault of the file: see
    `qexport.verification.outcome.Verification.runs_less`.

    Raises:
        VerificationError: more or fewer are in integers than planned.
    """
    total = sum(value.macs for value in program.values.values())
    planned = sum(value.macs for value in program.values.values() if value.name in plan.integer) / max(total, 1)
    if not covers_the_same(stored.stored_coverage, planned):
        raise VerificationError(
            f"{plan.profile}: {stored.stored_coverage:.1%} of the arithmetic is in integers, {planned:.1%} was planned",
            "the converter did not obey the plan: report the model and the converter's version",
        )
    return planned
