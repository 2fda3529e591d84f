"""Images that cannot be used: they are named before anything slow, and too few of the others end the run."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import demo_images
from refusals import DATA, INPUT, INT8, Refusal

from qexport.data.selection import LeftOut, RunImages
from qexport.data.usable import check_enough, named, usable
from qexport.errors import InputError


def lost(count: int) -> list[LeftOut]:
    return [LeftOut(Path(f"{number}.jpg"), f"image {number}.jpg is empty") for number in range(count)]


@pytest.mark.parametrize(("total", "left_out", "least"), [(1, 0, 1), (4, 2, 1), (4, 2, 2), (12, 2, 10)])
def test_enough_is_half_of_them_and_as_many_as_are_asked_for(total: int, left_out: int, least: int) -> None:
    check_enough(total, lost(left_out), least)


@pytest.mark.parametrize(
    ("total", "left_out", "least", "line"),
    [
        (0, 0, 1, "no calibration images: add --data"),
        (4, 3, 1, r"only 1 of 4 calibration images are usable, .* 0\.jpg \(image 0\.jpg is empty\): repair"),
        (9, 0, 10, "^9 calibration images are usable, and --min-images asks for 10: give more images"),
        (12, 4, 9, r"^8 calibration images are usable \(4 are not: 0\.jpg .*2\.jpg .* and 1 more\), and --min-images"),
    ],
)
def test_too_few_end_the_run(total: int, left_out: int, least: int, line: str) -> None:
    with pytest.raises(InputError, match=line):
        check_enough(total, lost(left_out), least)
    assert InputError.exit_code == INPUT


def test_only_the_first_few_are_named() -> None:
    assert named(lost(1)) == "0.jpg (image 0.jpg is empty)"
    assert named(lost(3)).count("empty") == 3
    assert named(lost(7)).endswith("2.jpg (image 2.jpg is empty) and 4 more")


def test_nothing_is_left_to_evaluate_on(tmp_path: Path) -> None:
    paths = tuple(tmp_path / name for name in ("a.jpg", "b.jpg"))
    for path in paths:
        path.touch()
    with pytest.raises(InputError, match=r"none of 2 evaluation images can be used: a\.jpg .* is empty"):
        usable(RunImages(evaluation=paths), 3)


def test_what_both_lists_have_is_read_once(tmp_path: Path) -> None:
    good, seen = tuple(demo_images("train", 2)), list[None]()
    (tmp_path / "empty.jpg").touch()
    images = RunImages((*good, tmp_path / "empty.jpg"), good, overlap=good)
    found = usable(images, 3, lambda: seen.append(None))
    assert (found.calibration, found.evaluation, found.overlap) == (good, good, good)
    assert [each.path.name for each in found.left_out] == ["empty.jpg"]
    assert found.unscored == ()
    assert len(seen) == 3


def test_the_command_line_refuses_too_few(refused: Refusal) -> None:
    line = refused(*INT8, "--data", DATA, "--calib-images", "3", "--min-images", "4", code=INPUT)
    assert line.startswith("3 calibration images are usable, and --min-images asks for 4: ")
