"""What stays float: prices against derivatives forwards, sets against sums by hand, planted faults mended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from conftest import captured
from test_sensitivity import IMAGES, Case, case, chain, joined, only, seeded_chain
from torch import Tensor, nn

from qexport.calibration.calibrate import calibrate
from qexport.calibration.output_error import weighted_outputs
from qexport.optimisation import error_shares as pricing
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import distance, hold_out, raw_outputs
from qexport.optimisation.error_shares import error_shares
from qexport.optimisation.float_sets import FloatSet, float_sets, float_share
from qexport.optimisation.mixed_precision import MixedPrecision, replanned
from qexport.optimisation.passes import optimise
from qexport.planning.plan import QuantPlan, TensorQuant, check_plan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, WEIGHTS
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert


class Added(nn.Module):
    """A tensor and so much of its rounding error."""

    def __init__(self, tensor: TensorQuant, name: str) -> None:
        super().__init__()
        self.rounded, self.amount = Fused(tensor, name), torch.zeros(1)

    def forward(self, real: Tensor) -> Tensor:
        seen: Tensor = real + self.amount * (self.rounded(real.detach()) - real).detach()
        return seen


def squared_changes(given: Case) -> tuple[list[str], list[Tensor]]:
    """By tensor: squared length of the derivative of the weighted scores, and of the others, by its error."""
    program, batch = given.candidate.program, given.held_out.inputs[0]
    made: dict[str, Added] = {}
    graph = raw_outputs(
        program, insert(program, given.candidate.plan, lambda tensor, name: made.setdefault(name, Added(tensor, name)))
    )

    def outputs(amounts: Tensor) -> tuple[Tensor, ...]:
        for each, amount in zip(made.values(), amounts, strict=True):
            each.amount = amount
        return tuple(weighted_outputs(program, dict(zip(program.raw.all, graph(batch), strict=True))))

    rows = torch.autograd.functional.jacobian(outputs, torch.zeros(len(made)))
    squares = [each.double().flatten(0, -2).square().sum(dim=0) for each in rows]
    scores = len(program.raw.scores)
    return list(made), [torch.stack(each).sum(dim=0) for each in (squares[:scores], squares[scores:])]


def test_prices_are_squared_changes_of_the_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "PROBES", 200)
    given = chain(1)
    found = error_shares(given.candidate, given.held_out.inputs[:1])
    names, (scores, others) = squared_changes(given)
    wanted = (scores / scores.sum() + others / others.sum()) / 2
    assert list(found) == names
    assert sum(found.values()) == pytest.approx(1)
    largest = wanted.argsort(descending=True)[:8].tolist()
    assert [found[names[place]] for place in largest] == pytest.approx(wanted[largest].tolist(), rel=0.25)


def test_sets_grow_by_what_goes_for_the_work() -> None:
    candidate = chain(1).candidate
    macs = {value.name: value.macs for value in candidate.program.values.values()}
    total = sum(macs.values())
    shares = {"layers.5.weight": 0.5, "layers.2.weight": 0.3, "layers_2_mul": 0.2}
    sets = list(float_sets(candidate, shares, 1.0))
    assert list(sets[0].gains) == ["layers_5_conv"]
    assert sets[0].gains["layers_5_conv"] == pytest.approx(0.5)
    assert sets[0].macs == pytest.approx(macs["layers_5_conv"] / total)
    assert sets[0].work > sets[0].macs  # what it reads and gives is converted
    # What layers.2 gives is exact where it, its product and the layer behind it are in float.
    assert {"layers_2_conv", "layers_2_mul", "layers_3_conv"} <= sets[-1].gains.keys()
    assert sets[-1].removed == pytest.approx(1)
    assert [each.removed for each in sets] == sorted(each.removed for each in sets)
    assert not list(float_sets(candidate, shares, 0.0))
    assert len(list(float_sets(candidate, shares, 1.0, least_yield=1e9))) == 0
    assert sets[0].why("to try") == {
        "layers_5_conv": "float to try: 50 % of the error at the outputs goes with it (by gradients)"
    }


def first_mending(given: Case, most: float) -> tuple[Candidate, FloatSet]:
    """The first set that brings the distance under a bound."""
    for each in float_sets(given.candidate, error_shares(given.candidate, given.held_out.inputs), 0.5):
        made = replanned(given.candidate, given.replan, each.why("to mend"))
        if distance(made, given.held_out).mean <= most:
            return made, each
    raise AssertionError("nothing mends it")


def test_a_huge_channel_is_mended_by_its_layer_and_reader() -> None:
    planted, healthy = chain(300), chain(1)
    aim = 1.1 * distance(healthy.candidate, healthy.held_out).mean
    assert distance(planted.candidate, planted.held_out).mean > 1.5 * aim
    made, chosen = first_mending(planted, aim)
    assert {"layers_3_conv", "layers_4_conv"} <= chosen.gains.keys()
    assert made.plan.tensors["layers_3_conv"].why.startswith("float to mend: ")
    assert float_share(made.program, made.plan) < 0.4  # two of seven layers
    check_plan(made.plan, made.program, "mended")


def test_boxes_and_scores_under_one_scale_are_mended_without_arithmetic() -> None:
    planted = joined()
    _, chosen = first_mending(planted, distance(planted.candidate, planted.held_out).mean / 2)
    assert chosen.macs == 0


def test_a_plan_of_weights_keeps_weights() -> None:
    module = seeded_chain()
    module.get_parameter("layers.4.weight")[0] /= 300
    module.get_parameter("layers.5.weight")[:, 0] *= 300
    weights = case(captured(module), WEIGHTS, None)
    made, chosen = first_mending(weights, distance(weights.candidate, weights.held_out).mean / 2)
    assert max(chosen.gains.values()) == chosen.gains["layers_5_conv"]
    assert not made.plan.is_quantised("layers.5.weight")
    assert float_share(made.program, made.plan) == pytest.approx(chosen.macs)


def huge_channel(program: Program) -> Program:
    """Give a layer of the demo model one huge channel, and let its reader make up for it."""
    first, reader = "model.1.conv", "model.2.cv1.conv"
    huge = {path: program.graph.parameter(path).clone() for path in (f"{first}.weight", f"{first}.bias")}
    for each in huge.values():
        each[0] *= 300
    weight = program.graph.parameter(f"{reader}.weight").clone()
    weight[:, 0] /= 300
    return program.with_parameters({**huge, f"{reader}.weight": weight})


def test_a_huge_channel_of_a_detector_is_mended_with_little_in_float(demo_program: Program) -> None:
    healthy = calibrate(demo_program, IMAGES, lambda: None, 1).statistics
    sound = Candidate(demo_program, make_plan(demo_program, healthy, ONNXRUNTIME), demo_program)
    aim = 1.1 * distance(sound, hold_out(demo_program, IMAGES)).mean
    program = huge_channel(demo_program)
    planted = case(program, ONNXRUNTIME, calibrate(program, IMAGES, lambda: None, 1).statistics)
    assert distance(planted.candidate, planted.held_out).mean > 1.5 * aim
    made, _ = first_mending(planted, aim)
    assert float_share(made.program, made.plan) - float_share(made.program, planted.candidate.plan) < 0.15


def test_the_pass_is_judged_as_others_are_and_promises_weights() -> None:
    given = chain(300)
    images = [*IMAGES, *(path.with_name(path.name) for path in IMAGES)]
    made, (record,) = optimise(given.candidate, [MixedPrecision(given.replan, 0.5)], images, Silent())
    assert record.kept
    assert record.before is not None
    assert record.after is not None
    assert record.after < record.before
    assert made.program is given.candidate.program
    assert "layers_3_conv" not in made.plan.integer
    assert made.plan.tensors["layers_3_conv"].why.startswith("float within the budget of mixed-precision: ")
    _, (record,) = optimise(given.candidate, [MixedPrecision()], images, Silent())
    assert (record.outcome, record.reason) == ("not run", "not run: what is quantised must not be changed")


def test_a_new_plan_that_quantises_more_is_refused() -> None:
    given = chain(1)

    def replan(floats: Mapping[str, str]) -> QuantPlan:
        plan = given.replan({})
        return replace(plan, integer=plan.integer | {"not there before"})

    kept = given.replan({"layers_5_conv": "asked"})
    before = Candidate(given.candidate.program, kept, given.candidate.program)
    assert MixedPrecision(replan).ensures(before, given.candidate) == "more is quantised than was"
    assert MixedPrecision(replan).ensures(given.candidate, before) == ""


def test_prices_leave_out_what_is_never_rounded() -> None:
    given = chain(1)
    exact = given.replan(dict.fromkeys(given.candidate.program.values, "asked"))
    assert error_shares(replace(given.candidate, plan=exact), given.held_out.inputs) == {}
    assert only(given, ()) < 1e-3
