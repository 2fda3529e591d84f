"""Keep in float what an artifact loses too much by: plan, build and score until the loss is small enough.

The search steers by the distance on held-out calibration images, which is cheap and moves little; what decides is the
file's own loss on the evaluation images.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qexport.clock import Clock
from qexport.data.choice import take
from qexport.data.selection import RunImages
from qexport.errors import ConversionError, QexportError, VerificationError
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.measure import measure
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.distance import hold_out
from qexport.optimisation.mixed_precision import MAX_SETTINGS, Budget, repair
from qexport.optimisation.passes import HELD_OUT
from qexport.optimisation.repair_record import CurvePoint, RepairRecord
from qexport.optimisation.sensitivity import NOT_MEASURABLE, sensitivity
from qexport.planning.learned_ranges import learned_ranges
from qexport.planning.plan import QuantPlan, load_plan
from qexport.programs.program import Program
from qexport.progress import Progress
from qexport.steps.build import BuildRequest
from qexport.steps.plan import plan
from qexport.verification.result import ArtifactResult

SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""Most of the multiply-accumulates that each round may keep in float: a file that loses too much is followed by one
that may have twice as much."""
COUNT = 12
"""Images that plans are compared on."""
MARGIN = 0.9
"""The distance is aimed at with some room: the loss is not quite in proportion to it."""


@dataclass(frozen=True)
class Score:
    """What a file loses, in percent of FP32's accuracy, and its median latency; None where it was not measured."""

    drop: float | None
    latency_ms: float | None = None


@dataclass(frozen=True)
class _Round:
    """A file that was built and scored, what it was asked for as, and what was kept in float for it."""

    request: BuildRequest
    result: ArtifactResult
    drop: float
    latency_ms: float | None
    record: RepairRecord | None = None


def repaired(
    request: BuildRequest,
    first: ArtifactResult,
    program: Program,
    max_drop: float,
    score: Callable[[ArtifactResult], Score],
    build: Callable[[BuildRequest], ArtifactResult],
    progress: Progress,
) -> ArtifactResult:
    """Return the artifact, or one in its place that keeps as little in float as meets the budget; or the nearest.

    Args:
        request: what `first` was built by, with images to compare plans on.
        program: the float program as it came.
        max_drop: percent of FP32's accuracy that may be lost.
        build: builds a request in the place of what was there.

    Raises:
        QexportError: images cannot be read, or the runtime is gone; the first file is in its place.
    """
    scored = score(first)
    if scored.drop is None:
        return _noted(first, "its loss could not be measured")
    if scored.drop <= max_drop:
        return first
    candidate = _candidate(request, first, program)
    if candidate is None or not candidate.measurable:
        return _noted(first, NOT_MEASURABLE)
    rounds = [_Round(request, first, scored.drop, scored.latency_ms)]
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        try:
            failed = _until_met(_Search(candidate, request, max_drop, score, build, progress, Path(folder)), rounds)
            best = min(rounds, key=lambda each: each.drop)
            if failed or best is not rounds[-1]:
                best = replace(best, result=build(best.request))
        except QexportError:
            build(request)
            raise
    notes = (f"a plan with more in float was not written: {error}" for error in failed)
    told = replace(best.result, warnings=(*best.result.warnings, *notes))
    return replace(told, passes=first.passes, repair=_record(rounds, best, max_drop))


@dataclass(frozen=True)
class _Search:
    """What rounds share."""

    candidate: Candidate
    request: BuildRequest
    max_drop: float
    score: Callable[[ArtifactResult], Score]
    build: Callable[[BuildRequest], ArtifactResult]
    progress: Progress
    folder: Path

    def replanned(self, floats: Mapping[str, str]) -> QuantPlan:
        """Plan the candidate's program once more."""
        asked, program = self.request, self.candidate.program
        learned = learned_ranges(self.candidate.plan, "learned in training") if asked.learned else None
        made = plan(
            program,
            asked.table,
            asked.target,
            ranges=asked.ranges,
            keep_float=asked.keep_float,
            floats=floats,
            learned=learned,
        )
        assert made is not None
        return made


def _until_met(search: _Search, rounds: list[_Round]) -> list[QexportError]:
    """Build and score with more and more in float; return why single files could not be built."""
    progress, images = search.progress, search.request.images or search.request.samples
    with progress.step("measuring the float program") as advance:
        held_out = hold_out(search.candidate.reference, _chosen(images), advance)
    found = sensitivity(search.candidate, held_out, progress, MAX_SETTINGS)
    aim, purpose = MARGIN * found.whole * search.max_drop / rounds[0].drop, f"to meet --max-drop {search.max_drop:g}"
    tried, failed = list[Mapping[str, str]]([{}]), list[QexportError]()
    for most in SHARES:
        budget = Budget(aim, min(2 * _share(rounds), most), most, purpose)
        made, record = repair(search.candidate, search.replanned, held_out, budget, progress, found)
        if record.floats in tried:
            continue
        tried.append(record.floats)
        try:
            rounds.append(_built(search, made, record, len(tried)))
        except (ConversionError, VerificationError) as error:
            failed.append(error)
            continue
        if rounds[-1].drop <= search.max_drop:
            break
        aim = min(aim, MARGIN * record.after * search.max_drop / rounds[-1].drop)
    return failed


def _share(rounds: Sequence[_Round]) -> float:
    """What the last file kept in float: too little."""
    record = rounds[-1].record
    return record.float_macs if record else 0.0


def _built(search: _Search, made: Candidate, record: RepairRecord, number: int) -> _Round:
    asked = replace(search.request, passes=(), candidate=None, learned=False, plan=made.plan)
    if search.candidate.program is not search.candidate.reference:
        path = search.folder / f"round_{number}.npz"
        save_candidate(made, path)
        asked = replace(asked, candidate=path, plan=None)
    result = search.build(asked)
    scored = search.score(result)
    return _Round(asked, result, math.inf if scored.drop is None else scored.drop, scored.latency_ms, record)


def _chosen(images: Sequence[Path]) -> tuple[Path, ...]:
    """Those that passes did not see, where they are enough to judge by."""
    return take(images[::HELD_OUT] if len(images) >= HELD_OUT * COUNT else images, count=COUNT)


@dataclass
class Scorer:
    """Scores files on a run's evaluation images.

    Attributes:
        reference: the FP32 file of the same format.
        latency: whether latency is measured, too.
        exact: the FP32 file's accuracy, once it is known.
    """

    program: Program
    task: str
    images: RunImages
    reference: ArtifactResult
    threads: int
    latency: bool
    clock: Clock
    exact: Accuracy | None = None

    def __call__(self, item: ArtifactResult) -> Score:
        """Score a file; the FP32 file, too, unless it is scored already and labels say what both are worth."""
        labelled = self.exact is not None and _is_number(self.exact.map)
        figures = measure(
            self.program,
            self.task,
            self.images,
            (item,) if labelled else (self.reference, item),
            threads=self.threads,
            accuracy=True,
            latency=self.latency,
            clock=self.clock,
        )
        if not labelled:
            self.exact = figures[self.reference.artifact.path].accuracy
        found = figures[item.artifact.path]
        return Score(lost_percent(found.accuracy, self.exact), found.latency.p50 if found.latency else None)


def lost_percent(accuracy: Accuracy | None, exact: Accuracy | None) -> float | None:
    """Percent of FP32's accuracy that is lost, as `--max-drop` means it; of fidelity where there are no labels."""
    if accuracy is None:
        return None
    own, real = accuracy.map, None if exact is None else exact.map
    if own is not None and real is not None and _is_number(own) and _is_number(real):
        return 100 * (1 - own / real) if real else None
    return 100 * (1 - accuracy.fidelity) if accuracy.fidelity is not None and _is_number(accuracy.fidelity) else None


def _is_number(figure: float | None) -> bool:
    return figure is not None and not math.isnan(figure)


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
        points[at] = CurvePoint(
            float_macs=at[0],
            distance=at[1],
            lost_percent=round(each.drop, 4) if math.isfinite(each.drop) else None,
            latency_ms=each.latency_ms,
            chosen=each.request is best.request,
        )
    met, drop = best.drop <= max_drop, f"{best.drop:.2f} % of FP32's accuracy is lost"
    reason = f"{drop}, {'at most' if met else 'over'} {max_drop:g} %; it was {rounds[0].drop:.2f} %"
    told = made or replace(start, after=start.before, float_macs=start.float_macs_before, floats={}, noise=None)
    return replace(told, met=met, reason=reason, curve=tuple(points[at] for at in sorted(points)))
