"""One streaming pass over images, against running the program and looking at its values."""

from __future__ import annotations

import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TinyDetector, captured, demo_image, demo_images, seeded
from PIL import Image
from torch import Tensor
from torch.fx import Interpreter, Node

from qexport.calibration.calibrate import calibrate, preprocess_name
from qexport.calibration.calibration_table import CalibrationTable
from qexport.calibration.observer import Observer
from qexport.calibration.statistics import BINS
from qexport.data.dataset import fingerprint
from qexport.data.images import stream
from qexport.errors import InputError
from qexport.planning.ranges import percentile
from qexport.programs.captured_graph import module_of
from qexport.programs.program import MOVES_DATA, Program


def nothing() -> None:
    """No progress is shown."""


def test_statistics_are_those_of_the_layers_own_outputs(tiny: Program) -> None:
    """A forward hook on the float module sees what calibration should have seen."""
    images = demo_images("train", 3)
    table = calibrate(tiny, images, nothing)
    module = seeded(TinyDetector())
    assert isinstance(module, TinyDetector)
    seen: list[Tensor] = []
    module.deep.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    from qexport.data.images import letterbox, read_image, to_tensor

    with torch.no_grad():
        for path in images:
            module(torch.from_numpy(to_tensor(letterbox(read_image(path), (8, 8))))[None])
    extremes = [(float(t.min()), float(t.max())) for t in seen]
    found = table.statistics["deep_conv"]
    assert found.minimum == pytest.approx(min(low for low, _ in extremes), rel=1e-5)
    assert found.maximum == pytest.approx(max(high for _, high in extremes), rel=1e-5)
    assert found.counts.sum() == 3 * 8 * 2 * 2


def test_pixels_lie_between_0_and_1(demo_table: CalibrationTable) -> None:
    pixels = demo_table.statistics["images"]
    assert 0 <= pixels.minimum < 0.1
    assert 0.9 < pixels.maximum <= 1


def test_a_sigmoid_lies_between_0_and_1_and_silu_above_its_floor(demo_table: CalibrationTable) -> None:
    for name, statistics in demo_table.statistics.items():
        if name.endswith("_sigmoid"):
            assert 0 <= statistics.minimum <= statistics.maximum <= 1, name
    assert demo_table.statistics["model_0_mul"].minimum > -0.2785  # the minimum of SiLU


def test_every_value_that_computes_something_is_watched(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    body = [v for v in demo_one2many.values.values() if v.region == "body"]
    assert list(demo_table.statistics) == [v.name for v in body if v.operation not in MOVES_DATA]


def test_the_table_says_what_it_is_of(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    images = demo_images("train", 4)
    assert demo_table.program == demo_one2many.fingerprint
    assert demo_table.preprocess == preprocess_name(demo_one2many) == "letterbox 320x320, RGB, 0..1"
    assert demo_table.image_names == tuple(path.name for path in images)
    assert demo_table.images == fingerprint(images)
    assert demo_table.skipped == ()


def test_the_order_of_images_changes_nothing_but_their_order(tiny: Program) -> None:
    images = demo_images("train", 5)
    one, other = calibrate(tiny, images, nothing), calibrate(tiny, images[::-1], nothing)
    assert other.image_names == one.image_names[::-1]
    assert other.images == one.images
    for name, statistics in one.statistics.items():
        np.testing.assert_array_equal(statistics.counts, other.statistics[name].counts)
        assert (statistics.minimum, statistics.maximum) == (
            other.statistics[name].minimum,
            other.statistics[name].maximum,
        )


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_the_number_of_threads_changes_nothing(tiny: Program, workers: int) -> None:
    images, threads = demo_images("train", 5), torch.get_num_threads()
    one, other = (calibrate(tiny, images, nothing, workers=count) for count in (2, workers))
    assert torch.get_num_threads() == threads
    assert (one.image_names, one.images) == (other.image_names, other.images)
    for name, statistics in one.statistics.items():
        np.testing.assert_array_equal(statistics.counts, other.statistics[name].counts)


def test_corrupt_images_are_skipped_and_named(tiny: Program, tmp_path: Path) -> None:
    good = demo_images("train", 2)
    (tmp_path / "cut.jpg").write_bytes(good[0].read_bytes()[:300])
    (tmp_path / "empty.jpg").touch()
    steps: list[None] = []
    table = calibrate(tiny, [tmp_path / "cut.jpg", *good, tmp_path / "empty.jpg"], lambda: steps.append(None))
    assert [name for name, _ in table.skipped] == ["cut.jpg", "empty.jpg"]
    assert "is empty" in table.skipped[1][1]
    assert table.image_names == tuple(path.name for path in good)
    assert table.images == fingerprint([tmp_path / "cut.jpg", *good, tmp_path / "empty.jpg"])
    assert table.statistics["images"].counts.sum() == 2 * 3 * 8 * 8
    assert len(steps) == 4


def test_too_few_usable_images_are_an_error(tiny: Program, tmp_path: Path) -> None:
    images = [tmp_path / f"{index}.jpg" for index in range(3)]
    for path in images[1:]:
        path.touch()
    shutil.copy(demo_images("train", 1)[0], images[0])
    with pytest.raises(InputError, match=r"only 1 of 3 calibration images are usable.* 1\.jpg .*is empty"):
        calibrate(tiny, images, nothing)


def test_no_images_at_all_are_an_error(tiny: Program) -> None:
    with pytest.raises(InputError, match="no calibration images: add --data"):
        calibrate(tiny, [], nothing)


class Damaged(TinyDetector):
    """Not finite for an image that is white throughout."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / (images.amin() - 1))


def test_a_value_that_is_not_finite_is_named(tmp_path: Path) -> None:
    program = captured(seeded(Damaged()))
    Image.new("RGB", (16, 16), (255, 255, 255)).save(tmp_path / "white.png")
    with pytest.raises(InputError, match=r"^program_div \(div\) is not finite for calibration image .*/white\.png: "):
        calibrate(program, [tmp_path / "white.png"], nothing)


def test_a_fixed_batch_is_filled_with_one_image() -> None:
    from conftest import demo_checkpoint

    from qexport.programs.capture import capture
    from qexport.programs.heads import split_head

    size, images = (64, 64), demo_images("train", 2)
    one, two = (capture(split_head(demo_checkpoint().module, "one2many", size), size, batch) for batch in (1, 2))
    alone, doubled = (calibrate(program, images, nothing).statistics for program in (one, two))
    assert list(alone) == list(doubled)
    for name, statistics in alone.items():
        assert doubled[name].minimum == pytest.approx(statistics.minimum, rel=1e-4, abs=1e-5), name
        assert doubled[name].maximum == pytest.approx(statistics.maximum, rel=1e-4, abs=1e-5), name
        times = 1 if two.values[name].operation == "sigmoid" else 2  # those are not counted
        assert doubled[name].counts.sum() == times * statistics.counts.sum()


def test_sigmoids_span_0_to_1_whatever_the_images_show(tiny: Program) -> None:
    statistics = calibrate(tiny, demo_images("train", 1), nothing).statistics
    gates = [value.name for value in tiny.values.values() if value.operation == "sigmoid" and value.region == "body"]
    assert gates
    for name in gates:
        assert (statistics[name].minimum, statistics[name].maximum, statistics[name].limit) == (0.0, 1.0, 1.0)
        assert percentile(statistics[name]) == (0.0, 1.0)
        assert not statistics[name].counts[: BINS // 2].any()


def test_statistics_are_those_of_the_program_run_as_it_is(tiny: Program) -> None:
    """Against torch.fx's own interpreter, which moves no channels."""
    found: dict[str, tuple[float, float]] = {}

    class Recording(Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, Tensor):
                found[n.name] = (float(result.min()), float(result.max()))
            return result

    image = demo_images("train", 1)
    (pixels,) = (pixels for _, pixels in stream(image, tiny.input.imgsz, lambda *_: None))
    with torch.no_grad():
        Recording(module_of(tiny)).run(torch.from_numpy(pixels)[None])
    statistics = calibrate(tiny, image, nothing).statistics
    watched = [name for name in statistics if tiny.values[name].operation != "sigmoid"]
    assert len(watched) > 8
    for name in watched:
        seen = (statistics[name].minimum, statistics[name].maximum)
        assert seen == pytest.approx(found[name], rel=1e-4, abs=1e-5), name


def test_values_are_freed_as_soon_as_nothing_reads_them(tiny: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """When one image is done, no tensor of it is left but what the observers' arrays took from it."""
    seen: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    update = Observer.update

    def watched(observer: Observer, tensor: Tensor) -> None:
        update(observer, tensor)
        seen.append(weakref.ref(tensor))
        alive.append(sum(ref() is not None for ref in seen))

    monkeypatch.setattr(Observer, "update", watched)
    calibrate(tiny, demo_images("train", 6), nothing, workers=1)
    each = len(seen) // 6
    assert each * 6 == len(seen)
    assert each > 10
    assert max(alive) < each  # not even all values of one image are alive at once
    assert max(alive[each:]) <= max(alive[:each]) + 1


def test_the_demo_image_is_a_real_one() -> None:
    assert demo_image((64, 64)).std() > 0.05
