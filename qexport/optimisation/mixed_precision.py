"""Keep in float what costs most for its arithmetic, until a budget is met.

Hessian-aware mixed precision (Dong et al., "HAWQ-V2", 2020) ranks layers by what their error costs at the outputs and
takes the cheapest set that meets a bound. Here the cost is measured: each part's distance when it is quantised alone.
Error powers of parts add up where they are independent, so that its square is what leaving it out gains; measured
gains are small differences of large numbers and rank worse on few images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, distance, margin
from qexport.optimisation.layers import owners
from qexport.optimisation.repair_record import CurvePoint, RepairRecord
from qexport.optimisation.sensitivity import sensitivity
from qexport.optimisation.sensitivity_record import Sensitivity, SensitivityRow
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.program import MOVES_DATA, Program
from qexport.progress import Progress

MAX_SETTINGS = 120
"""Sets of quantised tensors that the ranking may try: all of a small model, the worst blocks of a large one."""
MAX_GIVEN_BACK = 16
"""Layers that are tried in integers once more after the budget is met, those with most arithmetic first."""

Replan = Callable[[Mapping[str, str]], QuantPlan]
"""Plans a candidate's program once more with values in float: name → why."""


@dataclass(frozen=True)
class Budget:
    """What has to be met.

    Attributes:
        distance: the most that the distance on held-out images may be.
        least: share of the multiply-accumulates that has to be in float at least, 0..1: a file with less failed.
        most: share that may be in float, 0..1.
        purpose: what it is for, as the plan says it: "to meet --max-drop 0.5".
    """

    distance: float
    least: float = 0.0
    most: float = 0.5
    purpose: str = "to meet the budget"


def repair(
    candidate: Candidate,
    replan: Replan,
    held_out: HeldOut,
    budget: Budget,
    progress: Progress,
    found: Sensitivity | None = None,
) -> tuple[Candidate, RepairRecord]:
    """Keep the fewest multiply-accumulates in float that meet a budget, or as many as it allows.

    Parts are taken by what they cost alone for each multiply-accumulate, and the sets are measured as they would be
    written: planned once more. Weights and biases that passes have changed stay, and scales of what stays quantised.

    Args:
        replan: makes plans for `candidate.program`.
        found: the candidate's sensitivity, where it is known; measured otherwise.

    Raises:
        InputError: errors inside of the program cannot be measured.
    """
    with progress.step("measuring held-out images", len(held_out.inputs)) as advance:
        start = _Trial({}, candidate, distance(candidate, held_out, advance))
    if _meets(start, budget):
        return candidate, _record(budget, [start], start)
    ranked = found or sensitivity(candidate, held_out, progress, MAX_SETTINGS)
    search = _Search(candidate, replan, held_out, [start])
    with progress.step("choosing what stays float") as advance:
        best = _given_back(
            search, _shortest(search, _units(candidate, ranked, budget), budget, advance), budget, advance
        )
    return best.candidate, _record(budget, search.trials, best)


@dataclass(frozen=True)
class _Trial:
    """A plan that was measured, with what it keeps in float."""

    floats: Mapping[str, str]
    candidate: Candidate
    distance: Distance

    @property
    def share(self) -> float:
        """Of the multiply-accumulates, in float."""
        return float_share(self.candidate.program, self.candidate.plan)


@dataclass(frozen=True)
class _Search:
    """What plans are made of, and all that were measured."""

    candidate: Candidate
    replan: Replan
    held_out: HeldOut
    trials: list[_Trial]

    def tried(self, floats: Mapping[str, str]) -> _Trial:
        """Plan with some values in float, and measure it."""
        plan = carried_over(self.replan(floats), self.candidate.plan)
        made = replace(self.candidate, plan=plan)
        trial = _Trial(floats, made, distance(made, self.held_out))
        self.trials.append(trial)
        return trial


def _meets(trial: _Trial, budget: Budget) -> bool:
    return trial.distance.mean <= budget.distance and trial.share >= budget.least


def _units(candidate: Candidate, ranked: Sensitivity, budget: Budget) -> list[dict[str, str]]:
    """What can be kept in float, most error for its arithmetic first, as long as there is room for it."""
    program, plan = candidate.program, candidate.plan
    found = [(row, kept_for(candidate, row.values)) for row in ranked.rows]
    priced = [(row, names, sum(program.values[name].macs for name in names)) for row, names in found if names]
    priced.sort(key=lambda each: (-(each[0].alone ** 2) / max(each[2], 1), each[0].kind == "block"))
    total = max(sum(value.macs for value in program.values.values()), 1)
    room = budget.most - float_share(program, plan)
    units, taken = list[dict[str, str]](), set[str]()
    for row, names, _ in priced:
        added = sum(program.values[name].macs for name in names if name not in taken) / total
        if added <= room and not taken >= set(names):
            room -= added
            taken.update(names)
            units.append(dict.fromkeys(names, _why(budget, ranked, row)))
    return units


def _why(budget: Budget, ranked: Sensitivity, row: SensitivityRow) -> str:
    return (
        f"float {budget.purpose}: alone {row.name} costs {100 * ranked.share(row):.0f} % of the distance (sensitivity)"
    )


def kept_for(candidate: Candidate, values: Iterable[str]) -> tuple[str, ...]:
    """Values whose operations have to be in float so that nothing of a part is rounded, in order of computation.

    That is what computes them, and what reads their integers, behind everything that only moves them.
    """
    program, plan = candidate.program, candidate.plan
    if not plan.integer:  # nothing but weights is stored as integers
        return tuple(name for name in values if plan.is_quantised(program.values[name].weight))
    kept, wanted = set[str](), list(values)
    while wanted:
        name = wanted.pop()
        kept.add(name)
        for reader in program.readers[name] if plan.is_quantised(name) else ():
            moves = reader.operation in MOVES_DATA and reader.name not in kept
            wanted += [reader.name] if moves else []
            kept.add(reader.name)
    return tuple(name for name in program.values if name in kept & plan.integer)


def _shortest(
    search: _Search, units: Sequence[Mapping[str, str]], budget: Budget, advance: Callable[[], None]
) -> _Trial:
    """The fewest units in their order that meet the budget: twice as many each time, then halves between."""

    def tried(count: int) -> _Trial:
        merged: dict[str, str] = {}
        for unit in units[:count]:
            merged = {**unit, **merged}
        advance()
        return search.tried(merged)

    low, high, best = 0, 1, None
    while best is None and low < len(units):
        high = min(high, len(units))
        trial = tried(high)
        best = trial if _meets(trial, budget) else None
        low, high = (low, high) if best else (high, 2 * high)
    if best is None:  # the nearest of all
        return min(search.trials, key=lambda each: (each.share < budget.least, each.distance.mean))
    while high - low > 1:
        middle = (low + high) // 2
        trial = tried(middle)
        low, high, best = (low, middle, trial) if _meets(trial, budget) else (middle, high, best)
    return best


def _given_back(search: _Search, best: _Trial, budget: Budget, advance: Callable[[], None]) -> _Trial:
    """Leave out what the budget is met without, layers with most arithmetic first."""
    if not _meets(best, budget):
        return best
    program = best.candidate.program
    owned: dict[str, list[str]] = {}
    for name, owner in owners(program).items():
        if name in best.floats:
            owned.setdefault(owner, []).append(name)
    by_cost = sorted(owned.values(), key=lambda names: -sum(program.values[name].macs for name in names))
    for names in by_cost[:MAX_GIVEN_BACK] if len(by_cost) > 1 else ():
        fewer = {name: why for name, why in best.floats.items() if name not in names}
        trial = search.tried(fewer)
        advance()
        best = trial if trial.share < best.share and _meets(trial, budget) else best
    return best


def carried_over(new: QuantPlan, old: QuantPlan) -> QuantPlan:
    """A new plan with the scales of an old one for what both quantise alike: passes may have tuned them.

    Scales that follow from others are the new plan's; so are those of groups that have other members now.
    """
    before, after = _groups(old), _groups(new)

    def kept(name: str, tensor: TensorQuant) -> TensorQuant:
        known = old.tensors.get(name)
        if known is None or known.is_float or "derived" in (tensor.rule, known.rule):
            return tensor
        alike = (tensor.dtype, tensor.axis) == (known.dtype, known.axis)
        together = before.get(known.group, {name}) == after.get(tensor.group, {name})
        return known if alike and together else tensor

    tensors = {name: each if each.is_float else kept(name, each) for name, each in new.tensors.items()}
    return replace(new, tensors=tensors)


def _groups(plan: QuantPlan) -> Mapping[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, tensor in plan.tensors.items():
        if tensor.group and not tensor.is_float:
            found.setdefault(tensor.group, set()).add(name)
    return found


def float_share(program: Program, plan: QuantPlan) -> float:
    """Share of the multiply-accumulates that a plan leaves in float, or, of weights alone, whose weights it does."""
    spent = [value for value in program.values.values() if value.macs]
    integer = sum(value.macs for value in spent if value.name in plan.integer or plan.is_quantised(value.weight))
    return 1 - integer / max(sum(value.macs for value in spent), 1)


def _record(budget: Budget, trials: Sequence[_Trial], best: _Trial) -> RepairRecord:
    start = trials[0]
    met = _meets(best, budget)
    points = [
        CurvePoint(float_macs=each.share, distance=each.distance.mean, chosen=each is best)
        for each in sorted(trials, key=lambda each: (each.share, each.distance.mean))
    ]
    after, limit = best.distance.mean, budget.distance
    return RepairRecord(
        budget=limit,
        before=start.distance.mean,
        after=after,
        noise=margin(start.distance, best.distance)[1],
        images=len(start.distance.total),
        float_macs=best.share,
        float_macs_before=start.share,
        met=met,
        reason=f"the distance is {after:.3g}, {'at most' if met else 'over'} {limit:.3g}",
        floats=dict(best.floats),
        curve=tuple(points),
    )
