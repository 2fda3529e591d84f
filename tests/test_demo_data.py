"""The embedded demo data set and model are what calibration_data/README.md says they are."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from calibration_data import render

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "calibration_data"
SHAPES = DEMO / "shapes"
COUNTS = {"train": 128, "val": 100}
SUFFIXES = ("", "-seg", "-pose", "-obb", "-cls")
NAMES = {0: "circle", 1: "square", 2: "triangle", 3: "star", 4: "ring", 5: "cross"}
PIXEL = 1 / 320
FEW = 8  # images of each split that are rendered again: an image depends only on its seed, split and index
PAINT = render.Paint("plain", ((200.0, 30.0, 30.0), (200.0, 30.0, 30.0)), period=10, angle=0, seed=0)


def images(split: str) -> list[Path]:
    return sorted((SHAPES / "images" / split).glob("*.jpg"))


def boxes(split: str) -> np.ndarray:
    """Return all labels of a split, (N, 5): class, centre x, centre y, width, height."""
    files = sorted((SHAPES / "labels" / split).glob("*.txt"))
    return np.array([line.split() for file in files for line in file.read_text().splitlines()], dtype=float)


def scene(*shapes: render.Shape) -> render.Scene:
    return render.Scene(PAINT, (), shapes, blur=0, noise=0, gain=1, seed=0)


def shape(name: str, x: float, y: float, radius: float, degrees: float = 0) -> render.Shape:
    kind = next(number for number, known in NAMES.items() if known == name)
    return render.make_shape(kind, (x, y), radius, float(np.radians(degrees)), PAINT)


def labels(*shapes: render.Shape) -> list[list[float]]:
    """Return the labels of an image of these shapes alone, the last one in front."""
    lines = render.label_lines(scene(*shapes)).splitlines()
    return [[float(value) for value in line.split()] for line in lines]


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the first images of both splits, rendered again by the command line."""
    out = tmp_path_factory.mktemp("again")
    count = str(FEW)
    script = str(DEMO / "render.py")
    subprocess.run([sys.executable, script, "--out", str(out), "--train", count, "--val", count], check=True)
    return out


@pytest.mark.parametrize("split", COUNTS)
def test_default_seed_renders_the_committed_labels(again: Path, split: str) -> None:
    rendered = sorted((again / "labels" / split).iterdir())
    assert len(rendered) == FEW
    for file in rendered:
        assert file.read_text() == (SHAPES / "labels" / split / file.name).read_text()


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_default_seed_renders_the_committed_labels_of_other_tasks(again: Path, task: str) -> None:
    for split in COUNTS:
        rendered = sorted((again / f"labels-{task}" / split).iterdir())
        assert len(rendered) == FEW
        for file in rendered:
            assert file.read_text() == (SHAPES / f"labels-{task}" / split / file.name).read_text()
    description = f"shapes-{task}.yaml"
    assert (again / description).read_text() == (SHAPES / description).read_text()


def labels_of(task: str, *shapes: render.Shape) -> list[list[float]]:
    """Labels of an image of these shapes alone, for a task, without the class, in pixels."""
    lines = render.label_lines(scene(*shapes), task).splitlines()
    return [[float(value) * 320 for value in line.split()[1:]] for line in lines]


def test_an_outline_is_that_of_what_can_be_seen() -> None:
    (corners,) = labels_of("segment", shape("square", 160, 160, 80, 45))
    polygon = np.array(corners).reshape(-1, 2)
    side = 80 * np.sqrt(2)
    assert cv2.contourArea(polygon.astype(np.float32)) == pytest.approx(side**2, rel=0.03)
    assert polygon.min(axis=0) == pytest.approx([160 - side / 2] * 2, abs=1.5)


def test_a_rotated_box_is_as_small_as_it_can_be() -> None:
    (corners,) = labels_of("obb", shape("square", 160, 160, 80, 20))
    box = np.array(corners).reshape(4, 2)
    sides = np.linalg.norm(box - np.roll(box, 1, axis=0), axis=1)
    assert sides == pytest.approx([80 * np.sqrt(2)] * 4, abs=2.5)
    assert box.mean(axis=0) == pytest.approx([160, 160], abs=1)


def test_keypoints_are_centre_and_ends_with_their_visibility() -> None:
    hidden = shape("circle", 100, 100, 40)
    front = shape("square", 150, 100, 40, 45)  # covers the circle's right end
    label = labels_of("pose", hidden, front)[0]
    points = np.array(label[4:]).reshape(-1, 3)
    expected = [(100, 100), (60, 100), (100, 60), (140, 100), (100, 140)]
    np.testing.assert_allclose(points[:, :2], expected, atol=1)
    assert (points[:, 2] / 320).tolist() == [2, 2, 2, 1, 2]
    (outside,) = labels_of("pose", shape("circle", 10, 160, 40))
    assert np.array(outside[4:]).reshape(-1, 3)[1].tolist() == [0, 0, 0]  # its left end


def test_crops_are_sorted_by_class() -> None:
    for split in COUNTS:
        folders = sorted((SHAPES / "crops" / split).iterdir())
        assert [folder.name for folder in folders] == sorted(NAMES.values())
        assert {len(list(folder.glob("*.jpg"))) for folder in folders} == {render.CROPS_EACH}


@pytest.mark.parametrize("split", COUNTS)
def test_default_seed_renders_the_committed_images(again: Path, split: str) -> None:
    for file in sorted((again / "images" / split).iterdir()):
        rendered, committed = (cv2.imread(str(f)) for f in (file, SHAPES / "images" / split / file.name))
        assert rendered is not None
        assert committed is not None
        # Not exactly equal: JPEG encoders differ a little.
        assert np.abs(rendered.astype(int) - committed.astype(int)).mean() < 2


def test_description_names_the_splits_and_classes() -> None:
    expected = {"train": "images/train", "val": "images/val", "names": NAMES}
    assert yaml.safe_load((SHAPES / "shapes.yaml").read_text()) == expected


@pytest.mark.parametrize(("split", "count"), COUNTS.items())
def test_every_image_has_the_size_and_a_label_file(split: str, count: int) -> None:
    files = images(split)
    assert len(files) == count
    for file in files:
        image = cv2.imread(str(file))
        assert image is not None
        assert image.shape == (320, 320, 3)
        assert (SHAPES / "labels" / split / f"{file.stem}.txt").read_text().strip()


@pytest.mark.parametrize("split", COUNTS)
def test_every_box_lies_in_the_image_and_every_class_occurs(split: str) -> None:
    found = boxes(split)
    assert set(found[:, 0]) == set(NAMES)
    low, high = found[:, 1:3] - found[:, 3:] / 2, found[:, 1:3] + found[:, 3:] / 2
    assert low.min() > -2e-6  # written with six decimals
    assert high.max() < 1 + 2e-6
    assert found[:, 3:].min() > 8 * PIXEL


def test_no_image_occurs_twice() -> None:
    files = images("train") + images("val")
    assert len({hashlib.sha256(file.read_bytes()).digest() for file in files}) == 228


def test_the_data_set_is_small_and_holds_no_cache() -> None:
    files = [file for file in SHAPES.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_500_000
    assert {file.suffix for file in files} == {".jpg", ".txt", ".yaml"}


def test_another_seed_or_split_gives_other_scenes() -> None:
    scenes = {render.choose_scene(seed, split, 0) for seed in (26, 2601) for split in ("train", "val")}
    assert len(scenes) == 4


@pytest.mark.parametrize(
    ("drawn", "width", "height"),
    [
        (shape("circle", 160, 160, 40), 80, 80),
        (shape("ring", 160, 160, 40), 80, 80),
        (shape("square", 160, 160, 40), 80, 80),  # unturned, its corners point along the axes
        (shape("square", 160, 160, 40, degrees=45), 56.6, 56.6),  # 80 / sqrt 2
        (shape("cross", 160, 160, 40), 76.2, 76.2),  # 80 * cos(atan 0.32)
    ],
)
def test_a_box_is_tight_around_a_lone_shape(drawn: render.Shape, width: float, height: float) -> None:
    ((_, x, y, w, h),) = labels(drawn)
    assert (x, y) == pytest.approx((0.5, 0.5), abs=1.5 * PIXEL)
    # OpenCV draws up to a pixel beyond a slanted edge.
    assert (w, h) == pytest.approx((width * PIXEL, height * PIXEL), abs=3 * PIXEL)


def test_a_box_ends_at_the_image() -> None:
    ((_, x, _, w, _),) = labels(shape("circle", 0, 160, 40))
    assert (x, w) == pytest.approx((20 * PIXEL, 40 * PIXEL), abs=1.5 * PIXEL)


def test_a_box_leaves_out_the_part_that_a_later_shape_covers() -> None:
    front = shape("square", 200, 160, 56.57, degrees=45)  # covers x from 160 to 240
    ((kind, x, _, w, _), _) = labels(shape("circle", 160, 160, 30), front)
    assert kind == 0
    assert (x, w) == pytest.approx((145 * PIXEL, 30 * PIXEL), abs=1.5 * PIXEL)


def test_a_covered_shape_has_no_label() -> None:
    found = labels(shape("circle", 160, 160, 30), shape("square", 160, 160, 80))
    assert [row[0] for row in found] == [1]


def test_a_ring_shows_what_is_behind_its_hole() -> None:
    found = labels(shape("circle", 160, 160, 30), shape("ring", 160, 160, 80))  # the hole's radius is 44
    assert [row[0] for row in found] == [0, 4]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_checkpoint_names_no_path_of_the_machine_that_trained_it(suffix: str) -> None:
    content = (DEMO / f"shapes26{suffix}.pt").read_bytes()  # a zip archive whose members are stored uncompressed
    for private in (b"/tmp/", b"/work/", b"/home/", b"/root/"):
        assert private not in content


def test_the_checkpoints_are_small() -> None:
    sizes = {path.stem.removeprefix("shapes26"): path.stat().st_size for path in DEMO.glob("*.pt")}
    assert set(sizes) == set(SUFFIXES)
    assert max(sizes.values()) <= 3_000_000
    assert sum(sizes.values()) <= 12_000_000


def test_the_checkpoint_loads_with_both_heads() -> None:
    from qexport.compat.torchvision import repair

    repair()
    from ultralytics.models import YOLO

    loaded: Any = YOLO(str(DEMO / "shapes26.pt"))
    head = loaded.model.model[-1]
    assert loaded.names == NAMES
    assert head.cv2 is not None
    assert head.one2one_cv2 is not None
    assert sum(weight.numel() for weight in loaded.model.parameters()) == 678_572
