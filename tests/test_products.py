"""Scores that are products, as YOLOX's of objectness and class: their distance, their shift and its correction."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import TinyDecode, captured, demo_images, seeded
from hard_numbers import Layers
from torch import Tensor, nn

from qexport.detections.layout import HeadLayout
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.confidences import confidence_shift, score_levels
from qexport.optimisation.distance import parts
from qexport.optimisation.passes import optimise
from qexport.optimisation.score_shift import ScoreShift
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.programs.program import Program, RawNames
from qexport.progress import Silent


class ProductDecode(TinyDecode):
    """One output more."""

    def forward(self, boxes: Tensor, scores: Tensor, objects: Tensor | None = None) -> Tensor:
        assert objects is not None
        return torch.cat((boxes.flatten(2), scores.flatten(2).sigmoid() * objects.flatten(2).sigmoid()), dim=1)


class Product(Layers):
    """`Layers` with an objectness."""

    def __init__(self) -> None:
        super().__init__()
        self.obj = nn.Conv2d(8, 1, 1)
        made: Any = ProductDecode()
        self.decode = made

    def forward(self, images: Tensor) -> Tensor:
        deep = self.up(self.act(self.point(self.act(self.depthwise(self.first(images))))))
        decoded: Tensor = self.decode(self.box(deep), self.cls(deep), self.obj(deep))
        return decoded


@pytest.fixture(scope="module")
def program() -> Program:
    """As if it came from a file: nobody says what the outputs are. Logits lie around 0."""
    made = captured(seeded(Product()))
    (boxes,), (scores,), (objects,) = made.raw.boxes, made.raw.scores, made.raw.extras
    unknown = HeadLayout((), made.layout.imgsz, 0, head="unknown")
    small = {name: made.graph.parameter(name) / 8 for name in ("cls.weight", "obj.weight")}
    return replace(made.with_parameters(small), raw=RawNames((boxes,), (scores, objects)), layout=unknown, guessed=True)


def seen(objects: float, score: float, elsewhere: float = -20.0) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, logits of two classes, objectness of a level of 4 x 4, with one object on a background."""
    boxes, scores, there = torch.ones(1, 4, 4, 4), torch.full((1, 2, 4, 4), -9.0), torch.full((1, 1, 4, 4), elsewhere)
    scores[0, 1, 1, 2], there[0, 0, 1, 2] = (float(torch.logit(torch.tensor(each))) for each in (score, objects))
    return boxes, scores, there


def test_levels_are_found_by_their_cells(program: Program) -> None:
    assert score_levels(program) == (program.raw.scores,)
    assert score_levels(replace(program, raw=RawNames((), program.raw.scores))) == ()  # boxes and scores in one output


def test_the_shift_is_that_of_the_product(program: Program) -> None:
    moved = confidence_shift(program, seen(0.9, 0.8), seen(0.8, 0.5))
    assert moved[0].tolist() == pytest.approx([0.8 * 0.5 - 0.9 * 0.8, 1], abs=1e-5)


def test_a_class_counts_where_there_is_an_object(program: Program) -> None:
    """Nine anchors of which this is the largest, beside nine that are certain; boxes as one of four such objects."""
    real, moved = seen(0.9, 0.8), seen(0.9, 0.8)
    moved[1][0, :, 3] = 9.0  # classes of what is no object
    moved[0][0, :, 3] = 9.0
    assert [float(each) for each in parts(program, real, moved)] == pytest.approx([0, 0, 0], abs=5e-3)
    lower, wider = seen(0.9, 0.5), seen(0.9, 0.8)
    wider[0][0, :, 1, 2] = 1.5
    error = 9 * (0.9 * 0.3) ** 2 / (9 * 0.72**2 + 9)
    assert float(parts(program, real, lower)[0]) == pytest.approx(error**0.5, rel=1e-4)
    share = 4 * 0.5**2 * 0.72**2 / (4 * 0.72**2 + 4)
    assert float(parts(program, real, wider)[2]) == pytest.approx(share**0.5, rel=1e-4)


def test_what_each_factor_has_lost_comes_back(program: Program) -> None:
    plan = QuantPlan("by hand", program.fingerprint, frozenset(), dict.fromkeys(program.values, TensorQuant("float32")))
    lost = {
        "cls.bias": program.graph.parameter("cls.bias") - 0.4,
        "obj.bias": program.graph.parameter("obj.bias") - 0.8,
    }
    made, (record,) = optimise(
        Candidate(program, plan, program).with_parameters(lost), (ScoreShift(),), demo_images("train", 24), Silent()
    )
    assert record.kept
    assert record.reason.count("left out of the fit in its turn, have shifted by")
    for name in lost:
        back = made.program.graph.parameter(name) - program.graph.parameter(name)
        assert back.abs().max() < 0.1, name
