"""Other pictures of a few images: what they are, which image they are of, and who sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from conftest import TinyDetector, captured, demo_images, seeded, synthetic_statistics
from numpy.typing import NDArray

from qexport.calibration.calibrate import calibrate, passes_for
from qexport.calibration.calibration_table import load_table, save_table
from qexport.data.dataset import fingerprint
from qexport.data.images import read_image
from qexport.data.input_form import InputSpec
from qexport.data.views import with_views
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.passes import optimise
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO
from qexport.progress import Progress, Silent

SQUARE = InputSpec((48, 64))
FEW = demo_images("train", 3)


def pictures(images: Sequence[Path], wanted: InputSpec = SQUARE) -> list[NDArray[np.uint8]]:
    """All that is given in place of the images, read."""
    with with_views(images, wanted) as given:
        return [read_image(path, wanted.channels) for path in given]


def painted(path: Path, levels: tuple[int, ...]) -> Path:
    """An image all of one colour."""
    assert cv2.imwrite(str(path), np.full((40, 40, 3), levels, np.uint8))
    return path


def test_few_images_are_filled_up_with_pictures_of_the_networks_size() -> None:
    with with_views(FEW, SQUARE) as given:
        assert given[:3] == tuple(FEW)
        views = [read_image(path) for path in given[3:]]
    assert [view.shape for view in views] == [(48, 64, 3)] * 29
    assert len({view.tobytes() for view in views}) == 29
    assert not any(path.exists() for path in given[3:])


def test_views_do_not_depend_on_the_order_of_images() -> None:
    one, other = pictures(FEW)[3:], pictures(FEW[::-1])[3:]
    assert all(map(np.array_equal, one, other))


def test_an_image_may_have_the_longest_name_that_there_is(tmp_path: Path) -> None:
    assert len(pictures([painted(tmp_path / f"{'ä' * 125}.jpg", (0, 0, 250))])) == 32


def test_enough_images_are_seen_as_they_are() -> None:
    enough = demo_images("train", 32)
    with with_views(enough, SQUARE) as given, with_views([], SQUARE) as none:
        assert (given, none) == (tuple(enough), ())


def test_a_network_smaller_than_any_image_has_no_views() -> None:
    assert len(pictures(FEW, InputSpec((8, 64)))) == len(FEW)


def test_what_cannot_be_read_has_no_views(tmp_path: Path) -> None:
    broken = tmp_path / "a.jpg"
    broken.write_bytes(b"no image")
    red = painted(tmp_path / "b.png", (0, 0, 250))
    with with_views([broken, red], SQUARE) as given:
        assert len(given) == 32
        blue, green, _ = np.mean([read_image(path).mean(axis=(0, 1)) for path in given[2:]], axis=0)
        assert blue == pytest.approx(green, abs=2)  # grey around a red image, and nothing else
    with with_views([broken], SQUARE) as given:
        assert given == (broken,)


@pytest.mark.parametrize("channels", [1, 4])
def test_every_band_of_an_image_is_in_its_views(channels: int, tmp_path: Path) -> None:
    bands = [np.full((20, 30), 100 + 10 * band, np.uint8) for band in range(channels)]
    path = tmp_path / "bands.tiff"
    assert cv2.imwritemulti(str(path), bands)
    for view in pictures([path], InputSpec((32, 32), channels=channels))[1:]:
        assert view.shape == (32, 32, channels)
        brightest = view.max(axis=(0, 1)).astype(float)
        assert (np.diff(brightest) >= 0).all()
        assert brightest[-1] > 114 or brightest[0] <= 114


def test_calibration_sees_views_and_counts_images(tmp_path: Path) -> None:
    """The statistics are those of a folder with the images and their views, and a saved table says so."""
    tiny = captured(seeded(TinyDetector()), (16, 16))
    steps: list[None] = []
    table = calibrate(tiny, FEW, lambda: steps.append(None), weighted=True, views=True)
    assert len(steps) == passes_for(tiny, len(FEW), True, True) == 64
    assert (table.images, table.views) == (fingerprint(FEW), 29)
    assert table.image_names == tuple(path.name for path in FEW)
    other = calibrate(tiny, FEW[::-1], lambda: None, weighted=True, views=True)
    with with_views(FEW, tiny.input) as given:
        by_hand = calibrate(tiny, given, lambda: None, weighted=True)
    for name, statistics in table.statistics.items():
        for each in (other, by_hand):
            np.testing.assert_array_equal(each.statistics[name].counts, statistics.counts)
            np.testing.assert_array_equal(each.statistics[name].importance, statistics.importance)
    save_table(table, tmp_path / "calibration.npz")
    assert load_table(tmp_path / "calibration.npz").views == 29
    assert calibrate(tiny, FEW, lambda: None).views == 0


class Watching:
    """A pass that notes how red the pictures are that it is given, and changes nothing."""

    name = "watching"

    def __init__(self) -> None:
        self.redness: list[int] = []

    def requires(self, _: Candidate, /) -> str:
        return ""

    def __call__(self, candidate: Candidate, images: Sequence[Path], _: Progress, /) -> Candidate:
        read = [read_image(path).astype(int) for path in images]
        self.redness += [int((picture[..., 2] - picture[..., 0]).max()) for picture in read]
        return candidate

    def ensures(self, _: Candidate, __: Candidate, /) -> str:
        return ""


def test_passes_never_see_a_view_of_an_image_that_they_are_judged_on(tmp_path: Path) -> None:
    """Every second image is red, and kept for judging; a view of a grey one is grey, whatever is done to colours."""
    grey, red = (60, 60, 60), (0, 0, 250)
    images = [painted(tmp_path / f"{number}.png", grey if number % 2 else red) for number in range(4)]
    tiny = captured(seeded(TinyDetector()), (16, 16))
    plan = make_plan(tiny, synthetic_statistics(tiny.values), OPENVINO)
    for views, seen in ((True, 32), (False, 2)):
        watching = Watching()
        _, (record,) = optimise(Candidate(tiny, plan, tiny), (watching,), images, Silent(), views)
        assert (len(watching.redness), record.images) == (seen, 2)
        assert max(watching.redness) <= 2
