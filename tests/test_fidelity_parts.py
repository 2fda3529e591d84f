"""Fidelity taken apart, and its interval: boxes whose overlap and edges are known by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import demo_checkpoint

from qexport.detections.detections import Detections
from qexport.detections.layout import ROTATED
from qexport.detections.matching import CONFIDENCE
from qexport.measurement.accuracy import Accuracy, score_against
from qexport.measurement.average_precision import ImageScores, Scores
from qexport.measurement.evidence.bootstrap import corrected_interval
from qexport.measurement.evidence.fidelity_parts import MatchedBoxes
from qexport.measurement.evidence.gather import Evidence, fidelity_parts
from qexport.measurement.evidence.matched_boxes import edge_errors, matched_boxes
from qexport.measurement.image_detections import ImageDetections
from qexport.reporting.assemble import accuracy_info
from qexport.reporting.fidelity_text import fidelity_text
from qexport.reporting.report import ArtifactReport

PERFECT = 0.995
"""What Ultralytics' interpolation gives where everything is found and nothing else."""
Row = tuple[float, float, float, float]


def image(*boxes: Row, score: float = 0.9) -> ImageDetections:
    """One image with boxes of class 0."""
    count = len(boxes)
    found = Detections(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.full(count, score, np.float32),
        np.zeros(count, np.int64),
        np.zeros((count, 0), np.float32),
    )
    return ImageDetections(Path("a.jpg"), (640, 480), found)


def rotated(*rows: tuple[float, float, float, float, float]) -> Detections:
    table, count = np.array(rows, np.float32), len(rows)
    return Detections(table[:, :4], np.ones(count, np.float32), np.zeros(count, np.int64), table[:, 4:], ROTATED)


def test_a_shifted_box_has_the_overlap_and_the_edge_error_of_its_shift() -> None:
    small, medium, large = (0.0, 0.0, 20.0, 20.0), (100.0, 100.0, 150.0, 150.0), (200.0, 200.0, 400.0, 300.0)
    reference = {"a": image(small, medium), "b": image(large, (500.0, 0.0, 510.0, 10.0))}
    # Two pixels to the right: 18 of 22 columns in common. Ten taller: 50 of 60 rows. The large one is the same, and
    # the other small one is not found.
    own = {"a": image((2.0, 0.0, 22.0, 20.0), (100.0, 100.0, 150.0, 160.0)), "b": image(large, score=0.01)}
    every, *sizes = matched_boxes(reference, own, CONFIDENCE)
    assert [astuple(row)[:3] for row in sizes] == [("small", 2, 1), ("medium", 1, 1), ("large", 1, 1)]
    figures = [(18 / 22, 1.0, 2.0), (50 / 60, 2.5, 8.5), (1.0, 0.0, 0.0)]
    for row, figure in zip(sizes, figures, strict=True):
        assert astuple(row)[3:] == pytest.approx(figure)
    # Of twelve edges two are 2 pixels off and one 10: the 95th percentile lies 0.45 of the way from 2 to 10.
    assert astuple(every)[:3] == ("all", 4, 3)
    assert astuple(every)[3:] == pytest.approx(((18 / 22 + 50 / 60 + 1) / 3, 14 / 12, 5.6))


def test_boxes_of_the_float_file_that_are_not_confident_and_images_without_any_do_not_count() -> None:
    box = (0.0, 0.0, 20.0, 20.0)
    assert matched_boxes({"a": image(box, score=0.2), "b": image()}, {"a": image(box), "b": image(box)}, 0.25) == ()
    (every, small) = matched_boxes({"a": image(box)}, {"a": image()}, 0.25)
    assert every == MatchedBoxes("all", 1, 0, None, None, None)
    assert small.size == "small"


@pytest.mark.parametrize(("side", "size"), [(31, "small"), (32, "medium"), (95, "medium"), (96, "large")])
def test_sizes_are_those_of_coco(side: float, size: str) -> None:
    found = {"a": image((0.0, 0.0, side, side))}
    assert [row.size for row in matched_boxes(found, found, 0.25)] == ["all", size]


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2])
def test_edges_of_rotated_boxes_are_compared_along_their_normals(angle: float) -> None:
    # Three pixels along the box and one across, six longer: its ends lie 0 and 6 off, its sides 1.
    x, y = 3 * np.cos(angle) - np.sin(angle), 3 * np.sin(angle) + np.cos(angle)
    one, other = rotated((50, 50, 40, 20, angle)), (50 + x, 50 + y, 46, 20, angle)
    assert sorted(edge_errors(one, rotated(other))[0]) == pytest.approx([0, 1, 1, 6], abs=1e-4)
    turned = (*other[:2], 20, 46, angle + np.pi / 2)  # the same box, written otherwise
    assert sorted(edge_errors(one, rotated(turned))[0]) == pytest.approx([0, 1, 1, 6], abs=1e-4)


def matches(correct: Sequence[Sequence[bool]]) -> Scores:
    """An image for each row: one label and one detection of class 0, right at each of two thresholds or not."""
    return {
        f"{number:03d}": ImageScores(np.array([row]), np.array([0.9 - number / 1000]), np.zeros(1), np.zeros(1))
        for number, row in enumerate(correct)
    }


def accuracy_of(scores: Scores, found: dict[str, ImageDetections], fidelity: float) -> Accuracy:
    return Accuracy(None, None, fidelity, len(scores), (), {}, fidelity_scores=scores, found=found)


def test_an_identical_pair_has_fidelity_one_without_any_spread() -> None:
    found = {f"{number:03d}": image((0.0, 0.0, 20.0, 20.0)) for number in range(30)}
    same = accuracy_of(matches([[True, True]] * 30), found, PERFECT)
    parts = fidelity_parts("detect", same, same)
    assert parts is not None
    assert (parts.at_50, *parts.interval, *(parts.at_50_interval or ())) == pytest.approx([PERFECT] * 5)
    assert [row.mean_iou for row in parts.matched] == [1.0, 1.0]
    assert [row.edge_error_p95 for row in parts.matched] == [0.0, 0.0]


def test_what_is_lost_and_what_moved_are_told_apart() -> None:
    """All is found at an IoU of 0.5; at the other threshold a fifth of it is not, the most confident first."""
    scores = matches([[True, number % 5 > 0] for number in range(100)])
    parts = fidelity_parts("detect", accuracy_of(scores, {}, 0.8), accuracy_of({}, {}, 1.0))
    assert parts is not None
    assert parts.at_50 == pytest.approx(PERFECT)
    assert parts.at_50_interval == pytest.approx((PERFECT, PERFECT))
    low, high = parts.interval
    assert 0.7 < low < 0.8 < high < 0.9


def test_a_classifier_has_the_interval_of_a_share_and_no_boxes() -> None:
    scores = {
        f"{n:03d}": ImageScores(np.array([[n % 10 > 0]]), np.ones(1), np.zeros(1), np.zeros(1)) for n in range(400)
    }
    parts = fidelity_parts("classify", accuracy_of(scores, {}, 0.9), accuracy_of({}, {}, 1.0))
    assert parts is not None
    half = 1.96 * (0.9 * 0.1 / 400) ** 0.5
    assert parts.interval == pytest.approx((0.9 - half, 0.9 + half), abs=0.006)
    assert (parts.at_50, parts.at_50_interval, parts.matched) == (None, None, ())


@pytest.mark.parametrize("seed", range(5))
def test_an_interval_holds_its_figure_where_rare_classes_lift_the_resamples(seed: int) -> None:
    """A class of one image that is not found counts in two thirds of the resamples only."""
    random = np.random.default_rng(seed)
    figure = 0.9
    lifted = random.normal(figure + 0.03, 0.01, 1000)
    low, high = corrected_interval(lifted, figure)
    assert low <= figure <= high
    assert high < figure + 0.03  # percentiles would have ended at 0.95
    assert corrected_interval(random.normal(figure, 0.01, 1000), figure) == pytest.approx(
        (figure - 0.0196, figure + 0.0196), abs=0.003
    )
    assert corrected_interval(np.array([np.nan]), figure) == (figure, figure)


def test_one_line_says_what_fidelity_is_made_of() -> None:
    demo_checkpoint()  # repairs torchvision where it needs it
    boxes = torch.tensor([[0.0, 0.0, 20.0, 20.0]])
    rows = torch.tensor([[2.0, 0.0, 22.0, 20.0, 0.9, 0.0]])
    truth = {name: (boxes, torch.zeros(1)) for name in "ab"}
    # An IoU of 9/11 counts at seven of the ten thresholds, 0.5 to 0.8.
    assert score_against(dict.fromkeys("ab", rows), truth) == pytest.approx(0.7 * PERFECT)
    reference = accuracy_of({}, dict.fromkeys("ab", image((0.0, 0.0, 20.0, 20.0))), 1.0)
    scores = {name: ImageScores(np.ones((1, 2), bool), np.ones(1), np.zeros(1), np.zeros(1)) for name in "ab"}
    own = accuracy_of(scores, dict.fromkeys("ab", image((2.0, 0.0, 22.0, 20.0))), PERFECT)
    info = accuracy_info(own, reference, Evidence(fidelity=fidelity_parts("detect", own, reference)), {})
    assert (info.map, info.drop, info.retention) == (None, None, None)
    text = fidelity_text(ArtifactReport("a_int8.onnx", "onnx", "int8", "", 1, accuracy=info))
    assert text == (
        "0.995 [0.995, 0.995]; at IoU 0.50 0.995 [0.995, 0.995]; 2 of 2 boxes matched; mean IoU 0.818; "
        "edges 1.00 px off (95 % within 2.00; small 1.00)"
    )
    assert fidelity_text(ArtifactReport("a_fp32.onnx", "onnx", "fp32", "", 1)) == ""
