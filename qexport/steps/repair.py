"""Keep in float what an artifact loses too much by: plan, build and score until the loss is small enough.

What goes into float is chosen by what rounding costs at the outputs for each multiply-accumulate; how much of it, by
the files' own loss on the evaluation images.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.errors import ConversionError, QexportError, VerificationError
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.measure import Elsewheres, measure
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, distance, hold_out, margin
from qexport.optimisation.float_sets import FloatSet, float_share
from qexport.optimisation.mixed_precision import Replan, priced_sets, replanned
from qexport.optimisation.repair_record import CurvePoint, RepairRecord
from qexport.optimisation.sensitivity import NOT_MEASURABLE
from qexport.programs.program import Program
from qexport.progress import Progress
from qexport.steps.build import BuildRequest, replanner
from qexport.steps.changed_plan import asked_with, float_before, judging_images, made_from
from qexport.system.cache import Cache
from qexport.verification.result import ArtifactResult

SHARES = (1 / 64, 1 / 16, 1 / 4, 1 / 2)
"""Most of the multiply-accumulates that files may have in float one after the other, until one is good enough."""
MAX_BETWEEN = 3
"""Files that are built between the last that lost too much and the first that did not."""
MIN_STEP = 1 / 128
"""Share of the multiply-accumulates that is worth a file of its own."""
MIN_FASTER = 0.95
"""A file that has more in float than another is written all the same if its latency is at most this share."""


@dataclass(frozen=True)
class Score:
    """What a file loses, in percent of FP32's accuracy, and its median latency; None where it was not measured."""

    drop: float | None
    latency_ms: float | None = None


@dataclass(frozen=True)
class _Round:
    """A file that was built and scored, what it was asked for as and made from, and what is in float for the bound."""

    request: BuildRequest
    result: ArtifactResult
    candidate: Candidate
    distance: Distance
    drop: float
    latency_ms: float | None
    floats: Mapping[str, str] = field(default_factory=dict)

    @property
    def float_macs(self) -> float:
        """Share of the multiply-accumulates in float."""
        return float_share(self.candidate.program, self.candidate.plan)


def repaired(
    request: BuildRequest,
    first: ArtifactResult,
    program: Program,
    max_drop: float,
    score: Callable[[ArtifactResult], Score],
    build: Callable[[BuildRequest], ArtifactResult],
    progress: Progress,
    built_by: BuildRequest | None = None,
) -> ArtifactResult:
    """Return the artifact, or one in its place that keeps as little in float as meets the budget; or the nearest.

    Args:
        request: what plans are made by, with images to compare them on.
        program: the float program as it came.
        max_drop: percent of FP32's accuracy that may be lost.
        build: builds a request in the place of what was there.
        built_by: what `first` was built by, where that is another request.

    Raises:
        QexportError: images cannot be read, or the runtime is gone; the first file is in its place.
    """
    scored = score(first)
    if scored.drop is None:
        return _noted(first, "its loss could not be measured")
    if scored.drop <= max_drop:
        return first
    candidate, own = made_from(request, first, program), built_by or request
    if candidate is None or not candidate.measurable:
        return _noted(first, NOT_MEASURABLE)
    replan, images = replanner(request, candidate), request.images or request.samples
    if replan is None:
        return _noted(first, "its plan is given")
    with progress.step("measuring the float program") as advance:
        held_out = hold_out(candidate.reference, judging_images(images), advance)
    start = distance(candidate, held_out)
    rounds = [_Round(own, first, candidate, start, scored.drop, scored.latency_ms)]
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        try:
            asked = candidate, request, max_drop, score, build, progress, Path(folder), replan, held_out
            failed = _until_met(_Search(*asked), images, rounds)
            best = _best(rounds, max_drop)
            if failed or best is not rounds[-1]:
                best = replace(best, result=build(best.request))
        except QexportError:
            build(own)
            raise
    notes = (f"a plan with more in float was not written: {error}" for error in failed)
    told = replace(best.result, warnings=(*best.result.warnings, *notes), tuning=first.tuning)
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
    replan: Replan
    held_out: HeldOut

    def tried(self, floats: FloatSet, rounds: list[_Round], failed: list[QexportError]) -> bool:
        """Build and score a file with a set in float; return whether it loses little enough."""
        why = floats.why(f"to meet --max-drop {self.max_drop:g}")
        made = replanned(self.candidate, self.replan, {**float_before(self.candidate, self.replan), **why})
        try:
            rounds.append(replace(_built(self, made, len(rounds) + len(failed)), floats=why))
        except (ConversionError, VerificationError) as error:
            failed.append(error)
            return False
        return rounds[-1].drop <= self.max_drop


def _until_met(search: _Search, images: Sequence[Path], rounds: list[_Round]) -> list[QexportError]:
    """Build and score with more and more in float, then between the last two; return why files could not be built."""
    sets, failed = priced_sets(search.candidate, images, search.progress, SHARES[-1]), list[QexportError]()
    low, high = -1, len(sets)
    for most in SHARES:
        count = sum(each.macs <= most for each in sets)
        if count - 1 > low:
            if search.tried(sets[count - 1], rounds, failed):
                high = count - 1
                break
            low = count - 1
    for _ in range(MAX_BETWEEN if high < len(sets) else 0):
        middle = _between(sets, low, high)
        if middle is None:
            break
        low, high = (low, middle) if search.tried(sets[middle], rounds, failed) else (middle, high)
    return failed


def _between(sets: Sequence[FloatSet], low: int, high: int) -> int | None:
    """The set nearest to half the way from one, -1 for none, to the other; None where that is not worth a file."""
    least, most = sets[low].macs if low >= 0 else 0.0, sets[high].macs
    inner = range(low + 1, high)
    if most - least <= MIN_STEP or not inner:
        return None
    return min(inner, key=lambda index: abs(sets[index].macs - (least + most) / 2))


def _best(rounds: Sequence[_Round], max_drop: float) -> _Round:
    """The least in float that meets the bound, or what is faster and meets it, too; the nearest where none does."""
    met = sorted((each for each in rounds if each.drop <= max_drop), key=lambda each: each.float_macs)
    if not met:
        return min(rounds, key=lambda each: each.drop)
    best = met[0]
    for each in met[1:]:
        if each.latency_ms and best.latency_ms and each.latency_ms <= MIN_FASTER * best.latency_ms:
            best = each
    return best


def _built(search: _Search, made: Candidate, number: int) -> _Round:
    asked = asked_with(search.request, made, search.folder / f"round_{number}.npz")
    result = search.build(asked)
    scored = search.score(result)
    drop = math.inf if scored.drop is None else scored.drop
    return _Round(asked, result, made, distance(made, search.held_out), drop, scored.latency_ms)


@dataclass
class Scorer:
    """Scores files on a run's evaluation images.

    Attributes:
        reference: the FP32 file of the same format.
        latency: whether latency is measured, too.
        cache: figures of earlier runs.
        elsewhere: processes that score beside this one.
        exact: the FP32 file's accuracy, once it is known.
    """

    program: Program
    task: str
    images: RunImages
    reference: ArtifactResult
    threads: int
    latency: bool
    clock: Clock
    cache: Cache
    elsewhere: Elsewheres | None = None
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
            cache=self.cache,
            elsewhere=self.elsewhere,
        )
        if not labelled:
            self.exact = figures[self.reference.artifact.path].accuracy
        found = figures[item.artifact.path]
        return Score(lost_percent(found.accuracy, self.exact), found.latency.p50 if found.latency else None)


def lost_percent(accuracy: Accuracy | None, exact: Accuracy | None) -> float | None:
    """Percent of FP32's accuracy that is lost, as `--max-drop` means it; without labels, of its fidelity to itself."""
    if accuracy is None:
        return None
    own, real = accuracy.map, None if exact is None else exact.map
    if own is not None and real is not None and _is_number(own) and _is_number(real):
        return 100 * (1 - own / real) if real else None
    if accuracy.fidelity is None or not _is_number(accuracy.fidelity):
        return None
    return 100 * (1 - accuracy.fidelity / accuracy.fidelity_ceiling)


def _is_number(figure: float | None) -> bool:
    return figure is not None and not math.isnan(figure)


def _noted(item: ArtifactResult, why: str) -> ArtifactResult:
    return replace(item, warnings=(*item.warnings, f"not repaired: {why}"))


def _record(rounds: Sequence[_Round], best: _Round, max_drop: float) -> RepairRecord | None:
    """What the rounds came to; None where no file but the first was built."""
    start = rounds[0]
    if len(rounds) == 1:
        return None
    points = [
        CurvePoint(
            float_macs=each.float_macs,
            distance=each.distance.mean,
            lost_percent=round(each.drop, 4) if math.isfinite(each.drop) else None,
            latency_ms=each.latency_ms,
            chosen=each is best,
        )
        for each in sorted(rounds, key=lambda each: each.float_macs)
    ]
    met, drop = best.drop <= max_drop, f"{best.drop:.2f} % of FP32's accuracy is lost"
    return RepairRecord(
        before=start.distance.mean,
        after=best.distance.mean,
        noise=None if best is start else margin(start.distance, best.distance)[1],
        images=len(start.distance.total),
        float_macs=best.float_macs,
        float_macs_before=start.float_macs,
        met=met,
        reason=f"{drop}, {'at most' if met else 'over'} {max_drop:g} %; it was {start.drop:.2f} %",
        floats=dict(best.floats),
        curve=tuple(points),
    )
