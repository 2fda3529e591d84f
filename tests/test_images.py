"""Decoding, letterboxing and scaling: against Ultralytics' own code and against values worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qexport.data.images import letterbox, read_image, stream, to_tensor
from qexport.errors import InputError

SIDE = 12


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 10_007 + width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("height", "width"),
    [(480, 640), (427, 640), (333, 97), (101, 1023), (640, 640), (1, 300), (300, 1), (2, 2), (721, 1279)],
)
@pytest.mark.parametrize("shape", [(640, 640), (320, 640), (640, 416), (33, 97)])
def test_letterbox_is_that_of_ultralytics_to_the_bit(height: int, width: int, shape: tuple[int, int]) -> None:
    from ultralytics.data.augment import LetterBox

    image = _noise(height, width)
    expected = LetterBox(shape, auto=False, scaleup=True)(image=image.copy())
    np.testing.assert_array_equal(letterbox(image, shape), expected)


def test_letterbox_puts_the_odd_pixel_below_and_to_the_right() -> None:
    # 4x2 into 5x4: the scale is 5/4, so 5 rows and 2.5 columns, rounded to even: 2; the margins are 1 and 1.
    tall = letterbox(np.full((4, 2, 3), 200, np.uint8), (5, 4))
    assert tall[:, :, 0].tolist() == [[114, 200, 200, 114]] * 5
    # 2x2 into 2x5: no scaling, 3 columns to share: 1 on the left, 2 on the right.
    wide = letterbox(np.full((2, 2, 3), 7, np.uint8), (2, 5))
    assert wide[:, :, 2].tolist() == [[114, 7, 7, 114, 114]] * 2
    assert wide.dtype == np.uint8


def test_letterbox_leaves_its_argument_alone() -> None:
    image = _noise(64, 64)
    before = image.copy()
    letterbox(image, (64, 64))[:] = 0
    np.testing.assert_array_equal(image, before)


def test_to_tensor_is_rgb_planes_between_0_and_1() -> None:
    blue_then_red = np.array([[[255, 0, 51], [0, 102, 255]]], np.uint8)
    tensor = to_tensor(blue_then_red)
    expected = np.array([[[0.2, 1.0]], [[0.0, 0.4]], [[1.0, 0.0]]], np.float32)
    np.testing.assert_array_equal(tensor, expected)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous


def test_to_tensor_divides_as_torch_does() -> None:
    import torch

    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)
    expected = (torch.arange(256, dtype=torch.uint8).float() / 255).numpy().reshape(16, 16)
    np.testing.assert_array_equal(to_tensor(every), np.stack([expected] * 3))


def tiled(pattern: list[Any]) -> NDArray[np.uint8]:
    """A picture large enough for data sets, made of a pattern of pixels."""
    one = np.array(pattern, np.uint8)
    return np.tile(one, (SIDE, SIDE, *[1] * (one.ndim - 2)))[:SIDE, :SIDE]


def test_read_image_is_bgr(tmp_path: Path) -> None:
    Image.fromarray(tiled([[[10, 20, 30], [1, 2, 3]]])).save(tmp_path / "ä b.png")
    image = read_image(tmp_path / "ä b.png")
    assert image[:1, :2].tolist() == [[[30, 20, 10], [3, 2, 1]]]
    assert image.dtype == np.uint8


def test_read_image_turns_every_kind_into_three_bytes(tmp_path: Path) -> None:
    Image.fromarray(tiled([[9]])).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png")[3, 4].tolist() == [9, 9, 9]
    Image.fromarray(tiled([[[1, 2, 3, 128]]])).save(tmp_path / "alpha.png")
    assert read_image(tmp_path / "alpha.png")[3, 4].tolist() == [3, 2, 1]
    assert cv2.imwrite(str(tmp_path / "deep.png"), np.full((SIDE, SIDE), 0x12FF, np.uint16))
    assert read_image(tmp_path / "deep.png")[3, 4].tolist() == [0x12, 0x12, 0x12]


def test_read_image_turns_by_exif(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: a quarter turn clockwise shows it upright
    Image.new("RGB", (40, 16)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (40, 16, 3)


def _broken(folder: Path) -> dict[str, Path]:
    Image.fromarray(_noise(64, 64)).save(folder / "whole.jpg")
    whole = (folder / "whole.jpg").read_bytes()
    contents = {"empty": b"", "text": b"this is no image", "cut": whole[: len(whole) // 2]}
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return {name: folder / f"{name}.jpg" for name in (*contents, "gone")}


@pytest.mark.parametrize("kind", ["empty", "text", "cut", "gone"])
def test_an_unusable_image_is_named(tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    path = _broken(tmp_path)[kind]
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_stream_skips_and_names_what_it_cannot_use(tmp_path: Path) -> None:
    broken = _broken(tmp_path)
    good = tmp_path / "good.png"
    Image.new("RGB", (SIDE, SIDE), (255, 0, 51)).save(good)
    skipped: list[tuple[Path, str]] = []
    found = list(stream([broken["text"], good, broken["gone"]], (4, 8), lambda *skip: skipped.append(skip)))
    assert [path for path, _ in skipped] == [broken["text"], broken["gone"]]
    assert all(str(path) in reason for path, reason in skipped)
    ((path, tensor),) = found
    assert path == good
    assert tensor.shape == (3, 4, 8)
    grey = 114 / 255
    np.testing.assert_allclose(tensor[:, 0, :3], [[grey, grey, 1], [grey, grey, 0], [grey, grey, 0.2]], rtol=1e-6)


def test_stream_holds_one_image_at_a_time(tmp_path: Path) -> None:
    first, second = tmp_path / "1.png", tmp_path / "2.png"
    Image.new("RGB", (SIDE, SIDE)).save(first)
    images = stream([first, second], (4, 4), lambda path, reason: pytest.fail(f"{path}: {reason}"))
    assert next(images)[0] == first
    # Written only now, so the second image cannot have been read before it was asked for.
    Image.new("RGB", (SIDE, SIDE)).save(second)
    assert next(images)[0] == second


@pytest.mark.real
def test_real_photographs_are_decoded_as_by_ultralytics() -> None:
    folder = Path(__file__).parents[2] / "shared/datasets/coco8/images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    from ultralytics.utils.patches import imread

    photographs = sorted(folder.rglob("*.jpg"))
    assert len(photographs) == 8
    for photograph in photographs:
        np.testing.assert_array_equal(read_image(photograph), imread(photograph))
