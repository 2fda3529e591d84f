"""Scores that have fallen, and biases that lift them again: as far as enough was seen."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import demo_images, synthetic_statistics
from hard_numbers import layers

from qexport.optimisation.candidate import Candidate, batches
from qexport.optimisation.confidences import peaks
from qexport.optimisation.distance import raw_outputs
from qexport.optimisation.passes import optimise
from qexport.optimisation.score_shift import LEAST, MIN_PEAKS, PRIOR, ScoreShift
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.program import Program
from qexport.progress import Silent

IMAGES = demo_images("train", 24)
RARE = 5.5
"""By so much the logits of a class are lower, so that few are over the least score."""


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


def test_a_class_that_is_seldom_seen_is_not_moved_by_what_another_has_lost(program: Program) -> None:
    """It has lost .2, the other .8: between the two, of its own as much as its few peaks say beside 32 of the level."""
    rare = program.with_parameters({"cls.bias": program.graph.parameter("cls.bias") - torch.tensor([0.0, RARE])})
    count, graph = torch.zeros(2), raw_outputs(rare)
    for batch in batches(rare, IMAGES):
        raw = graph(batch)
        for level in peaks(rare, raw, raw, LEAST):
            count += torch.bincount(level.factors[rare.raw.scores[0]].channels, minlength=2)
    seldom = float(count[1])
    assert 5 <= seldom < MIN_PEAKS < count[0]
    made = ScoreShift()(fallen(rare, 0.8, 0.2), IMAGES, Silent())
    back = made.program.graph.parameter("cls.bias") - fallen(rare, 0.8, 0.2).program.graph.parameter("cls.bias")
    assert float(back[0]) == pytest.approx(0.8, abs=0.01)
    assert 0.2 < back[1] <= (seldom * 0.2 + PRIOR * 0.8) / (seldom + PRIOR)


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
