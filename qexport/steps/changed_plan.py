"""A written file whose plan is to be another one: what it was made from, how it is judged, and how it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.mixed_precision import Replan
from qexport.optimisation.passes import HELD_OUT
from qexport.planning.plan import load_plan
from qexport.programs.program import Program
from qexport.steps.build import BuildRequest
from qexport.verification.result import ArtifactResult

COUNT = 12
"""Images that plans are compared on."""
KEPT_BEFORE = "float within the budget of mixed-precision"


def made_from(request: BuildRequest, item: ArtifactResult, program: Program) -> Candidate | None:
    """What a file was made from; None where nothing was planned.

    Args:
        program: the float program as it came.
    """
    if item.candidate is not None:
        return load_candidate(item.candidate, program)
    return Candidate(program, load_plan(request.plan_path), program) if item.plan else None


def judging_images(images: Sequence[Path]) -> tuple[Path, ...]:
    """Those that passes did not see, where they are enough to judge by."""
    return take(images[::HELD_OUT] if len(images) >= HELD_OUT * COUNT else images, count=COUNT)


def float_before(candidate: Candidate, replan: Replan) -> dict[str, str]:
    """Operations that something has put into float already, each with why."""
    planned, tensors = replan({}).integer, candidate.plan.tensors
    gone = sorted(planned - candidate.plan.integer)
    return {name: tensors[name].why if tensors[name].is_float else KEPT_BEFORE for name in gone}


def asked_with(request: BuildRequest, made: Candidate, file: Path) -> BuildRequest:
    """A request for what was planned once more; passes have had their turn.

    Args:
        file: where a program that is not as it came is saved to; it has to stay until that is built.
    """
    asked = replace(request, passes=(), candidate=None, plan=made.plan)
    if made.program is not made.reference:
        save_candidate(made, file)
        asked = replace(asked, candidate=file, plan=None)
    return asked
