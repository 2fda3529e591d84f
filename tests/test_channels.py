"""Models of one and of four channels: images as Ultralytics reads them, and whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from conftest import DEMO, demo_checkpoint, demo_images
from small_models import saved, small_model

from qexport.data.images import letterbox, read_image, stretch, to_tensor
from qexport.errors import InputError
from qexport.job.options import make_job
from qexport.pipeline import export
from qexport.progress import Silent


def bands(path: Path, source: Path) -> Path:
    """A TIFF of four pages: an image's colours and their mean."""
    image = cv2.imread(str(source))
    assert image is not None
    pages = [*cv2.split(image), image.mean(axis=2).astype(np.uint8)]
    assert cv2.imwritemulti(str(path), pages)
    return path


@pytest.mark.parametrize("channels", [1, 4])
def test_images_are_read_and_framed_as_ultralytics_does(channels: int, tmp_path: Path) -> None:
    from ultralytics.data.augment import LetterBox
    from ultralytics.utils.patches import imread

    source = demo_images("val", 1)[0]
    path = source if channels == 1 else bands(tmp_path / "bands.tiff", source)
    expected = imread(str(path), {1: cv2.IMREAD_GRAYSCALE, 4: cv2.IMREAD_UNCHANGED}[channels])
    image = read_image(path, channels)
    np.testing.assert_array_equal(image, expected)
    assert image.shape[2] == channels
    framed: Any = LetterBox((96, 160), auto=False)(image=expected)
    np.testing.assert_array_equal(letterbox(image, (96, 160)), framed.reshape(96, 160, channels))
    assert stretch(image, (64, 96)).shape == (64, 96, channels)
    np.testing.assert_array_equal(to_tensor(image)[0], image[..., 0] / np.float32(255))  # no order is changed


def test_an_image_of_other_channels_is_refused() -> None:
    with pytest.raises(InputError, match="has 3 channels, not 4"):
        read_image(demo_images("val", 1)[0], 4)


def model(channels: int, folder: Path) -> Path:
    """Of four channels the demo model, with a first layer that finds the colours, in OpenCV's order, among them."""
    if channels == 1:
        return saved(small_model(channels=1, nc=6), folder / "channels1.pt")
    module = demo_checkpoint().module.float()
    stem = module.model[0].conv
    colours = stem.weight.data.flip(1)
    weight = torch.cat((colours, colours[:, :1] * 0), dim=1)
    stem.weight, stem.in_channels = torch.nn.Parameter(weight), channels
    module.yaml = {**module.yaml, "channels": channels}
    path = folder / f"channels{channels}.pt"
    torch.save({"model": module, "train_args": {"task": "detect", "imgsz": 320}}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_a_run_calibrates_verifies_and_scores(channels: int, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    for source in demo_images("val", 4):
        target = tmp_path / "images" / f"{source.stem}{'.jpg' if channels == 1 else '.tiff'}"
        target.symlink_to(source) if channels == 1 else bands(target, source)
        label = DEMO / "shapes" / "labels" / "val" / f"{source.stem}.txt"
        (tmp_path / "labels" / label.name).write_text(label.read_text(encoding="utf-8"), encoding="utf-8")
    names = yaml.safe_load((DEMO / "shapes" / "shapes.yaml").read_text(encoding="utf-8"))["names"]
    data = tmp_path / "data.yaml"
    content = {"path": str(tmp_path), "train": "images", "val": "images", "names": names, "channels": channels}
    data.write_text(yaml.safe_dump(content), encoding="utf-8")
    options = {"format": "onnx", "int8": True, "effort": "none", "no_latency": True, "out": tmp_path / "out"}
    report = export(make_job({"model": str(model(channels, tmp_path)), "data": str(data), **options}), Silent())
    small = next(artifact for artifact in report.artifacts if artifact.precision == "int8")
    assert small.accuracy is not None
    assert small.accuracy.images == 4
    if channels == 4:  # the colours are all there
        assert (small.accuracy.map or 0) > 0.7
    assert report.calibration is not None
    size = "64x64" if channels == 1 else "320x320"  # those that the checkpoints say
    assert report.calibration.preprocess == f"letterbox {size}, {'grey' if channels == 1 else '4 channels'}, 0..1"
