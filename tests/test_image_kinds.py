"""Every kind of image: calibration, training and measurement make the same pixels of it, or all leave it out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from image_kinds import LEFT_OUT, SAME

from qexport.data.dataset import load_folder
from qexport.data.evaluation_set import EvaluationSet, make_evaluation_set
from qexport.data.images import centre_crop, read_image, stream, to_tensor
from qexport.data.selection import RunImages
from qexport.data.usable import usable
from qexport.detections.layout import HeadLayout
from qexport.measurement.validator import make_validator
from qexport.tasks import SCORING

# Ultralytics does not close a file that Pillow refuses.
pytestmark = pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)

SIZE = 64, 64
LAYOUT = HeadLayout((8, 16, 32), SIZE, 1)
MENDED = {"no end.jpg"}
"""Ultralytics' data sets write such a file anew; its `imread` does not read it as it is: no run gives it to them."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    for name, make in {**SAME, **{name: make for name, (make, _) in LEFT_OUT.items()}}.items():
        (folder / name).write_bytes(make())
    return folder


def seen_by_validator(data: EvaluationSet, task: str, folder: Path) -> Iterator[tuple[str, Any]]:
    """Name of the original file and (c, h, w) in 0..1, of every image that Ultralytics' validator can be given.

    Of some that are left out it finds out when it loads them only, and ends.
    """
    validator = make_validator(SCORING[task], task, data, LAYOUT, 1, folder)
    dataset = validator.get_dataloader(validator.data["val"], 1).dataset
    for number in range(len(dataset)):
        try:
            item = dataset[number]
        except (FileNotFoundError, cv2.error):
            continue
        file = item["im_file"] if task != "classify" else dataset.samples[number][0]
        pixels = item["img"].numpy()
        yield data.links[Path(file).name].name, pixels if task == "classify" else pixels.astype(np.float32) / 255


@pytest.mark.parametrize("channels", [3, 1])
def test_every_reader_sees_the_same_images_and_the_same_pixels(kinds: Path, tmp_path: Path, channels: int) -> None:
    from ultralytics.utils.patches import imread

    every = sorted(kinds.iterdir())
    skipped: list[str] = []
    own = {
        path.name: pixels
        for path, pixels in stream(every, SIZE, lambda path, _: skipped.append(path.name), channels=channels)
    }
    assert own.keys() == SAME.keys()
    assert {*skipped} == LEFT_OUT.keys()
    dataset = replace(load_folder(kinds), names={0: "thing"}, channels=channels)
    linked = make_evaluation_set(dataset, every, tmp_path / "set")
    theirs = dict(seen_by_validator(linked, "detect", tmp_path))
    assert theirs.keys() - MENDED == SAME.keys()
    for name in SAME:
        np.testing.assert_array_equal(own[name], theirs[name], err_msg=name)
        flag = {3: 1, 1: 0}[channels]
        np.testing.assert_array_equal(read_image(kinds / name, channels), imread(kinds / name, flag), err_msg=name)


def test_a_classifiers_validator_does_so_too(kinds: Path, tmp_path: Path) -> None:
    every = sorted(kinds.iterdir())
    linked = make_evaluation_set(load_folder(kinds), every, tmp_path / "set", {0: "thing"}, task="classify")
    theirs = dict(seen_by_validator(linked, "classify", tmp_path))
    assert theirs.keys() - MENDED == SAME.keys()
    for name in SAME:
        own = to_tensor(centre_crop(read_image(kinds / name), SIZE))
        np.testing.assert_array_equal(own, theirs[name], err_msg=name)


def test_what_is_left_out_is_named_with_its_reason(kinds: Path) -> None:
    every, shown = tuple(sorted(kinds.iterdir())), list[None]()
    found = usable(RunImages(calibration=every, evaluation=every), 3, lambda: shown.append(None))
    assert [path.name for path in found.calibration] == sorted(SAME)
    assert found.evaluation == found.calibration
    assert len(shown) == len(every)
    reasons = {each.path.name: each.reason for each in found.left_out}
    assert found.unscored == found.left_out
    assert reasons.keys() == LEFT_OUT.keys()
    for name, (_, words) in LEFT_OUT.items():
        assert words in reasons[name]
        assert f"image {kinds / name} " in reasons[name]
        assert "\n" not in reasons[name]


def test_a_turned_photograph_is_upright_and_an_animation_its_first_picture(kinds: Path) -> None:
    shapes = [read_image(kinds / f"turned {way}.jpg").shape[:2] for way in range(1, 9)]
    assert shapes == [(32, 64)] * 4 + [(64, 32)] * 4
    for still, moving in (
        ("colour.png", "animated.png"),
        ("colour.tif", "pages.tif"),
        ("colour.webp", "animated.webp"),
    ):
        difference = np.abs(read_image(kinds / still).astype(int) - read_image(kinds / moving))
        assert difference.max() <= (0 if still != "colour.webp" else 64), moving
