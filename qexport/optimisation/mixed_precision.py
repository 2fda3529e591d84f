"""Keep in float what costs most for its arithmetic, within a budget: a pass that plans anew.

HAWQ-V2 (Dong et al., 2020) ranks layers by what their error costs at the outputs and gives the most costly ones more
bits; here it is every tensor's own error, whatever its layer, and the price has conversions in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qexport.data.choice import take
from qexport.optimisation.candidate import Candidate, batch_count, batches
from qexport.optimisation.error_shares import error_shares
from qexport.optimisation.float_sets import FloatSet, float_sets
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.progress import Progress

COUNT = 8
"""Images that errors are priced on."""
FLOAT_BUDGET = 1 / 4
"""Most of the multiply-accumulates that may go from integers to float: they take two to four times as long there."""
LEAST_YIELD = 0.5
"""Share of the error that has to go for each share of the work; all of it for all of it would be 1."""
PURPOSE = "within the budget of mixed-precision"

Replan = Callable[[Mapping[str, str]], QuantPlan]
"""Plans a candidate's program once more with values in float: name → why."""


@dataclass(frozen=True)
class MixedPrecision:
    """A `WeightPass` that is `Replanning`: values stay float whose errors cost most for what they save.

    Attributes:
        replan: makes plans for the candidate's program; None where that is not for a pass to decide.
        budget: share of the multiply-accumulates that may become float, 0..1.
    """

    replan: Replan | None = None
    budget: float = FLOAT_BUDGET

    name = "mixed-precision"

    def planned_by(self, replan: Replan) -> MixedPrecision:
        """Return the pass with what makes plans."""
        return replace(self, replan=replan)

    def requires(self, candidate: Candidate, /) -> str:
        """Something that makes plans."""
        return "" if self.replan else "what is quantised must not be changed"

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        """Plan once more with the largest set that the budget allows."""
        chosen = priced_sets(candidate, images, progress, self.budget, LEAST_YIELD)
        if not chosen or self.replan is None:
            return candidate
        return replanned(candidate, self.replan, chosen[-1].why(PURPOSE))

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        """Weights are as they were, and nothing has become an integer."""
        if after.program is not before.program:
            return "the program has changed"
        return "" if after.plan.integer <= before.plan.integer else "more is quantised than was"


def priced_sets(
    candidate: Candidate, images: Sequence[Path], progress: Progress, most: float, least_yield: float = 0.0
) -> tuple[FloatSet, ...]:
    """Price what rounding costs on some images, and return the sets that grow by it, none where nothing can be read."""
    images = take(images, count=COUNT)
    with progress.step("pricing what integers cost", batch_count(candidate.program, images)) as advance:
        given = list(batches(candidate.program, images))
        shares = error_shares(candidate, given, advance) if given else {}
    return tuple(float_sets(candidate, shares, most, least_yield))


def replanned(candidate: Candidate, replan: Replan, floats: Mapping[str, str]) -> Candidate:
    """The candidate with a new plan; weights and scales of what stays quantised alike are those that passes tuned."""
    return replace(candidate, plan=carried_over(replan(floats), candidate.plan))


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
