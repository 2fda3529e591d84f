"""Images that are trained on without labels: what augmentation does, and that an epoch depends on its number alone."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from conftest import demo_images
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qexport.compat.torchvision import repair
from qexport.data.augmentation import Augmentation, augment, mosaic, recoloured
from qexport.data.images import PREPROCESS, letterbox, read_image, stream
from qexport.data.input_form import IMAGENET, InputForm, InputSpec
from qexport.errors import InputError
from qexport.training.images import AHEAD, Batch, Images, Order, ahead, augmented

SMALL = InputSpec((48, 64))
NOTHING = Augmentation(plain=0, mosaic=0, flip=0, scale=(1, 1), hue=0, saturation=0, value=0)
sides = st.integers(1, 90)


@pytest.fixture(scope="module", autouse=True)
def _torchvision() -> None:
    repair()


def noise(height: int, width: int, channels: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 100 + width).integers(0, 256, (height, width, channels), np.uint8)


def solid(colour: int, height: int = 30, width: int = 40) -> NDArray[np.uint8]:
    return np.full((height, width, 3), colour, np.uint8)


@settings(max_examples=25, deadline=None)
@given(
    own=st.tuples(sides, sides),
    size=st.tuples(st.integers(4, 80), st.integers(4, 80)),
    preprocess=st.sampled_from(sorted(PREPROCESS)),
    strength=st.builds(
        Augmentation,
        plain=st.sampled_from([0.0, 0.5]),
        mosaic=st.sampled_from([0.0, 0.5, 1.0]),
        scale=st.sampled_from([(0.5, 1.5), (0.01, 0.1), (1.0, 4.0)]),
    ),
    seed=st.integers(0, 2**32),
)
def test_a_picture_of_any_image_has_the_networks_size_and_a_seed_decides_it(
    own: tuple[int, int], size: tuple[int, int], preprocess: str, strength: Augmentation, seed: int
) -> None:
    first, wanted = noise(*own), InputSpec(size, preprocess=preprocess)
    before = first.copy()

    def made() -> NDArray[np.uint8]:
        return augment(first, lambda: [noise(9, 5)] * 3, wanted, strength, np.random.default_rng(seed))

    picture = made()
    assert picture.shape == (*size, 3)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(made(), picture)
    np.testing.assert_array_equal(first, before)


@settings(max_examples=25, deadline=None)
@given(own=st.tuples(sides, sides), preprocess=st.sampled_from(["letterbox", "stretch"]), seed=st.integers(0, 99))
def test_a_mosaic_shows_four_images_each_in_its_corner(own: tuple[int, int], preprocess: str, seed: int) -> None:
    colours = [10, 60, 180, 250]
    wanted = InputSpec((48, 64), preprocess=preprocess)
    made = mosaic([solid(c, *own) for c in colours], wanted, Augmentation(), np.random.default_rng(seed))
    where = [np.argwhere((made == colour).all(axis=2)) for colour in colours]
    assert all(len(found) for found in where)
    above_left, above_right, below_left, below_right = where
    assert max(above_left[:, 0].max(), above_right[:, 0].max()) < min(below_left[:, 0].min(), below_right[:, 0].min())
    assert max(above_left[:, 1].max(), below_left[:, 1].max()) < min(above_right[:, 1].min(), below_right[:, 1].min())


@pytest.mark.parametrize("preprocess", sorted(PREPROCESS))
def test_a_flip_mirrors_left_and_right(preprocess: str) -> None:
    image, wanted = noise(48, 64), InputSpec((48, 64), preprocess=preprocess)
    rng = np.random.default_rng(0)
    made = [augment(image, list, wanted, replace(NOTHING, flip=f), rng) for f in (0, 1)]
    np.testing.assert_array_equal(made[0], image)
    np.testing.assert_array_equal(made[1], cv2.flip(image, 1))


def test_an_image_of_half_the_size_lies_whole_on_grey() -> None:
    strength = replace(NOTHING, scale=(0.5, 0.5))
    places = set()
    for seed in range(20):
        made = augment(solid(200, 96, 96), list, SMALL, strength, np.random.default_rng(seed))
        inside = np.argwhere(made[..., 0] == 200)
        (top, left), (bottom, right) = inside.min(axis=0), inside.max(axis=0)
        assert (bottom - top + 1, right - left + 1) == (24, 24)  # fits in 48x64 as 48x48
        assert len(inside) == 24 * 24
        assert (made == 114).all(axis=2).sum() == 48 * 64 - 24 * 24
        places.add((top, left))
    assert len(places) > 10


def test_an_enlarged_image_is_cut_and_nothing_is_grey() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 2, (48, 64, 3)).copy()
    strength = replace(NOTHING, scale=(2, 2))
    made = augment(ramp, list, SMALL, strength, np.random.default_rng(3))
    columns = made[0, :, 0].astype(int)
    # Twice as wide: neighbours differ by half as much, and half of the ramp is left.
    assert set(np.diff(columns)) <= {0, 1, 2}
    assert columns[-1] - columns[0] == pytest.approx(63, abs=2)


def test_a_classifiers_image_is_cut_from_within() -> None:
    wanted = InputSpec((32, 32), preprocess="centre crop")
    seen = {
        int(augment(solid(77, 50, 90), list, wanted, NOTHING, np.random.default_rng(seed)).min()) for seed in range(9)
    }
    assert seen == {77}


def test_colours_change_as_with_ultralytics() -> None:
    from ultralytics.data.augment import RandomHSV

    image = noise(40, 40)
    strength = Augmentation(hue=0.1, saturation=0.7, value=0.4)
    for seed in range(5):
        np.random.seed(seed)
        expected = RandomHSV(0.1, 0.7, 0.4).apply_image({"img": image.copy()})["img"]
        same: Any = np.random.RandomState(seed)
        np.testing.assert_array_equal(recoloured(image, strength, same), expected)


def test_what_has_no_colours_changes_its_brightness() -> None:
    image = np.arange(200, dtype=np.uint8).reshape(10, 5, 4)
    made = recoloured(image, Augmentation(value=0.5), np.random.default_rng(1))
    factor = made[-1, -1, -1] / 199
    assert 0.5 <= factor <= 1.5
    assert factor != 1
    np.testing.assert_allclose(made, np.minimum(image * factor, 255), atol=1.5)


PATHS = demo_images("train", 7)


def epoch(images: Images, number: int) -> torch.Tensor:
    return torch.stack([batch.pixels for batch in images.epoch(number)])


def test_an_epoch_depends_on_its_number_alone() -> None:
    images = augmented(PATHS, SMALL, 3, 5)
    assert len(images) == 3
    first, second = epoch(images, 0), epoch(images, 1)
    assert first.shape == (3, 3, 3, 48, 64)
    assert first.dtype == torch.float32
    assert 0 <= first.min() < first.max() <= 1
    assert not torch.equal(first, second)
    next(images.epoch(0))  # one that is not finished
    assert torch.equal(epoch(images, 1), second)
    assert torch.equal(epoch(augmented(PATHS[::-1], SMALL, 3, 5, workers=3), 1), second)
    assert not torch.equal(epoch(augmented(PATHS, SMALL, 3, 6), 1), second)


def test_plain_images_are_those_of_calibration_each_once() -> None:
    plain = Augmentation(plain=1)
    pixels = epoch(augmented(PATHS, SMALL, 3, 0, strength=plain), 4).flatten(0, 1).numpy()
    expected = {image.tobytes() for _, image in stream(PATHS, SMALL.imgsz, lambda *_: None)}
    assert len(expected) == 7
    assert {image.tobytes() for image in pixels[:7]} == expected
    np.testing.assert_array_equal(pixels[7:], pixels[:2])  # the last batch is filled up
    assert not np.array_equal(epoch(augmented(PATHS, SMALL, 3, 0, strength=plain), 5).flatten(0, 1).numpy(), pixels)


def test_the_share_of_plain_images_is_as_asked() -> None:
    wanted = InputSpec((8, 8))
    expected = letterbox(noise(8, 16), (8, 8))
    count = sum(
        np.array_equal(
            augment(noise(8, 16), list, wanted, Augmentation(plain=0.4, mosaic=0), np.random.default_rng(seed)),
            expected,
        )
        for seed in range(400)
    )
    assert 120 <= count <= 200  # 160 ± 4 standard deviations


def test_pixels_have_the_programs_own_form() -> None:
    plain = Augmentation(plain=1)
    form = InputForm("imagenet", *IMAGENET, bgr=True)
    (batch,) = augmented(PATHS[:1], InputSpec((48, 64), form=form), 1, 0, strength=plain).epoch(0)
    bgr = letterbox(read_image(PATHS[0]), (48, 64)).transpose(2, 0, 1) / 255
    mean, deviation = (np.array(each)[:, None, None] for each in IMAGENET)
    np.testing.assert_allclose(batch.pixels[0].numpy(), (bgr - mean) / deviation, rtol=1e-4, atol=1e-5)
    (grey,) = augmented(PATHS[:2], InputSpec((48, 64), channels=1), 2, 0).epoch(0)
    assert grey.pixels.shape == (2, 1, 48, 64)


def test_an_unusable_image_gives_its_place_to_the_next(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    skipped: dict[Path, str] = {}
    here: list[int] = []

    def skip(path: Path, reason: str) -> None:
        here.append(threading.get_ident())
        skipped.setdefault(path, reason)

    pixels = epoch(augmented([broken, *PATHS], SMALL, 4, 0, strength=Augmentation(plain=1), on_skip=skip), 0)
    assert skipped == {broken: f"image {broken} is corrupt or not an image"}
    assert set(here) == {threading.get_ident()}
    assert len({image.numpy().tobytes() for image in pixels.flatten(0, 1)}) == 7
    with pytest.raises(InputError, match=r"none of 1 images can be read, not even .*broken\.jpg"):
        list(augmented([broken], SMALL, 1, 0).epoch(0))
    with pytest.raises(InputError, match="no images"):
        augmented([], SMALL, 1, 0)


@pytest.mark.parametrize("count", [7, 16, 17])
def test_processes_share_an_epoch_as_torch_shares_it(count: int) -> None:
    from torch.utils.data import DistributedSampler

    everyone: list[int] = []
    for rank in range(3):
        order = Order(count, 2, 0, rank, 3)
        given = order.places().flatten() % count
        images: Any = range(count)
        sampler: Any = DistributedSampler(images, 3, rank, shuffle=False)
        expected = list(sampler)
        assert given.tolist()[: len(expected)] == expected
        assert len(given) == len(order) * 2 < len(expected) + 2
        everyone += given.tolist()
    assert set(everyone) == set(range(count))


def test_few_batches_are_made_ahead_and_none_after_an_end() -> None:
    made: list[int] = []

    def make(item: int) -> int:
        made.append(item)
        return item

    batches = ahead(make, range(100), 1)
    for taken in range(5):
        assert next(batches) == taken
        assert len(made) <= taken + AHEAD + 1
    batches.close()  # type: ignore[attr-defined]
    count = len(made)
    assert count <= 5 + AHEAD
    assert not any(thread.name.startswith("ThreadPool") and thread.is_alive() for thread in threading.enumerate())
    assert len(made) == count


def test_a_batch_has_no_labels_unless_it_is_given_some() -> None:
    assert Batch(torch.zeros(1)).targets is None
