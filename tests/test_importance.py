"""Importance: what a small error of a value costs at the outputs, against finite differences and figures by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, TinyDetector, captured, demo_checkpoint, demo_images, seeded
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qexport.calibration.calibrate import calibrate, passes_for
from qexport.calibration.importance import importance
from qexport.calibration.output_error import weighted_outputs
from qexport.calibration.statistics import BINS
from qexport.data.choice import MAX_LEARNED, learned_from
from qexport.data.images import stream
from qexport.programs.capture import capture
from qexport.programs.captured_graph import module_of
from qexport.programs.heads import split_head
from qexport.programs.program import Program, RawNames


def nothing() -> None:
    """No progress is shown."""


class Moved(Interpreter):
    """Runs the graph with one value moved, and keeps those that are asked for."""

    def __init__(self, graph: GraphModule, moved: str, by: Tensor | float, kept: tuple[str, ...]) -> None:
        super().__init__(graph)
        self.moved, self.by, self.kept, self.found = moved, by, kept, dict[str, Tensor]()

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name == self.moved:
            result = result + self.by
        if n.name in self.kept:
            self.found[n.name] = result
        return result


def cost(boxes: tuple[Tensor, Tensor], logits: tuple[Tensor, Tensor]) -> float:
    """By the definition: (as they are, as they are after an error), each (1, c, h, w), a box being l, t, r, b."""
    probabilities = [each.double().sigmoid() for each in logits]
    best = probabilities[0].amax(1) ** 2
    edges = (boxes[1] - boxes[0]).double() ** 2
    left, top, right, bottom = boxes[0].double().unbind(1)
    width, height = (left + right).clamp(min=0.5), (top + bottom).clamp(min=0.5)
    relative = (edges[:, 0] + edges[:, 2]) / width**2 + (edges[:, 1] + edges[:, 3]) / height**2
    largest = [torch.nn.functional.pad(each, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1) for each in probabilities]
    found = [each.flatten(4).amax(-1) for each in largest]
    scores = (found[1] - found[0]) ** 2
    return float((best * relative).sum() / (best.sum() + 1) + scores.sum() / ((found[0] ** 2).sum() + 9))


def test_importance_is_what_moving_each_element_costs(tiny: Program) -> None:
    """Mean over 400 random directions of one image, against moving each of the value's 32 elements by itself."""
    (image,), name = demo_images("train", 1), "deep_conv"
    ((_, pixels),) = stream([image], tiny.input.imgsz, lambda *_: None)
    kept, batch = (name, *tiny.raw.all), torch.from_numpy(pixels)[None]

    def run(by: Tensor | float) -> dict[str, Tensor]:
        moved = Moved(module_of(tiny), name, by, kept)
        with torch.no_grad():
            moved.run(batch)
        return moved.found

    plain, step = run(0.0), 2e-3
    (box,), (logit,) = tiny.raw.boxes, tiny.raw.scores
    costs = []
    for number in range(plain[name].numel()):
        by = torch.zeros(plain[name].numel())
        by[number] = step
        after = run(by.reshape(plain[name].shape))
        costs.append(cost((plain[box], after[box]), (plain[logit], after[logit])) / step**2)
    limit = 2.0 ** math.ceil(math.log2(float(plain[name].abs().max())))
    expected, _ = np.histogram(plain[name].flatten().numpy(), BINS, (-limit, limit), weights=costs)
    found = importance(tiny, [image] * 400, {name: limit}, nothing, 2)[name] / 400
    np.testing.assert_array_equal(found > 0, expected > 0)
    assert found.sum() == pytest.approx(expected.sum(), rel=0.1)
    most = np.argsort(expected)[-8:]
    np.testing.assert_allclose(found[most], expected[most], rtol=0.35)


def error_of(program: Program, raw: dict[str, Tensor], moved: dict[str, Tensor]) -> float:
    """What an error costs by the weighted outputs: they are derived, weights held, and the derivative is squared.

    Gradients of every weighted output along a direction are linear in it, and the derivative by that is what is moved.
    """
    leaves = {name: each.clone().requires_grad_() for name, each in raw.items()}
    every = list(weighted_outputs(program, leaves))
    directions = [torch.zeros_like(each, requires_grad=True) for each in every]
    back = torch.autograd.grad(every, list(leaves.values()), directions, create_graph=True, materialize_grads=True)
    along = torch.zeros(())
    for name, gradient in zip(leaves, back, strict=True):
        along = along + (gradient * (moved[name] - raw[name])).sum()
    forward = torch.autograd.grad(along, directions, materialize_grads=True)
    return float(sum(float(each.double().square().sum()) for each in forward))


@pytest.fixture(scope="module")
def raw(tiny: Program) -> dict[str, Tensor]:
    """Boxes and scores of one level as a detector has them: one position in nine says something."""
    generator = torch.Generator().manual_seed(1)
    (box,), (score,) = tiny.raw.boxes, tiny.raw.scores
    logits = torch.randn(1, 2, 3, 3, generator=generator) - 8
    logits[0, 1, 1, 1] = 1.5
    return {box: torch.rand(1, 4, 3, 3, generator=generator) * 5 + 0.2, score: logits}


def test_errors_cost_what_they_do_to_boxes_and_probabilities(tiny: Program, raw: dict[str, Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    moved = {name: each + torch.randn(each.shape, generator=generator) * 1e-3 for name, each in raw.items()}
    (box,), (score,) = tiny.raw.boxes, tiny.raw.scores
    wanted = cost((raw[box], moved[box]), (raw[score], moved[score]))
    assert error_of(tiny, raw, moved) == pytest.approx(wanted, rel=0.02)


def test_what_says_nothing_weighs_nothing(tiny: Program, raw: dict[str, Tensor]) -> None:
    for name in tiny.raw.all:
        costs = []
        for place in ((1, 1), (2, 2)):
            moved = raw[name].clone()
            moved[0, 1, place[0], place[1]] += 0.01
            costs.append(error_of(tiny, raw, raw | {name: moved}))
        assert costs[1] < 0.01 * costs[0]


def test_a_distribution_of_edges_is_its_expected_value(tiny: Program, raw: dict[str, Tensor]) -> None:
    """Two bins whose logits differ by d: the edge is sigmoid(d), and moves by a quarter of d about 0."""
    program = replace(tiny, layout=replace(tiny.layout, reg_max=2))
    (box,), (score,) = tiny.raw.boxes, tiny.raw.scores
    logits, sure = torch.zeros(1, 8, 3, 3), torch.full((1, 2, 3, 3), 20.0)
    moved = logits.clone()
    moved[0, 1] = 0.01  # the second bin of every left edge; boxes are one cell wide
    found = error_of(program, {box: logits, score: sure}, {box: moved, score: sure})
    assert found == pytest.approx(0.9 * (0.01 / 4) ** 2, rel=1e-3)  # nine objects of ten


def test_outputs_of_unknown_meaning_count_by_their_relative_error_where_there_are_objects(tiny: Program) -> None:
    """As YOLOX has them: whether there is an object, which class it is, and where."""
    names = RawNames(("where", "apart"), ("object", "class"))
    program = replace(tiny, raw=names, guessed=True)
    there = torch.full((1, 1, 2, 2), -20.0)
    there[0, 0, 0, 0] = 20.0
    raw = {
        "where": torch.full((1, 4, 2, 2), 3.0),
        "apart": torch.full((1, 6), 10.0),
        "object": there,
        "class": torch.zeros(1, 2, 2, 2),
    }

    def moved(name: str, *index: int) -> float:
        each = raw[name].clone()
        each[index] += 0.01
        return error_of(program, raw, raw | {name: each})

    assert moved("where", 0, 0, 0, 0) == pytest.approx(0.01**2 / (4 * 3**2), rel=1e-3)  # of four numbers of 3
    assert moved("apart", 0, 0) == pytest.approx(0.01**2 / (6 * 10**2), rel=1e-3)
    assert moved("where", 0, 0, 1, 1) < 1e-6 * moved("where", 0, 0, 0, 0)
    # Two classes of 1/2 where the object is and the object itself, 1 times 1/2: their squares add up to 3/4, and 1.
    assert moved("class", 0, 0, 0, 0) == pytest.approx((0.01 / 4) ** 2 / 1.75, rel=0.02)
    assert moved("class", 0, 0, 1, 1) < 1e-6 * moved("class", 0, 0, 0, 0)


def test_neither_the_order_of_images_nor_threads_change_importance(tiny: Program) -> None:
    images = demo_images("train", 5)
    one = calibrate(tiny, images, nothing, workers=1, weighted=True).statistics
    for other in (
        calibrate(tiny, images[::-1], nothing, workers=1, weighted=True).statistics,
        calibrate(tiny, images, nothing, workers=3, weighted=True).statistics,
    ):
        measured = {name for name, each in one.items() if each.importance is not None}
        assert measured == {name for name, each in other.items() if each.importance is not None}
        assert {"deep_conv", *tiny.raw.all} <= measured
        for name in measured:
            np.testing.assert_array_equal(one[name].importance, other[name].importance)


def test_importance_lies_where_elements_are(tiny: Program) -> None:
    for name, each in calibrate(tiny, demo_images("train", 3), nothing, weighted=True).statistics.items():
        if each.importance is not None:
            assert tiny.values[name].operation != "sigmoid"
            assert each.importance.dtype == np.float64
            assert each.importance.sum() > 0
            assert not each.importance[each.counts == 0].any(), name


def test_it_is_measured_where_it_is_asked_for_on_some_of_the_images(tiny: Program) -> None:
    plain = calibrate(tiny, demo_images("train", 1), nothing).statistics
    assert all(each.importance is None for each in plain.values())
    images = demo_images("train", 100)
    chosen = learned_from(images)
    assert len(set(chosen)) == MAX_LEARNED
    assert chosen == learned_from(images[::-1])
    assert passes_for(tiny, 100) == 100
    assert passes_for(tiny, 100, weighted=True) == 100 + MAX_LEARNED
    steps: list[None] = []
    calibrate(tiny, images[:3], lambda: steps.append(None), weighted=True)
    assert len(steps) == passes_for(tiny, 3, weighted=True) == 6


@pytest.mark.parametrize("batch", [1, 2])
def test_every_watched_value_of_a_detector_has_it(batch: int) -> None:
    program = capture(split_head(demo_checkpoint().module, "one2many", SMALL), SMALL, batch)
    found = calibrate(program, demo_images("train", 2), nothing, weighted=True).statistics
    without = {program.values[name].operation for name, each in found.items() if each.importance is None}
    assert without == {"sigmoid", "input"}


def test_weights_get_no_gradient() -> None:
    module = seeded(TinyDetector())
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    program = captured(module)
    calibrate(program, demo_images("train", 1), nothing, weighted=True)
    assert all(parameter.grad is None for parameter in module_of(program).parameters())
