"""Which operations to keep in float: growing sets, each with what removes most error for what it costs.

Error powers of tensors add up where they are independent. A tensor is not rounded where what computes it and all that
reads its integers is in float, so that neighbours gain by each other; and every border between integers and floats
costs a conversion, so that sets grow where they are already.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from qexport.optimisation.candidate import Candidate
from qexport.planning.plan import QuantPlan
from qexport.programs.program import INPUT, MOVES_DATA, Program

ELEMENT = 32
"""Multiply-accumulates that take about as long as writing a value's element as float, or converting it: some five bytes
of memory traffic against sums of vectors."""


@dataclass(frozen=True)
class FloatSet:
    """Operations to keep in float.

    Attributes:
        gains: by name of the operation's value, in order of choice: share of the error that went when it was added.
        removed: share of the error that is not rounded any more, 0..1.
        macs: of the network's multiply-accumulates, the share that is in float for it, 0..1.
        work: the same with conversions counted as multiply-accumulates; below 0 where they become fewer.
    """

    gains: Mapping[str, float]
    removed: float
    macs: float
    work: float

    def why(self, purpose: str) -> dict[str, str]:
        """Each operation with the reason that the plan gives."""
        return {
            name: f"float {purpose}: {100 * gain:.2g} % of the error at the outputs goes with it (by gradients)"
            for name, gain in self.gains.items()
        }


def float_sets(
    candidate: Candidate, shares: Mapping[str, float], most: float, least_yield: float = 0.0
) -> Iterator[FloatSet]:
    """Yield sets, each the one before with more in it, most error for its work first.

    Args:
        shares: of the error, by tensor (`qexport.optimisation.error_shares`).
        most: share of the multiply-accumulates that a set may have, 0..1.
        least_yield: share of the error by share of the work that an addition has to remove.
    """
    costs = _Costs(candidate, shares)
    kept, gains, removed, work = frozenset[str](), dict[str, float](), 0.0, costs.work(frozenset())
    before = work
    while True:
        found = [each for unit in costs.units if (each := costs.added(kept, unit, removed, work, most))]
        best = max(found, key=lambda each: (each[0] / max(each[1], 1 / costs.macs), each[0]), default=None)
        if best is None or best[0] < least_yield * best[1]:
            return
        gain, more, unit = best
        gains |= dict.fromkeys(sorted(unit - kept, key=costs.place), gain)
        kept, removed, work = kept | unit, removed + gain, work + more
        yield FloatSet(dict(gains), removed, costs.share(kept), work - before)


def kept_for(candidate: Candidate, values: Iterable[str]) -> frozenset[str]:
    """Integer operations that have to be in float so that nothing of some values is rounded.

    That is what computes them, and what reads their integers, behind everything that only moves them.
    """
    program, plan = candidate.program, candidate.plan
    kept, wanted = set[str](), list(values)
    while wanted:
        name = wanted.pop()
        kept.add(name)
        for reader in program.readers[name] if plan.is_quantised(name) else ():
            moves = reader.operation in MOVES_DATA and reader.name not in kept
            wanted += [reader.name] if moves else []
            kept.add(reader.name)
    return frozenset(kept & plan.integer)


def float_share(program: Program, plan: QuantPlan) -> float:
    """Share of the multiply-accumulates that a plan leaves in float, or, of weights alone, whose weights it does."""
    spent = [value for value in program.values.values() if value.macs]
    integer = sum(value.macs for value in spent if value.name in plan.integer or plan.is_quantised(value.weight))
    return 1 - integer / max(sum(value.macs for value in spent), 1)


class _Costs:
    """What sets of operations cost in float, and what error they remove.

    Attributes:
        units: what can be added at once: all that makes one tensor exact, and each operation with arithmetic by itself.
        macs: of the whole network.
    """

    def __init__(self, candidate: Candidate, shares: Mapping[str, float]) -> None:
        program, plan = candidate.program, candidate.plan
        self._values, self._readers = program.values, program.readers
        self._places = {name: number for number, name in enumerate(program.values)}
        self._integer = plan.integer
        weighted = {value.weight: value.name for value in program.values.values() if value.weight}
        self._only_weights = not plan.integer
        if self._only_weights:
            self._integer = frozenset(name for weight, name in weighted.items() if plan.is_quantised(weight))
        touched = ((_touching(candidate, weighted, name) & self._integer, share) for name, share in shares.items())
        self._errors = [(names, share) for names, share in touched if names and share > 0]
        alone = {frozenset({name}) for name in self._integer if program.values[name].macs}
        self.units = sorted(
            {names for names, _ in self._errors} | alone, key=lambda names: sorted(map(self.place, names))
        )
        self.macs = max(sum(value.macs for value in program.values.values()), 1)

    def place(self, name: str) -> int:
        """Where a value comes in order of computation."""
        return self._places[name]

    def added(
        self, kept: frozenset[str], unit: frozenset[str], removed: float, work: float, most: float
    ) -> tuple[float, float, frozenset[str]] | None:
        """What a unit removes of the error and costs in work, if there is room for it and it removes something."""
        together = kept | unit
        if unit <= kept or self.share(together) > most:
            return None
        gain = sum(share for names, share in self._errors if names <= together) - removed
        return (gain, self.work(together) - work, unit) if gain > 0 else None

    def share(self, kept: frozenset[str]) -> float:
        """Of the multiply-accumulates, in float."""
        return sum(self._values[name].macs for name in kept) / self.macs

    def work(self, kept: frozenset[str]) -> float:
        """Of floats and of conversions between them and integers, as a share of the multiply-accumulates."""
        if self._only_weights:  # it computes in float anyway
            return self.share(kept)
        elements, left = 0, self._integer - kept
        for name, value in self._values.items():
            readers = [reader.name in left for reader in self._readers[name]]
            written = name in left
            converted = not all(readers) if written else any(readers)
            elements += math.prod(value.shape) * (converted + (name in kept))
        return self.share(kept) + ELEMENT * elements / self.macs


def _touching(candidate: Candidate, weighted: Mapping[str, str], name: str) -> frozenset[str]:
    """Operations all of which have to be in float for a tensor not to be rounded."""
    if name in weighted:
        return frozenset({weighted[name]})
    if name == INPUT:
        return frozenset(reader.name for reader in candidate.program.readers[INPUT])
    return kept_for(candidate, (name,)) if name in candidate.program.values else frozenset({name.rpartition(".")[0]})
