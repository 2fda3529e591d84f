"""The distance that passes are judged by: of hand-made raw outputs, and how little it moves for nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import demo_images
from torch import Tensor

from qexport.calibration.calibrate import calibrate
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.confidences import confidence_shift
from qexport.optimisation.distance import (
    Distance,
    HeldOut,
    distance,
    distance_of,
    hold_out,
    margin,
    parts,
    shift_margin,
)
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.program import Program

HERE = 0, slice(None), 1, 2
"""The anchor where an object is."""
NOTHING = 3.2e-5
"""Root of what keeps gradients finite."""


def logit(score: float) -> float:
    return float(torch.logit(torch.tensor(score, dtype=torch.float64)))


def seen(score: float = 0.9) -> tuple[Tensor, Tensor]:
    """Boxes (1, 4, 4, 4) of two cells to each side, and logits (1, 2, 4, 4) of one object on nothing."""
    boxes, scores = torch.full((1, 4, 4, 4), 2.0), torch.full((1, 2, 4, 4), -20.0)
    scores[0, 1, 1, 2] = logit(score)
    return boxes, scores


def test_an_edge_that_moves_by_a_tenth_of_the_width(tiny: Program) -> None:
    """IoU is 4 / 4.4; the object counts 0.9^2, and so many times beside the one that is always there."""
    boxes, scores = seen()
    boxes[0, 2, 1, 2] += 0.4
    found = parts(tiny, seen(), (boxes, scores))
    assert float(found[1]) == pytest.approx((0.81 / 1.81 / 11) ** 0.5, rel=1e-4)
    assert [float(found[0]), float(found[2])] == pytest.approx([0, 0], abs=NOTHING)


def test_a_probability_that_falls(tiny: Program) -> None:
    """It is the largest of nine anchors; nine more are always certain."""
    found = parts(tiny, seen(0.9), seen(0.8))
    assert float(found[0]) == pytest.approx((9 * 0.1**2 / (9 * 0.81 + 9)) ** 0.5, rel=1e-4)
    assert float(found[1]) == pytest.approx(0, abs=NOTHING)


def test_equal_programs_have_no_distance_and_finite_gradients(tiny: Program) -> None:
    for boxes, scores in (seen(), (torch.zeros(1, 4, 4, 4), torch.full((1, 2, 4, 4), -20.0))):
        given = boxes.clone().requires_grad_(), scores.clone().requires_grad_()
        total = torch.stack(parts(tiny, (boxes, scores), given)).sum()
        total.backward()
        assert 0 <= float(total.detach()) < 3.1 * NOTHING
        for each in given:
            assert each.grad is not None
            assert torch.isfinite(each.grad).all()


def test_a_step_along_the_gradient_brings_programs_nearer(tiny: Program) -> None:
    boxes, scores = seen(0.7)
    given = (boxes + 0.3).requires_grad_(), scores.clone().requires_grad_()
    before = torch.stack(parts(tiny, seen(), given)).sum()
    before.backward()
    after = [each.detach() - 0.1 * each.grad for each in given if each.grad is not None]
    assert float(torch.stack(parts(tiny, seen(), after)).sum()) < 0.99 * float(before.detach())


def test_the_background_weighs_nothing(tiny: Program) -> None:
    """Boxes that nobody looks at may be anything, and so may scores of a thousandth."""
    boxes, scores = seen()
    elsewhere = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    elsewhere[0, 0, 1, 2] = False
    moved = torch.where(elsewhere, 9.0, boxes), torch.where(elsewhere, logit(0.001), scores)
    real = boxes, torch.where(elsewhere, logit(0.002), scores)
    assert [float(each) for each in parts(tiny, real, moved)] == pytest.approx([0, 0, 0], abs=6e-3)
    boxes = boxes.clone()
    boxes[HERE] = 9.0
    assert float(parts(tiny, real, (boxes, scores))[1]) > 0.5


def test_the_shift_is_of_objects_and_not_of_anchors(tiny: Program) -> None:
    real, lower, neighbour = seen(0.9), seen(0.8), seen(0.2)
    neighbour[1][0, 1, 2, 2] = logit(0.9)  # another anchor has the object now
    assert confidence_shift(tiny, real, lower)[0].tolist() == pytest.approx([-0.1, 1])
    assert confidence_shift(tiny, real, neighbour)[0].tolist() == pytest.approx([0, 1], abs=1e-6)
    assert confidence_shift(tiny, seen(0.2), lower)[0].tolist() == [0, 0]
    held_out = HeldOut(tiny, (torch.zeros(1, 3, 8, 8),) * 2, (real, seen(0.5)))
    assert distance_of(tiny, lambda _: lower, held_out).shift == pytest.approx((-0.1 + 0.3) / 2)
    assert distance_of(tiny, lambda _: lower, replace(held_out, raw=(seen(0.1),) * 2)).shift is None


def test_a_gain_is_that_of_each_image(tiny: Program) -> None:
    none = np.zeros(3)
    before, after = (Distance(np.array(each), none, none) for each in ([1.0, 2.0, 3.0], [0.9, 1.8, 2.7]))
    assert margin(before, after) == pytest.approx((0.2, 0.1 / 3**0.5))
    assert margin(Distance(none[:1], none[:1], none[:1]), Distance(none[:1], none[:1], none[:1])) == (0, np.inf)


def test_the_noise_of_a_shift_is_that_of_a_ratio() -> None:
    """Three images of one, two and one objects: by Cochran's formula of the residuals from the mean."""
    none, sums = np.zeros(3), np.array([-0.1, -0.3, 0.0])
    before = Distance(none, none, none, np.stack((sums, [1, 2, 1]), axis=1))
    after = Distance(none, none, none, np.stack((np.add(sums, [0.12, 0.24, 0.12]), [1, 2, 1]), axis=1))
    residuals = [-0.1 + 0.1, -0.3 + 0.2, 0.0 + 0.1]
    error = (3 * (0.1**2 + 0.1**2 - sum(residuals) ** 2 / 3) / 2) ** 0.5 / 4
    assert shift_margin(before, after) == pytest.approx((0.1 - 0.02, error))
    assert shift_margin(before, Distance(none, none, none)) == (0, np.inf)


def test_scales_that_change_by_nothing_move_it_within_its_noise_and_wider_steps_beyond(demo_program: Program) -> None:
    images = demo_images("train", 16)
    statistics = calibrate(demo_program, images[:4], lambda: None, 1).statistics
    plan = make_plan(demo_program, statistics, TFLITE)
    held_out = hold_out(demo_program, images)
    before, wider, *same = (
        distance(Candidate(demo_program, scaled(plan, factor), demo_program), held_out)
        for factor in (1, 4, 1 + 1e-6, 1 - 1e-6)
    )
    moved = [margin(each, before) for each in (wider, *same)]
    assert all(abs(gain) < 3 * noise for gain, noise in moved[1:])
    assert moved[0][0] > 5 * moved[0][1]
    assert moved[0][0] > 5 * max(abs(gain) for gain, _ in moved[1:])


def scaled(plan: QuantPlan, factor: float) -> QuantPlan:
    """Steps of all activations but those that are prescribed, times a factor."""
    tensors = {
        name: each
        if each.axis is not None or each.rule == "fixed"
        else replace(each, scale=tuple(scale * factor for scale in each.scale))
        for name, each in plan.tensors.items()
    }
    return replace(plan, tensors=tensors)
