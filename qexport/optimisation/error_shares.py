"""What rounding each tensor of a plan costs at the outputs, all of them at once, by gradients.

Every rounding error e is added to its float value times a number that is zero. For random signs r and weighted outputs
y the derivative of r · y by that number is r · (J e): its square is on average the squared length of what the error
does to the outputs (Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix", 1989). One run forwards
and a few backwards price hundreds of tensors, where leaving out each would take a run of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qexport.calibration.output_error import weighted_outputs
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import raw_outputs
from qexport.optimisation.lone_threads import lone_threads
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.program import MOVES_DATA, Program
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

PROBES = 2
"""Directions in which the outputs are looked at, for each image, of the scores and of all else."""


class _Error(nn.Module):
    """A tensor, and its rounding error times a number that is zero."""

    def __init__(self, tensor: TensorQuant, name: str) -> None:
        super().__init__()
        self.rounded = Fused(tensor, name)
        self.amount = nn.Parameter(torch.zeros(1))

    def forward(self, real: Tensor) -> Tensor:
        """Return `real`, which depends on `amount` now."""
        with torch.no_grad():
            error = self.rounded(real.detach()) - real.detach()
        seen: Tensor = real + self.amount * error
        return seen


def error_shares(
    candidate: Candidate, inputs: Sequence[Tensor], advance: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Measure each quantised tensor's share of what rounding costs; they add up to 1, or are all 0.

    Images have an equal say; in each the scores have one half of it, boxes and all else the other.

    Args:
        inputs: (n, channels, height, width) float32 each.

    Returns:
        By name: a value's, a weight's path, or that of a product with a number and ".constant". What only moves
        integers rounds nothing and is missing.
    """
    program, made = candidate.program, dict[str, _Error]()

    def make(tensor: TensorQuant, name: str) -> nn.Module:
        if _moved(program, candidate.plan, name):
            return nn.Identity()
        return made.setdefault(name, _Error(tensor, name))

    graph = raw_outputs(program, insert(program, candidate.plan, make))
    amounts = [each.amount for each in made.values()]

    def measured(number: int) -> Tensor:
        found = _of_batch(program, graph, amounts, inputs[number], number)
        advance()
        return found

    with lone_threads() as pool:
        rows = list(pool.map(measured, range(len(inputs))))
    total = torch.stack(rows).mean(dim=0)
    return dict(zip(made, (total / total.sum().clamp(min=1e-12)).tolist(), strict=True))


def _moved(program: Program, plan: QuantPlan, name: str) -> bool:
    value = program.values.get(name)
    return value is not None and value.operation in MOVES_DATA and all(map(plan.is_quantised, value.inputs))


def _of_batch(program: Program, graph: GraphModule, amounts: list[nn.Parameter], batch: Tensor, seed: int) -> Tensor:
    """Shares (tensors,) of one batch, in the mean over scores and all else."""
    signs = torch.Generator().manual_seed(seed)
    with torch.enable_grad():
        raw: Mapping[str, Tensor] = dict(zip(program.raw.all, graph(batch), strict=True))
        weighted = list(weighted_outputs(program, raw))
    scores = len(program.raw.scores)
    found = []
    for outputs in (weighted[:scores], weighted[scores:]):
        seen = [each for each in outputs if each.requires_grad]
        powers = torch.zeros(len(amounts), dtype=torch.float64)
        for _ in range(PROBES if seen else 0):
            directions = [torch.randint(2, each.shape, generator=signs) * 2.0 - 1 for each in seen]
            slopes = torch.autograd.grad(
                seen, amounts, directions, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            powers += torch.cat(slopes).double().square()
        if 0 < float(powers.sum()) < float("inf"):
            found.append(powers / powers.sum())
    return torch.stack(found).mean(dim=0) if found else torch.zeros(len(amounts), dtype=torch.float64)
