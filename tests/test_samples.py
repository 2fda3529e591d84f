"""Samples beside artifacts: what is kept comes back, of every kind of head and input."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import demo_images
from numpy.typing import NDArray
from scenes import IMGSZ, columns, layout, noisy, written

from qexport.data.images import letterbox, read_image, stretch
from qexport.data.input_form import IMAGENET, InputForm
from qexport.detections.agreement import compare_all
from qexport.detections.layout import HeadLayout
from qexport.errors import InputError
from qexport.inspection import difference
from qexport.inspection.recheck import judged
from qexport.inspection.samples import SampleInput, Samples, batches_of, detect, load_samples, save_samples

Array = NDArray[np.float32]
HEADS = [
    layout("one2many"),
    layout("end2end"),
    layout("queries"),
    layout("one2many", "angles"),
    layout("end2end", "keypoints"),
    layout("one2many", "coefficients"),
    replace(layout("classifier"), strides=()),
]


@dataclass
class Scenes:
    """A runtime that finds the scenes in whatever it is given, as they are or in noise."""

    at: HeadLayout
    noise: int = 0

    def __call__(self, batch: Array) -> tuple[Array, ...]:
        if self.at.classifier:
            return (np.tile(np.array([0.1, 0.7, 0.2], np.float32), (len(batch), 1)),)
        images = [columns(seed, self.at.extras) for seed in range(len(batch))]
        images = [noisy(image, self.at.extras, self.noise) if self.noise else image for image in images]
        return (np.stack([written(image, self.at) for image in images]),)


class Nothing(Scenes):
    """A runtime that finds nothing."""

    def __call__(self, batch: Array) -> tuple[Array, ...]:
        return tuple(map(np.zeros_like, super().__call__(batch)))


def kept(at: HeadLayout, **given: Any) -> Samples:
    images = np.random.default_rng(0).integers(0, 256, (2, *IMGSZ, 3), dtype=np.uint8)
    samples = Samples(at, SampleInput(2, **given), images)
    return replace(samples, found={"a.onnx": detect(Scenes(at), samples.batches, at)})


@pytest.mark.parametrize("at", HEADS, ids=lambda at: f"{at.head} {at.extras}")
def test_samples_come_back_and_are_judged_as_at_the_export(at: HeadLayout, tmp_path: Path) -> None:
    samples = kept(at)
    save_samples(samples, tmp_path / "samples.npz")
    save_samples(samples, tmp_path / "again.npz")
    assert (tmp_path / "samples.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    loaded = load_samples(tmp_path / "samples.npz")
    assert (loaded.layout, loaded.input) == (at, samples.input)
    np.testing.assert_array_equal(loaded.images, samples.images)
    before = loaded.found["a.onnx"]
    same = compare_all(before, detect(Scenes(at), loaded.batches, at), at)
    assert same.share == pytest.approx(1.0)
    what = "probabilities" if at.classifier else "detections"
    assert judged(same, loaded) == (
        True,
        f"100% of the {what} in 2 sample images are those of the export, 80% is the least",
    )
    assert judged(compare_all(before, detect(Scenes(at, noise=3), loaded.batches, at), at), loaded)[0]
    passed, text = judged(compare_all(before, detect(Nothing(at), loaded.batches, at), at), loaded)
    assert not passed
    assert text.startswith(f"only 0% of the {what} agree with the export's, 80% is the least")


def test_inputs_are_made_of_bytes_as_the_network_wants_them(tmp_path: Path) -> None:
    """Samples were kept of RGB in 0..1 alone; channels last and other channels, too."""
    form = InputForm("imagenet", *IMAGENET, bgr=True, channels_last=True)
    samples = kept(layout("one2many"), form=form)
    save_samples(samples, tmp_path / "samples.npz")
    loaded = load_samples(tmp_path / "samples.npz")
    assert loaded.input.form == form
    (batch,) = loaded.batches
    assert batch.shape == (2, *IMGSZ, 3)
    red = samples.images[1, 5, 7, 0] / 255
    assert batch[1, 5, 7, 2] == pytest.approx((red - 0.229 * 0 - 0.406) / 0.225, abs=1e-5)  # blue's constants come last
    grey = batches_of(samples.images[..., :1], SampleInput(1))
    assert [each.shape for each in grey] == [(1, 1, *IMGSZ)] * 2
    assert len(batches_of(samples.images, SampleInput(3))) == 0


@pytest.mark.parametrize("classifier", [True, False])
def test_files_of_earlier_versions_are_read_but_have_no_scores(classifier: bool, tmp_path: Path) -> None:
    head = {"schema": 1, "batch": 1, "final": False, "classes": 6, "turned": False, "classifier": classifier}
    images = np.zeros((2, 8, 16, 3), np.uint8)
    arrays: dict[str, Any] = {"found/a.onnx": np.zeros((3, 6), np.float32)}
    np.savez_compressed(tmp_path / "samples.npz", head=np.array(json.dumps(head)), images=images, **arrays)
    loaded = load_samples(tmp_path / "samples.npz")
    assert loaded.found == {}
    assert loaded.input == SampleInput(1, "centre crop" if classifier else "letterbox")
    assert loaded.layout.box_format == ("" if classifier else "centre")
    assert [batch.shape for batch in loaded.batches] == [(1, 3, 8, 16)] * 2


@pytest.mark.parametrize("damage", [{"schema": 3}, {"layout": {"colour": 1}}, {"form": {"pixels": "0..1", "x": 1}}])
def test_what_is_no_samples_file_is_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    save_samples(kept(layout("end2end")), tmp_path / "samples.npz")
    with np.load(tmp_path / "samples.npz") as content:
        arrays: dict[str, Any] = dict(content)
    arrays["head"] = np.array(json.dumps({**json.loads(str(arrays["head"])), **damage}))
    np.savez_compressed(tmp_path / "samples.npz", **arrays)
    with pytest.raises(InputError, match="holds no samples"):
        load_samples(tmp_path / "samples.npz")


@pytest.mark.parametrize(("preprocess", "channels"), [("letterbox", 3), ("stretch", 3), ("stretch", 1)])
def test_diff_brings_images_to_size_as_the_run_did(preprocess: str, channels: int) -> None:
    """RT-DETR's images are stretched, and not every model takes three channels."""
    images = np.zeros((1, 64, 96, channels), np.uint8)
    samples = Samples(layout("queries"), SampleInput(1, preprocess), images)
    (path,) = demo_images("val", 1)
    shape = {"letterbox": letterbox, "stretch": stretch}[preprocess]
    expected = shape(read_image(path, channels), (64, 96))[..., ::-1]
    np.testing.assert_array_equal(difference._pixels([path], samples)[0], expected)


class Backend:
    """Hands out runtimes by hand."""

    def __init__(self, runner: Scenes) -> None:
        self.runner_of = runner

    def runner(self, path: Path, threads: int) -> Scenes:
        return self.runner_of


def output_row(tmp_path: Path, one: Samples, other: Samples, *runners: Scenes) -> difference.Row:
    for name, samples in (("a", one), ("b", other)):
        (tmp_path / name).mkdir()
        save_samples(samples, tmp_path / name / "samples.npz")
    places = [tmp_path / name / "a.onnx" for name in ("a", "b")]
    backends: list[Any] = [Backend(runner) for runner in runners]
    (row,) = difference._output_rows(places[0], places[1], backends, (), 1)
    return row


@pytest.mark.parametrize("at", HEADS[:4], ids=lambda at: f"{at.head} {at.extras}")
def test_diff_compares_what_each_head_writes(at: HeadLayout, tmp_path: Path) -> None:
    same = output_row(tmp_path, kept(at), kept(at), Scenes(at), Scenes(at))
    told = "detections in 2 images: 100.0% shared, boxes overlap by 1.000, B's scores +0.000"
    assert (same.what, same.same, same.a, same.b) == (told, True, "12", "12")


def test_diff_tells_noise_and_reads_each_artifact_by_its_own_head(tmp_path: Path) -> None:
    dense, rows = layout("one2many"), layout("end2end")
    noise = output_row(tmp_path, kept(dense), kept(dense), Scenes(dense), Scenes(dense, noise=2))
    assert noise.same is False
    assert "shared, boxes overlap by 0.9" in noise.what
    both = output_row(make(tmp_path / "heads"), kept(dense), kept(rows), Scenes(dense), Scenes(rows))
    assert both.same is True


def test_diff_of_other_inputs_says_so(tmp_path: Path) -> None:
    at = layout("end2end")
    row = output_row(tmp_path, kept(at), kept(at, preprocess="stretch"), Scenes(at), Scenes(at))
    assert (row.what, row.same) == ("input", False)
    assert (row.a, row.b) == ("2x160x224x3, letterbox, RGB, 0..1", "2x160x224x3, stretch, RGB, 0..1")


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder
