"""Keep in float what an artifact loses too much by: plan, build and score until the loss is small enough.

The search steers by the distance on held-out calibration images, which is cheap and moves little; what decides is the
file's own loss on the evaluation images.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qexport.clock import Clock
from qexport.data.choice import take
from qexport.data.selection import RunImages
from qexport.errors import QexportError
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.measure import Figures, measure
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.distance import HeldOut, hold_out
from qexport.optimisation.mixed_precision import MAX_SETTINGS, Budget, repair
from qexport.optimisation.passes import HELD_OUT
from qexport.optimisation.repair_record import CurvePoint, RepairRecord
from qexport.optimisation.sensitivity import NOT_MEASURABLE, sensitivity
from qexport.optimisation.sensitivity_record import Sensitivity
from qexport.planning.plan import QuantPlan, load_plan
from qexport.programs.program import Program
from qexport.progress import Progress
from qexport.steps.build import BuildRequest
from qexport.steps.plan import plan
from qexport.verification.result import ArtifactResult

MAX_ROUNDS = 4
"""Files that are built and scored for one that loses too much."""
COUNT = 12
"""Images that plans are compared on."""
MARGIN = 0.9
"""The distance is aimed at with some room: the loss is not quite in proportion to it."""


@dataclass(frozen=True)
class Scoring:
    """How files are scored.

    Attributes:
        reference: the FP32 file of the same format.
        latency: whether latency is measured, too.
    """

    program: Program
    task: str
    images: RunImages
    reference: ArtifactResult
    threads: int
    latency: bool
    clock: Clock


@dataclass(frozen=True)
class _Round:
    """A file that was built and scored: what it was asked for as, and what is known of it."""

    request: BuildRequest
    result: ArtifactResult
    drop: float
    latency: float | None
    record: RepairRecord | None = None


def repaired(
    request: BuildRequest,
    first: ArtifactResult,
    scoring: Scoring,
    max_drop: float,
    build: Callable[[BuildRequest], ArtifactResult],
    progress: Progress,
) -> ArtifactResult:
    """Return the artifact, or one in its place that keeps as little in float as meets the budget; or the nearest.

    Args:
        request: what `first` was built by.
        max_drop: percent of FP32's accuracy that may be lost.
        build: builds a request in its place.

    Raises:
        QexportError: a file could not be built; the first one is in its place.
    """
    exact, figures = _scored(scoring, first, None)
    drop = lost_percent(figures.accuracy, exact)
    if drop is None:
        return _noted(first, "its loss could not be measured")
    if drop <= max_drop:
        return first
    candidate = _candidate(request, first, scoring.program)
    if candidate is None or not candidate.measurable:
        return _noted(first, NOT_MEASURABLE)
    rounds = [_Round(request, first, drop, figures.latency.p50 if figures.latency else None)]
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        try:
            search = _Search(candidate, request, scoring, exact, max_drop, build, progress, Path(folder), rounds)
            _until_met(search)
            best = min(rounds, key=lambda each: each.drop)
            if best is not rounds[-1]:
                best = replace(best, result=build(best.request))
        except QexportError:
            build(request)
            raise
    return replace(best.result, passes=first.passes, repair=_record(rounds, best, max_drop))


def lost_percent(accuracy: Accuracy | None, exact: Accuracy | None) -> float | None:
    """Percent of FP32's accuracy that is lost, as `--max-drop` means it; of fidelity where there are no labels."""
    if accuracy is None:
        return None
    known = [each.map for each in (accuracy, exact) if each is not None and _is_number(each.map)]
    if len(known) == 2:
        return 100 * (1 - known[0] / known[1]) if known[1] else None
    return 100 * (1 - accuracy.fidelity) if _is_number(accuracy.fidelity) and accuracy.fidelity is not None else None


def _is_number(figure: float | None) -> bool:
    return figure is not None and not math.isnan(figure)


@dataclass(frozen=True)
class _Search:
    """What rounds share."""

    candidate: Candidate
    request: BuildRequest
    scoring: Scoring
    exact: Accuracy | None
    max_drop: float
    build: Callable[[BuildRequest], ArtifactResult]
    progress: Progress
    folder: Path
    rounds: list[_Round] = field(default_factory=list)

    def replanned(self, floats: Mapping[str, str]) -> QuantPlan:
        """Plan the candidate's program once more."""
        asked, program = self.request, self.candidate.program
        made = plan(program, asked.table, asked.target, ranges=asked.ranges, keep_float=asked.keep_float, floats=floats)
        assert made is not None
        return made


def _until_met(search: _Search) -> None:
    """Build and score with more and more in float; a round that fails asks the next for twice the share."""
    progress, images = search.progress, search.request.images or search.request.samples
    with progress.step("measuring the float program") as advance:
        held_out = hold_out(search.candidate.reference, _chosen(images), advance)
    found = sensitivity(search.candidate, held_out, progress, MAX_SETTINGS)
    aim, least = MARGIN * found.whole * search.max_drop / search.rounds[0].drop, 0.0
    for _ in range(MAX_ROUNDS):
        made = _next(search, held_out, found, Budget(aim, least, purpose=f"to meet --max-drop {search.max_drop:g}"))
        search.rounds.append(made)
        record = made.record
        if made.drop <= search.max_drop or record is None or not record.met:
            return
        aim = min(aim, MARGIN * record.after * search.max_drop / made.drop)
        least = min(2 * record.float_macs, Budget.most)


def _next(search: _Search, held_out: HeldOut, found: Sensitivity, budget: Budget) -> _Round:
    made, record = repair(search.candidate, search.replanned, held_out, budget, search.progress, found)
    asked = replace(search.request, passes=(), candidate=None, plan=made.plan)
    if search.candidate.program is not search.candidate.reference:
        path = search.folder / f"round_{len(search.rounds)}.npz"
        save_candidate(made, path)
        asked = replace(asked, candidate=path, plan=None)
    result = search.build(asked)
    _, figures = _scored(search.scoring, result, search.exact)
    drop = lost_percent(figures.accuracy, search.exact)
    latency = figures.latency.p50 if figures.latency else None
    return _Round(asked, result, math.inf if drop is None else drop, latency, record)


def _chosen(images: Sequence[Path]) -> tuple[Path, ...]:
    """Those that passes did not see, where they are enough to judge by."""
    return take(images[::HELD_OUT] if len(images) >= HELD_OUT * COUNT else images, count=COUNT)


def _scored(scoring: Scoring, item: ArtifactResult, exact: Accuracy | None) -> tuple[Accuracy | None, Figures]:
    """Score a file; the FP32 file, too, unless it is scored already and labels say what both are worth."""
    labelled = exact is not None and _is_number(exact.map)
    together = (item,) if labelled else (scoring.reference, item)
    figures = measure(
        scoring.program,
        scoring.task,
        scoring.images,
        together,
        threads=scoring.threads,
        accuracy=True,
        latency=scoring.latency,
        clock=scoring.clock,
    )
    reference = figures.get(scoring.reference.artifact.path, Figures()).accuracy
    return exact if labelled else reference, figures[item.artifact.path]


def _candidate(request: BuildRequest, item: ArtifactResult, program: Program) -> Candidate | None:
    """What a file was made from."""
    if item.candidate is not None:
        return load_candidate(item.candidate, program)
    return Candidate(program, load_plan(request.plan_path), program) if item.plan else None


def _noted(item: ArtifactResult, why: str) -> ArtifactResult:
    return replace(item, warnings=(*item.warnings, f"not repaired: {why}"))


def _record(rounds: Sequence[_Round], best: _Round, max_drop: float) -> RepairRecord | None:
    """What the rounds came to: the best one's figures, and the plans of all."""
    known = [each.record for each in rounds if each.record]
    if not known:
        return None
    start, made = known[0], best.record
    points: dict[tuple[float, float], CurvePoint] = {}
    for record in known:
        points.update({(each.float_macs, each.distance): replace(each, chosen=False) for each in record.curve})
    for each in rounds:
        own = each.record
        at = (own.float_macs, own.after) if own else (start.float_macs_before, start.before)
        chosen = each.request is best.request
        points[at] = CurvePoint(
            float_macs=at[0], distance=at[1], drop=round(each.drop, 4), latency_ms=each.latency, chosen=chosen
        )
    met, drop = best.drop <= max_drop, f"{best.drop:.2f} % of FP32's accuracy is lost"
    reason = f"{drop}, {'at most' if met else 'over'} {max_drop:g} %; it was {rounds[0].drop:.2f} %"
    told = made or replace(start, after=start.before, float_macs=start.float_macs_before, floats={}, noise=None)
    return replace(told, met=met, reason=reason, curve=tuple(points[at] for at in sorted(points)))
