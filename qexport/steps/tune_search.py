"""The search for the fastest plan: one change after the other, each timed in turns with the best plan until then.

A change is kept where it is faster beyond noise and no farther from FP32 beyond noise; the latter is only looked at
where the former is so, and of others, for the report, where time is left. What came of all of them is timed once more
with the plan that was there at first, in rounds that chose nothing: the best of many was lucky, too, and what was
chosen by luck is not faster again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Protocol

from qexport.backends.protocol import Runner
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.paired import Paired
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, log_margin
from qexport.optimisation.float_sets import float_share
from qexport.optimisation.tune_record import Trial, TuneRecord
from qexport.optimisation.variations import Variation
from qexport.planning.plan import QuantPlan
from qexport.planning.runtime_profiles import Alternative
from qexport.progress import Advance

DEFAULT = "the plan without tuning"
KEPT, NO_FASTER, OVER = "faster, kept", "not faster beyond noise", "the time was over before that was settled"
FARTHER = "faster, but farther from FP32 beyond noise"
TRIED = "float: tried by --tune"
MOST_COST = 1.0
"""A plan is farther from FP32 where its distance is larger by more than so many standard errors of the difference."""

Planned = Callable[[tuple[Alternative, ...], Mapping[str, str]], Candidate]
"""Plans once more by a runtime's other choices, and with values in float: name → why."""


class Bench(Protocol):
    """Writes, judges and times plans."""

    def distance(self, candidate: Candidate, /) -> Distance:
        """How far it is from FP32, on held-out images."""
        ...

    def runner(self, candidate: Candidate, alternatives: tuple[Alternative, ...], /) -> Runner:
        """What runs its file; raises whatever converters and runtimes do."""
        ...

    def compare(self, first: Runner, second: Runner, stop: Callable[[], bool], /) -> Paired:
        """Time two in turns, see `qexport.measurement.paired.compare_latency`."""
        ...


@dataclass(frozen=True)
class Contender:
    """A plan with what runs its file; `speedup` is the factor by which it seems faster than the first one.

    Attributes:
        floats: values that are in float for it, each with why.
    """

    candidate: Candidate
    runner: Runner
    alternatives: tuple[Alternative, ...] = ()
    floats: Mapping[str, str] = field(default_factory=dict)
    speedup: float = 1.0


@dataclass
class Budget:
    """Seconds that a search may take, by `now`; nothing is begun that would take longer by what the longest took."""

    seconds: float
    now: Callable[[], float] = perf_counter
    longest: float = 0.0

    def __post_init__(self) -> None:
        """Begin."""
        self.started = self.now()

    @property
    def spent(self) -> float:
        """Seconds until now."""
        return self.now() - self.started

    def over(self) -> bool:
        """Whether they are spent."""
        return self.spent >= self.seconds

    def has_room(self) -> bool:
        """Whether there is time for one more."""
        return self.spent + self.longest < self.seconds

    def timed(self, started: float) -> None:
        """Note that one has come to its end."""
        self.longest = max(self.longest, self.now() - started)


def fastest(
    first: Contender,
    tried: Iterable[Variation],
    planned: Planned,
    bench: Bench,
    budget: Budget,
    advance: Advance,
) -> tuple[Contender, TuneRecord]:
    """Try one variation after the other, and return the plan that is faster than the first one beyond noise, or that.

    Args:
        budget: of time; what was found is timed once more behind it.
        advance: called after each variation.
    """
    search = _Search(first, planned, bench, budget)
    variations, left = list(tried), 0
    for number, each in enumerate(variations):
        if not budget.has_room():
            left = len(variations) - number
            break
        started = budget.now()
        trial = search.tried(each)
        budget.timed(started)
        advance(f"{each.name}: {trial.outcome}" if trial else "")
    search.judge_others()
    return search.ended(left)


class _Search:
    """The best plan until now, and what was tried."""

    def __init__(self, first: Contender, planned: Planned, bench: Bench, budget: Budget) -> None:
        self.first = self.best = first
        self.planned, self.bench, self.budget = planned, bench, budget
        self.before = bench.distance(first.candidate)
        self.milliseconds: float | None = None
        self.restless = False
        share = _share(first.candidate)
        self.start = Trial(name=DEFAULT, float_macs=share, distance=self.before.mean, chosen=True)
        self.trials: list[Trial] = []
        self.unjudged: list[tuple[int, Candidate]] = []

    def tried(self, variation: Variation) -> Trial | None:
        """Plan, judge, write and time one; None where it changes nothing."""
        best, more = self.best, variation.floats & self.best.candidate.plan.integer
        own = (*best.alternatives, *((variation.alternative,) if variation.alternative else ()))
        if not more and own == best.alternatives:
            return None
        made = self.planned(own, {**best.floats, **dict.fromkeys(sorted(more), TRIED)})
        if _content(made.plan) == _content(best.candidate.plan):
            return None
        trial, lost = Trial(name=variation.name, float_macs=_share(made)), list[Unmeasured]()
        with attempt(lost, "latency"):
            runner = self.bench.runner(made, own)
            paired = self.bench.compare(best.runner, runner, self.budget.over)
            trial = self._judged(trial, paired, Contender(made, runner, own, best.floats), more)
        self.trials.append(replace(trial, outcome=f"could not be tried: {lost[0].reason}") if lost else trial)
        if self.trials[-1].speedup is not None and self.trials[-1].distance is None:
            self.unjudged.append((len(self.trials) - 1, made))
        return self.trials[-1]

    def _judged(self, trial: Trial, paired: Paired, made: Contender, more: frozenset[str]) -> Trial:
        """Keep a plan where it is faster and no farther from FP32, and say so."""
        if not paired.rounds:
            return replace(trial, outcome=OVER)
        if self.milliseconds is None:  # the best is the first one still
            self.milliseconds = paired.first.p50
        self.restless |= paired.first.restless
        speedup = self.best.speedup * paired.speedup
        trial = replace(trial, speedup=paired.speedup, latency_ms=self.milliseconds / speedup)
        if not paired.faster:
            return replace(trial, outcome=NO_FASTER if paired.wanted else OVER)
        found = self.bench.distance(made.candidate)
        gained, error = log_margin(self.before, found)
        if gained < -MOST_COST * error:
            return replace(trial, distance=found.mean, outcome=FARTHER)
        why = f"float: {paired.speedup:.2f}x faster here (--tune latency: {trial.name})"
        self.best = replace(made, floats={**made.floats, **dict.fromkeys(sorted(more), why)}, speedup=speedup)
        return replace(trial, distance=found.mean, outcome=KEPT)

    def judge_others(self) -> None:
        """Look at how far from FP32 those are that were not faster, the fastest first, as long as there is time."""
        self.budget.longest = 0.0
        for place, candidate in sorted(self.unjudged, key=lambda each: self.trials[each[0]].latency_ms or 0.0):
            if not self.budget.has_room():
                return
            started = self.budget.now()
            self.trials[place] = replace(self.trials[place], distance=self.bench.distance(candidate).mean)
            self.budget.timed(started)

    def ended(self, left: int) -> tuple[Contender, TuneRecord]:
        """Time what was found once more with the first plan.

        Args:
            left: variations for which there was no time.
        """
        spent, best = self.budget.spent, self.best
        again = self.bench.compare(self.first.runner, best.runner, lambda: False) if best is not self.first else None
        won = again is not None and again.faster
        speedup = again.speedup if again and won else 1.0
        record = TuneRecord(
            speedup=speedup,
            wins=again.wins if again else 0,
            rounds=len(again.rounds) if again else 0,
            restless=self.restless,
            reason=self._reason(again, left),
            images=len(self.before.total),
            seconds=round(spent, 1),
            limit=self.budget.seconds,
            floats=dict(best.floats) if won else {},
            changes=tuple(each.name for each in best.alternatives) if won else (),
            curve=tuple(self._curve(speedup)),
        )
        return (best if won else self.first), record

    def _reason(self, again: Paired | None, left: int) -> str:
        timed = sum(each.speedup is not None for each in self.trials)
        beside = f"; there was no time for {left} more" if left else ""
        if again is None:
            others = f"none of {len(self.trials)} others" if self.trials else "no other was tried; none"
            return f"the plan stays: {others} is faster beyond noise, {timed} were timed{beside}"
        rounds = f"in {again.wins} of {len(again.rounds)} rounds"
        if not again.faster:
            seemed = f"what seemed {self.best.speedup:.2f} times as fast was faster {rounds} when timed once more"
            return f"the plan stays: {seemed}{beside}"
        names = ", ".join(each.name for each in self.trials if each.outcome == KEPT)
        return f"{again.speedup:.2f} times as fast as without, {rounds}, by {names}{beside}"

    def _curve(self, speedup: float) -> Iterable[Trial]:
        """Every plan; what was written has the latency by which it was faster once more."""
        last = max((place for place, each in enumerate(self.trials) if each.outcome == KEPT), default=-1)
        written = last if speedup > 1 else -1
        yield replace(self.start, latency_ms=self.milliseconds, chosen=written < 0)
        for place, each in enumerate(self.trials):
            chosen = place == written
            latency = self.milliseconds / speedup if chosen and self.milliseconds else each.latency_ms
            yield replace(each, chosen=chosen, latency_ms=latency)


def _share(candidate: Candidate) -> float:
    return float_share(candidate.program, candidate.plan)


def _content(plan: QuantPlan) -> tuple[object, ...]:
    """What of a plan a file depends on."""
    return plan.integer, {name: (each.dtype, each.scale, each.zero_point) for name, each in plan.tensors.items()}
