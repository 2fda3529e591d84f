"""Masks, keypoints and turned boxes in the gallery: in the image's own pixels, and on the page as what they are."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import demo_checkpoint
from sample_report import sample_report

from qexport.detections.layout import ROTATED
from qexport.errors import InputError, UsageError
from qexport.measurement.evidence.gallery import gallery
from qexport.measurement.image_detections import ImageDetections, detections_of, found_in
from qexport.measurement.shapes import MAX_CORNERS, simplified
from qexport.programs.build import chosen_size
from qexport.programs.options import CaptureOptions
from qexport.reporting.load import report_of
from qexport.reporting.page.gallery import bones, joints, outlines
from qexport.reporting.page.render import render

BATCH = {"img": torch.zeros(1, 3, 64, 64), "ori_shape": [(64, 128)], "ratio_pad": [((0.5, 0.5), (0.0, 16.0))]}
"""An image of 128 by 64 pixels, letterboxed into 64 by 64: half as large, 16 grey rows above and below."""


@pytest.fixture(autouse=True)
def _repaired() -> None:
    demo_checkpoint()  # repairs torchvision where it needs it


def prediction(**extras: torch.Tensor) -> dict[str, torch.Tensor]:
    boxes = torch.tensor([[8.0, 24, 24, 40], [8.0, 24, 24, 40]])
    return {"bboxes": boxes, "conf": torch.tensor([0.9, 0.1]), "cls": torch.tensor([0.0, 1.0]), **extras}


@pytest.mark.parametrize("quarter", [1, 4], ids=["mask of the input's size", "mask of a quarter of it"])
def test_the_outline_of_a_mask_is_in_the_images_pixels(quarter: int, tmp_path: Path) -> None:
    masks = torch.zeros(2, 64 // quarter, 64 // quarter, dtype=torch.uint8)
    masks[:, 24 // quarter : 40 // quarter, 8 // quarter : 24 // quarter] = 1
    found = found_in(tmp_path / "a.jpg", prediction(masks=masks), BATCH, 0, 0.25)
    assert found.shapes[1].polygons == ()  # not confident: not drawn
    (polygon,) = found.shapes[0].polygons
    # Columns 8 to 24 and rows 24 to 40 of the input are 16 to 48 and 16 to 48 of the image.
    assert np.abs(polygon.min(axis=0) - (16, 16)).max() <= 2
    assert np.abs(polygon.max(axis=0) - (48, 48)).max() <= 2


@pytest.mark.parametrize(("values", "seen"), [(3, 0.5), (2, 1.0)])
def test_keypoints_are_in_the_images_pixels(values: int, seen: float, tmp_path: Path) -> None:
    points = torch.tensor([[[10.0, 30.0, 0.5], [20.0, 40.0, 0.5]]] * 2)[..., :values]
    found = found_in(tmp_path / "a.jpg", prediction(keypoints=points), BATCH, 0, 0.25)
    assert found.shapes[1].points is None
    assert found.shapes[0].points is not None
    assert found.shapes[0].points.tolist() == [[20.0, 28.0, seen], [40.0, 48.0, seen]]


@pytest.mark.parametrize("corners", [200, 1000])
def test_an_outline_has_few_corners_and_stays_where_it_is(corners: int) -> None:
    angles = np.linspace(0, 2 * math.pi, corners, endpoint=False)
    circle = np.stack((100 + 80 * np.cos(angles), 100 + 80 * np.sin(angles)), axis=1).astype(np.int32)[:, None]
    made = simplified(circle)
    assert 8 <= len(made) <= MAX_CORNERS
    assert abs(cv2.contourArea(made) / (math.pi * 80**2) - 1) < 0.06
    assert simplified(circle[:3]).tolist() == circle[:3].tolist()


def found(folder: Path, boxes: list[list[float]]) -> ImageDetections:
    count = len(boxes)
    seen = detections_of(torch.tensor(boxes), torch.ones(count), torch.zeros(count))
    return ImageDetections(folder / "a.png", (64, 64), seen)


def test_a_rotated_box_has_its_corners(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    rotated = found(tmp_path, [[30.0, 30, 20, 10, math.pi / 4]])
    assert rotated.detections.box_format == ROTATED
    nothing = rotated.confident(1.1)
    (picture,) = gallery({"a": rotated}, {"a": nothing}, 0.25)
    (outline,) = picture.lost[0]["outline"]
    half = math.sqrt(2) / 2  # half the sides along the box and across it, turned by 45 degrees
    expected = {(30 + half * (10 * a - 5 * b), 30 + half * (10 * a + 5 * b)) for a in (-1, 1) for b in (-1, 1)}
    corners = {(x, y) for x, y in zip(outline[::2], outline[1::2], strict=True)}
    assert {(round(x, 1), round(y, 1)) for x, y in expected} == corners


def test_an_upright_box_alone_is_told_as_before(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    one = found(tmp_path, [[1.0, 2, 30, 40]])
    (picture,) = gallery({"a": one}, {"a": found(tmp_path, [[40.0, 40, 60, 60]])}, 0.25)
    assert picture.lost == ({"box": [1.0, 2.0, 30.0, 40.0], "score": 1.0, "class": 0},)


PERSON = [[float(i), float(2 * i), 1.0] for i in range(17)]


def test_a_person_has_bones_between_joints_that_can_be_seen() -> None:
    hidden = [[x, y, 0.1 if i == 5 else 1.0] for i, (x, y, _) in enumerate(PERSON)]
    assert bones({"points": PERSON}).count("M") == 19
    assert bones({"points": hidden}).count("M") == 19 - 4  # a shoulder joins four
    assert len(joints({"points": hidden})) == 16
    assert bones({"points": PERSON[:5]}) == bones({"box": [0, 0, 1, 1]}) == ""
    assert outlines({"outline": [[1, 2, 3.25, 4, 5, 6]]}) == ["1 2 3.2 4 5 6"]


def test_the_page_draws_what_was_found_and_names_every_class() -> None:
    report = sample_report()
    number = next(i for i, entry in enumerate(report["artifacts"]) if entry.get("gallery"))
    image = report["artifacts"][number]["gallery"][0]
    box = {"box": [10, 10, 50, 50], "score": 0.9, "class": 79}
    image["kept"], image["gained"] = [{**box, "outline": [[10, 10, 50, 10, 50, 50]]}], []
    image["lost"] = [{**box, "points": PERSON}, {**box, "class": 78}]
    report["model"]["names"] = [f"kind {i}" for i in range(80)]
    figure = re.search(r'id="gallery".*?<figure>(.*?)</figure>', render(report_of(report)), re.DOTALL)
    assert figure
    drawn = figure[1]
    assert '<polygon points="10 10 50 10 50 50" data-card="kind 79' in drawn
    assert drawn.count("<rect x=") == 2  # of the pose and of the box: a mask has no box
    assert drawn.count("<circle") == 17
    assert drawn.count("<path") == 1
    assert "kind 78" in drawn
    assert "class 7" not in drawn
    del report["model"]["names"]
    assert "class 78" in render(report_of(report))  # of an earlier version


@pytest.mark.parametrize(("trained", "size"), [(640, 640), (650, 672), (1, 32), (100, 128), (33, 64)])
def test_a_size_that_nobody_gave_is_what_training_made_of_it(trained: int, size: int) -> None:
    checkpoint: Any = SimpleNamespace(imgsz=trained, stride=32, path="a.pt")
    assert chosen_size(CaptureOptions(), checkpoint) == (size, size)
    with pytest.raises(UsageError, match="--imgsz 650x650 is not a multiple of the model's stride 32: use 672 672"):
        chosen_size(CaptureOptions(imgsz=(650, 650)), checkpoint)


@pytest.mark.parametrize("trained", [0, -64])
def test_a_size_that_is_none_is_the_checkpoints_fault(trained: int) -> None:
    checkpoint: Any = SimpleNamespace(imgsz=trained, stride=32, path="a.pt")
    with pytest.raises(InputError, match=rf"a.pt says that it was trained at {trained} pixels: add --imgsz"):
        chosen_size(CaptureOptions(), checkpoint)
