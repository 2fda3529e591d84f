"""Detections in image pixels, their pairs, how their scores move, and the gallery: all by hand."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import demo_checkpoint
from torch import Tensor

from qexport.detections.detections import Detections, upright_boxes
from qexport.detections.layout import ROTATED
from qexport.detections.matching import best_overlaps, pairs
from qexport.measurement.evidence.confidence import confidence_shift
from qexport.measurement.evidence.gallery import MAX_BYTES, gallery, thumbnail
from qexport.measurement.image_detections import ImageDetections, answer_in, found_in

Row = tuple[float, float, float, float, float, int]
"""Corners, score, class."""


def boxed(*rows: Row) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64), table[:, 6:])


def found(*rows: Row, path: Path = Path("a.jpg")) -> ImageDetections:
    return ImageDetections(path, (100, 80), boxed(*rows))


def rotated(*rows: tuple[float, ...]) -> Detections:
    table = np.array(rows, np.float32)
    return Detections(table[:, :4], table[:, 5], table[:, 6].astype(np.int64), table[:, 4:5], ROTATED)


def answer(*probabilities: float) -> ImageDetections:
    return answer_in(Path("a.jpg"), torch.tensor(probabilities))


@pytest.fixture(scope="module", autouse=True)
def _ultralytics() -> None:
    demo_checkpoint()  # repairs torchvision where it needs it


def batch_of(ratio: float, across: float, down: float) -> dict[str, Any]:
    """A batch of 320 by 320 pixels with one image of 200 by 100."""
    return {
        "img": torch.zeros(1, 3, 320, 320),
        "ori_shape": [(100, 200)],
        "ratio_pad": [((ratio, ratio), (across, down))],
    }


def prediction(boxes: Tensor) -> dict[str, Tensor]:
    return {"bboxes": boxes, "conf": torch.full((len(boxes),), 0.5), "cls": torch.zeros(len(boxes))}


def test_boxes_are_brought_back_from_the_letterbox() -> None:
    # 200 x 100 pixels became 320 x 160, with 80 rows of grey above.
    given = torch.tensor([[64.0, 144, 192, 176], [-16, 0, 400, 320]])
    here = found_in(Path("a.jpg"), prediction(given), batch_of(1.6, 0, 80), 0)
    assert here.size == (200, 100)
    np.testing.assert_allclose(here.detections.boxes, [[40, 40, 120, 60], [0, 0, 200, 100]])
    assert here.detections.box_format == "corners"
    assert given[0, 0] == 64  # a copy: the validator goes on with its own


def test_rotated_boxes_keep_their_angle() -> None:
    given = torch.tensor([[160.0, 160, 64, 32, 0.5]])
    here = found_in(Path("a.jpg"), prediction(given), batch_of(1.6, 0, 80), 0)
    np.testing.assert_allclose(here.detections.rotated_boxes, [[100, 50, 40, 20, 0.5]])
    assert here.detections.box_format == "rotated"


A: Row = (0, 0, 10, 10, 0.9, 0)
B: Row = (50, 50, 60, 60, 0.8, 1)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([A, B], [B, A], [(0, 1), (1, 0)]),
        ([A], [(0, 0, 10, 6, 0.1, 0)], [(0, 0)]),  # IoU 0.6
        ([A], [(0, 0, 10, 4, 0.9, 0)], []),  # IoU 0.4
        ([A], [(0, 0, 10, 10, 0.9, 1)], []),  # another class
        ([A], [(0, 0, 10, 10, 0.3, 0), (0, 0, 10, 8, 0.7, 0)], [(0, 1)]),  # the more confident one chooses first
        ([(0, 0, 10, 7, 0.9, 0), A], [A], [(1, 0)]),  # and takes what it overlaps most
        ([A], [], []),
        ([], [A], []),
    ],
)
def test_pairs_by_hand(one: list[Row], other: list[Row], expected: list[tuple[int, int]]) -> None:
    assert sorted(pairs(boxed(*one), boxed(*other))) == expected


def test_the_least_confident_do_not_change_the_pairs_of_the_rest() -> None:
    other = boxed((0, 0, 10, 8, 0.7, 0), (0, 0, 10, 10, 0.1, 0), (50, 50, 60, 60, 0.6, 1))
    assert pairs(boxed(A, B), other) == [(0, 0), (1, 2)]
    assert pairs(boxed(A, B), other.confident(0.25)) == [(0, 0), (1, 1)]


def test_turned_boxes_pair_by_how_they_are_rotated() -> None:
    long = (50.0, 40.0, 40.0, 4.0)
    one, quarter = rotated((*long, 0.0, 0.9, 0)), rotated((*long, np.pi / 2, 0.9, 0))
    assert pairs(one, one) == [(0, 0)]
    assert pairs(one, quarter) == []


def test_what_the_other_side_has_at_all_is_asked_of_each_by_itself() -> None:
    # Two of one object: both are there for the first question, one of them pairs for the second.
    twice, once = boxed(A, (0, 0, 10, 8, 0.7, 0), B), boxed((0, 0, 10, 10, 0.1, 0), (*B[:4], 0.9, 0))
    rows, area = best_overlaps(twice, once)
    assert rows[:2].tolist() == [0, 0]
    np.testing.assert_allclose(area, [1, 0.8, 0])  # the last is of another class
    assert pairs(twice, once) == [(0, 0)]
    assert best_overlaps(twice, boxed())[1].tolist() == [0, 0, 0]


def test_boxes_of_two_kinds_are_not_compared() -> None:
    with pytest.raises(ValueError, match="boxes of two kinds do not overlap: corners, rotated"):
        pairs(boxed(A), rotated((50, 40, 20, 20, 0.0, 0.9, 0)))


def test_the_upright_box_around_a_rotated_one_stays_in_the_image() -> None:
    # A square of side 20 on its tip is 20 sqrt(2) wide.
    half = 10 * 2**0.5
    given = rotated((50, 40, 20, 20, np.pi / 4, 0.9, 0), (0, 80, 20, 20, np.pi / 4, 0.9, 0))
    box, cut = upright_boxes(given, (100, 80))
    np.testing.assert_allclose(box, [50 - half, 40 - half, 50 + half, 40 + half], rtol=1e-6)
    np.testing.assert_allclose(cut, [0, 80 - half, half, 80], rtol=1e-6)


def test_scores_are_compared_pair_by_pair() -> None:
    reference = {"a": found(A, B, (20, 20, 30, 30, 0.2, 0)), "b": found(A)}
    own = {"a": found((*A[:4], 0.5, 0), (*B[:4], 0.9, 1), (20, 20, 30, 30, 0.9, 0)), "b": found((*A[:4], 0.1, 0))}
    shift = confidence_shift(reference, own, 0.25)
    assert shift is not None
    assert shift.matched == 3  # not the one below the threshold; that 0.9 became 0.1 does count
    assert (shift.mean_float, shift.mean) == pytest.approx((2.6 / 3, 1.5 / 3))
    assert shift.shift == pytest.approx((-0.4 + 0.1 - 0.8) / 3)
    assert shift.p50 == pytest.approx(-0.4)
    assert shift.p05 == pytest.approx(-0.8 + 0.1 * 0.4)  # a tenth of the way from the least to the middle one
    assert len(shift.bins) == len(shift.counts) + 1
    hit = {round(low, 3): count for low, count in zip(shift.bins, shift.counts, strict=False) if count}
    assert sum(hit.values()) == 3
    assert hit[-0.5] == 1  # -0.8 lies beyond
    assert confidence_shift({"a": found(B)}, {"a": found(A)}, 0.25) is None


def test_of_a_classifier_the_float_answers_probabilities_are_compared() -> None:
    reference = {"a": answer(0.1, 0.7, 0.2), "b": answer(0.6, 0.3, 0.1)}
    shift = confidence_shift(reference, {"a": answer(0.2, 0.5, 0.3), "b": answer(0.2, 0.7, 0.1)}, 0.25)
    assert shift is not None
    assert shift.matched == 2
    assert (shift.mean_float, shift.mean) == pytest.approx((0.65, 0.35))
    assert shift.shift == pytest.approx(-0.3)
    assert gallery(reference, {"a": answer(1, 0, 0), "b": answer(1, 0, 0)}, 0.25) == ()


def picture(folder: Path, name: str, width: int, height: int) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)  # nothing is larger as JPEG
    cv2.imwrite(str(folder / name), pixels)
    return folder / name


def pixels_of(content: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)


def decoded(url: str) -> Any:
    head, _, text = url.partition(",")
    assert head == "data:image/jpeg;base64"
    content = base64.b64decode(text, validate=True)
    assert len(content) <= MAX_BYTES
    return pixels_of(content)


def test_the_gallery_shows_what_was_lost_and_gained_most_first(tmp_path: Path) -> None:
    a, b, c = (picture(tmp_path, name, 100, 80) for name in ("a.jpg", "b.jpg", "c.jpg"))
    weak: Row = (20, 20, 30, 30, 0.2, 0)
    reference = {"0-a": found(A, B, path=a), "1-b": found(A, B, weak, path=b), "2-c": found(A, path=c)}
    own = {
        "0-a": found((0.04, 0, 10, 10, 0.51239, 0), path=a),
        "1-b": found((0, 0, 10, 10, 0.24, 0), (70, 70, 90, 90.06, 0.5, 1), path=b),
        "2-c": found(A, weak, path=c),
    }
    first, second = gallery(reference, own, 0.25)
    assert (first.image, first.path, first.width, first.height) == ("b.jpg", str(b), 100, 80)
    assert first.kept == ()
    assert [box["score"] for box in first.lost] == [0.9, 0.8]
    assert first.gained == ({"box": [70.0, 70.0, 90.0, 80.0], "score": 0.5, "class": 1},)  # within the image
    assert second.image == "a.jpg"
    assert second.kept == ({"box": [0.0, 0.0, 10.0, 10.0], "score": 0.9, "class": 0},)
    assert second.lost == ({"box": [50.0, 50.0, 60.0, 60.0], "score": 0.8, "class": 1},)
    assert second.gained == ()
    assert decoded(first.thumbnail).shape == (80, 100, 3)
    a.write_bytes(b"nothing that OpenCV knows")
    assert [each.thumbnail for each in gallery(reference, own, 0.25)] == [first.thumbnail, ""]


def test_a_thumbnail_is_small_whatever_the_image() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 900, 3), dtype=np.uint8)
    small = thumbnail(noise)
    assert len(small) <= MAX_BYTES
    height, width = pixels_of(small).shape[:2]
    assert width / height == pytest.approx(1.5, rel=0.02)
    plain = thumbnail(np.full((600, 900, 3), 77, np.uint8))
    assert pixels_of(plain).shape == (320, 480, 3)
