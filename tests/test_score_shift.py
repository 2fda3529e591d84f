"""Scores that have fallen, and biases that lift them again: as far as enough was seen."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import demo_images, synthetic_statistics
from hard_numbers import layers

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.passes import optimise
from qexport.optimisation.score_shift import ScoreShift
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.program import Program
from qexport.progress import Silent

IMAGES = demo_images("train", 24)


def fallen(program: Program, *lost: float) -> Candidate:
    """Nothing is quantised, but each class has lost some of its logits."""
    plan = QuantPlan("by hand", program.fingerprint, frozenset(), dict.fromkeys(program.values, TensorQuant("float32")))
    bias = program.graph.parameter("cls.bias") - torch.tensor(lost)
    return Candidate(program, plan, program).with_parameters({"cls.bias": bias})


def spread(program: Program) -> Program:
    """Logits around 0, so that there are objects of all scores."""
    return program.with_parameters({"cls.weight": program.graph.parameter("cls.weight") / 8})


@pytest.fixture(scope="module")
def program() -> Program:
    return spread(layers())


def test_what_every_class_has_lost_comes_back(program: Program) -> None:
    made = ScoreShift()(fallen(program, 0.3, 0.8), IMAGES, Silent())
    back = made.program.graph.parameter("cls.bias") - program.graph.parameter("cls.bias")
    assert back.tolist() == pytest.approx([0, 0], abs=0.05)
    assert ScoreShift().ensures(fallen(program, 0.3, 0.8), made) == ""


def test_few_objects_move_scores_by_less(program: Program) -> None:
    """One image has some ten peaks; 32 that lose nothing are taken to stand beside them, and no class is looked at."""
    one, many = (ScoreShift()(fallen(program, 0.5, 0.5), images, Silent()) for images in (IMAGES[:1], IMAGES))
    lost = [
        0.5 - float((each.program.graph.parameter("cls.bias") - program.graph.parameter("cls.bias")).abs().max())
        for each in (one, many)
    ]
    assert 0.05 < lost[0] < lost[1] < 0.5


def test_the_record_has_the_shift_on_images_that_were_not_seen(program: Program) -> None:
    made, (record,) = optimise(fallen(program, 0.5, 0.5), (ScoreShift(),), IMAGES, Silent())
    assert record.kept
    said = "confidences of 24 images, each left out of the fit in its turn, have shifted by"
    found = re.search(rf"{said} ([+-][\d.]+), before by ([+-][\d.]+)$", record.reason)
    assert found
    after, before = map(float, found.groups())
    assert abs(after) < 0.02 < 0.06 < -before
    assert made.plan.tensors == fallen(program, 0.5, 0.5).plan.tensors


def test_it_promises_to_change_nothing_else(program: Program) -> None:
    given = Candidate(program, make_plan(program, synthetic_statistics(program.values), TFLITE), program)
    weight = program.graph.parameter("box.bias")
    other = given.with_parameters({"box.bias": weight + 1})
    assert ScoreShift().ensures(given, other) == "box.bias has changed, which is no bias of scores"
