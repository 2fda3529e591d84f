"""What was tried to make a file faster: read with reports, where torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qexport.optimisation.repair_record import CurvePoint


@dataclass(frozen=True, kw_only=True)
class Trial(CurvePoint):
    """One plan that was tried; its `latency_ms` is the default's by their ratios in turns, so that drift is not in it.

    Attributes:
        name: what it changes, in a few words.
        speedup: factor by which it was faster than the plan that was the best until then, timed in turns with it; None
            where it was not timed. Whether it is farther from FP32 is looked at where it was faster, and of the others
            as long as there is time.
        outcome: what became of it, in a few words.
    """

    name: str
    speedup: float | None = None
    outcome: str = ""


@dataclass(frozen=True, kw_only=True)
class TuneRecord:
    """What a search for the fastest plan came to.

    Attributes:
        goal: what was searched for, "latency".
        speedup: factor by which what was written is faster than the plan that was there before, timed in turns once
            more after the search; 1 where that one stays.
        wins, rounds: rounds that it was faster in, of so many; 0 where nothing was left to be timed once more.
        restless: whether the plan that was there before took too different times for small gains to be seen.
        reason: what came of it, in one line.
        images: how many held-out images plans were judged on.
        seconds: that the search took, of `limit` that it was given; what was found is built after it.
        floats: values that are in float for it, each with why.
        changes: what else the plan does in another way.
        curve: the plan that was there before, and every other one that was tried.
        taken: when the earlier run made it, in UTC; "" where this one did.
    """

    goal: str = "latency"
    speedup: float = 1.0
    wins: int = 0
    rounds: int = 0
    restless: bool = False
    reason: str = ""
    images: int = 0
    seconds: float = 0.0
    limit: float = 0.0
    floats: Mapping[str, str] = field(default_factory=dict)
    changes: tuple[str, ...] = ()
    curve: tuple[Trial, ...] = ()
    taken: str = ""
