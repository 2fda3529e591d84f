"""Labels of the evaluation images: what Ultralytics drops without a word is refused by file, row and value."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import demo_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import INPUT, MODEL, Refusal, description

from qexport.data.labels import Wanted, read_labels

DETECT, SEGMENT, ROTATED_FIELDS = Wanted("detect", 3), Wanted("segment", 3), Wanted("obb", 3)
POSE = Wanted("pose", 3, (2, 3))
GOOD = {
    "detect": "0 .5 .5 .2 .2",
    "segment": "1 .1 .1 .4 .1 .4 .4",
    "obb": "2 .1 .1 .4 .1 .4 .4 .1 .4",
    "pose": "0 .5 .5 .2 .2 .4 .4 2 .6 .6 0",
}
WANTED = {each.task: each for each in (DETECT, SEGMENT, ROTATED_FIELDS, POSE)}


def image_of(folder: Path, labels: str | bytes | None, name: str = "a") -> Path:
    """An image of 20 by 20 pixels with its label file."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    image = folder / "images" / f"{name}.png"
    cv2.imwrite(str(image), np.zeros((20, 20, 3), np.uint8))
    if labels is not None:
        (folder / "labels" / f"{name}.txt").write_bytes(labels if isinstance(labels, bytes) else labels.encode())
    return image


@pytest.mark.parametrize(
    ("task", "row", "expected"),
    [
        ("detect", "0 320 240 64 48", "320 is not within 0..1: labels are shares of the image's width and height"),
        ("detect", "0 .5 .5 1.2 .2", "1.2 is not within 0..1"),
        ("detect", "3 .5 .5 .2 .2", "there is no class 3, classes are whole numbers from 0 to 2"),
        ("detect", "-1 .5 .5 .2 .2", "there is no class -1"),
        ("detect", "1.5 .5 .5 .2 .2", "there is no class 1.5"),
        ("detect", "0 .5 .5 -.2 .2", "a box has a negative side, -0.2"),
        ("detect", "0 -.5 .5 .2 .2", "-0.5 is negative"),
        ("detect", "0 nan .5 .2 .2", "'nan' is no number"),
        ("detect", "0 .5 inf .2 .2", "'inf' is no number"),
        ("detect", "cat .5 .5 .2 .2", "'cat' is no number"),
        ("detect", "0,.5,.5,.2,.2", "labels for detect do not have 1 columns"),
        ("detect", "0 .5 .5 .2 .2 .9", "labels for detect do not have 6 columns"),
        ("detect", "0 .1 .1 .4 .1 .4 .4", "boxes stand among polygons"),
        ("segment", "0 .5 .5 .2 .2", "labels for segment do not have 5 columns"),
        ("segment", "0 .1 .1 .4 .1 .4 .4 .5", "labels for segment do not have 8 columns"),
        ("segment", "0 12 14 80 14 80 60", "80 is not within 0..1"),
        ("segment", "7 .1 .1 .4 .1 .4 .4", "there is no class 7"),
        ("obb", "0 .5 .5 .2 .2 .7", "labels for obb do not have 6 columns"),
        ("obb", "0 100 100 400 100 400 400 100 400", "400 is not within 0..1"),
        ("pose", "0 .5 .5 .2 .2 .4 .4 2", "labels for pose do not have 8 columns"),
        ("pose", "0 .5 .5 .2 .2 .4 .4 2 .6 7 1", "7 is not within 0..1"),
        ("pose", "0 .5 .5 .2 .2 .4 -.3 2 .6 .6 1", "-0.3 is negative"),
        ("pose", "0 320 240 64 48 .4 .4 2 .6 .6 1", "320 is not within 0..1"),
        ("pose", "0 .5 .5 .2 .2 .4 .4 -1 .6 .6 1", "-1 is negative"),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_row(task: str, row: str, expected: str, tmp_path: Path) -> None:
    images = [image_of(tmp_path, GOOD[task]), image_of(tmp_path, f"{GOOD[task]}\n\n{row}\n{row}", "b")]
    found = read_labels([*images, image_of(tmp_path, row, "c")], "labels", WANTED[task])
    assert expected in found.fault
    assert f"{tmp_path / 'labels' / 'b.txt'}, row 3" in found.fault
    # A file of boxes alone is no fault of a detector's labels that are polygons elsewhere.
    assert found.faulty == (1 if "among" in expected else 2)
    assert found.rows == 1 + ("among" in expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"0 .5 .5 .2 \xff", "is not UTF-8 text"),
        (b"\xff\xfe0\x00 \x00", "is not UTF-8 text"),
        ("\ufeff0 .5 .5 .2 .2".encode(), ""),  # a byte-order mark is none of the numbers
        (b"0 .5 .5 .2 .2\r\n0 .5 .5 .1 .1\r\n", ""),
        (b"\n \n", ""),
    ],
)
def test_text_that_is_none_is_named_and_what_editors_write_is_read(
    content: bytes, expected: str, tmp_path: Path
) -> None:
    fault = read_labels([image_of(tmp_path, content)], "labels", DETECT).fault
    assert fault == (f"{tmp_path / 'labels' / 'a.txt'} {expected}" if expected else "")


def test_a_folder_in_place_of_a_label_file_is_named(tmp_path: Path) -> None:
    image = image_of(tmp_path, None)
    (tmp_path / "labels" / "a.txt").mkdir()
    assert "a.txt cannot be read" in read_labels([image], "labels", DETECT).fault


def test_labels_that_count_once_or_never_are_told(tmp_path: Path) -> None:
    images = [
        image_of(tmp_path, "0 .5 .5 .2 .2\n0 .50 .5 .2 .2\n1 .5 .5 0 .2"),
        image_of(tmp_path, None, "b"),
        image_of(tmp_path, "", "c"),
    ]
    found = read_labels(images, "labels", DETECT)
    assert found.notes == (
        "1 of 3 labels of the evaluation images stand twice in their file and count once",
        "1 of 3 labels of the evaluation images have no width or height: nothing can match them",
    )
    assert read_labels(images[1:], "labels", DETECT).notes == ()


def dropped(image: Path, wanted: Wanted) -> bool:
    """Whether Ultralytics leaves an image out for its labels."""
    demo_checkpoint()  # repairs torchvision where it needs it
    from ultralytics.data.utils import verify_image_label

    label = image.parent.parent / "labels" / f"{image.stem}.txt"
    points = wanted.points or (0, 0)
    given = (str(image), str(label), "", wanted.task == "pose", wanted.classes, *points, False)
    return bool(verify_image_label(given)[-2])


number = st.one_of(
    st.floats(0, 1).map(lambda value: round(value, 3)),
    st.sampled_from(["0", "1", "2", "3", "-0.005", "-0.02", "1.005", "1.02", "-1", "17", "nan", "x", "1e-9"]),
)
rows = st.lists(st.lists(number, min_size=4, max_size=11), min_size=1, max_size=3)
whole = st.integers(-1, 3)


@settings(max_examples=25, deadline=None)
@given(task=st.sampled_from(sorted(WANTED)), values=rows, classes=st.lists(whole, min_size=3, max_size=3))
def test_what_ultralytics_drops_is_refused(
    task: str, values: list[list[object]], classes: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    columns = len(GOOD[task].split()) - 1
    lines = [" ".join(map(str, (c, *row[:columns]))) for c, row in zip(classes, values, strict=False)]
    image = image_of(tmp_path_factory.mktemp("labels"), "\n".join(lines))
    if dropped(image, WANTED[task]):
        assert read_labels([image], "labels", WANTED[task]).fault


@settings(max_examples=25, deadline=None)
@given(rows=st.lists(st.tuples(whole, *[number] * 4), min_size=1, max_size=3))
def test_boxes_that_ultralytics_takes_are_taken(
    rows: list[tuple[object, ...]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = image_of(tmp_path_factory.mktemp("boxes"), "\n".join(" ".join(map(str, row)) for row in rows))
    assert bool(read_labels([image], "labels", DETECT).fault) == dropped(image, DETECT)


def test_a_polygon_that_lies_a_little_outside_is_taken_as_ultralytics_takes_it(tmp_path: Path) -> None:
    image = image_of(tmp_path, "0 .7 .1 1.04 .1 1.04 .4")
    assert not dropped(image, SEGMENT)
    assert read_labels([image], "labels", SEGMENT).fault == ""


@pytest.mark.parametrize("row", ["0 .1 .1 .4 .1 .4 .4", "1 .1 .1 .4 .1 .5 .2 .4 .4 .1 .4", GOOD["obb"]])
def test_a_polygon_is_a_rotated_box(row: str, tmp_path: Path) -> None:
    image = image_of(tmp_path, f"{row}\n{GOOD['obb']}")
    assert not dropped(image, ROTATED_FIELDS)
    assert read_labels([image], "labels", ROTATED_FIELDS).fault == ""


@pytest.mark.parametrize("row", ["0 320 240 64 48", "6 .5 .5 .1 .1", "0 .5 .5 .1"])
def test_the_command_line_says_it_before_anything_slow(refused: Refusal, tmp_path: Path, row: str) -> None:
    """No image is decoded, let alone calibrated on: the only one is no image at all."""
    image = image_of(tmp_path / "data", f"0 .5 .5 .1 .1\n{row}")
    image.write_bytes(b"no image")
    data = description(
        tmp_path / "d.yaml", {"path": str(tmp_path / "data"), "train": "images", "val": "images", "nc": 6}
    )
    line = refused(str(MODEL), "--int8", "--imgsz", "96", "--data", str(data), code=INPUT)
    assert f"{tmp_path / 'data' / 'labels' / 'a.txt'}, row 2" in line
    assert "--no-eval" in line
