"""The way into a file and out of it with NumPy alone: pixels, metadata, outputs, against what others make of them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from qexport.backends.tflite.file import append_metadata
from qexport.compat.torchvision import repair
from qexport.data.images import PREPROCESS
from qexport.decode import (
    Detections,
    HeadLayout,
    ModelInfo,
    as_input,
    centre_crop,
    found_in,
    in_image,
    info_of,
    letterbox,
    letterboxed,
    padded,
    prepared,
    probabilities,
    prototypes,
    read_model_info,
    resized,
)
from qexport.decode.metadata import onnx_metadata
from qexport.detections.placement import stretched
from qexport.errors import InputError

SIZES = ((64, 96), (480, 640), (33, 200), (101, 7), (1, 300), (40, 50))
QUERIES = HeadLayout((), (100, 100), 2, end2end=True, head="queries")
METADATA = {"task": "detect", "names": {0: "cat", 1: "dog"}, "imgsz": [64, 96], "batch": 1, "end2end": True}


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(256, size=(height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_brought_to_size_as_opencv_and_pillow_do(size: tuple[int, int]) -> None:
    repair()
    image = pixels(*size)
    for head, way in (("", "letterbox"), ("classifier", "centre crop"), ("queries", "stretch")):
        for imgsz, uneven in (((64, 96), 1), ((80, 80), 0)):
            found, placement = prepared(image, HeadLayout((), imgsz, 2, head=head))
            levels = uneven if head == "classifier" else 0
            wanted = PREPROCESS[way](image[..., ::-1], imgsz)[..., ::-1]
            np.testing.assert_allclose(found.astype(int), wanted.astype(int), rtol=0, atol=levels)
            assert (placement.size, placement.imgsz) == (size, imgsz)


def test_an_image_that_something_else_has_scaled_is_padded() -> None:
    image = pixels(50, 100)
    whole, placement = letterbox(image, (64, 96))
    assert (placement.inner, placement.margins) == ((48, 96), (8, 8, 0, 0))
    np.testing.assert_array_equal(padded(resized(image, (48, 96)), placement), whole)
    with pytest.raises(ValueError, match=r"has \(50, 100\) pixels, not \(48, 96\)"):
        padded(image, placement)
    wrongs: list[Any] = [image[..., 0], image.astype(np.float32), image[..., :2], image[:0]]
    for wrong in wrongs:
        with pytest.raises(ValueError, match="an image is"):
            letterbox(wrong, (64, 96))
        with pytest.raises(ValueError, match="an image is"):
            centre_crop(wrong, (64, 96))


def test_pixels_become_what_a_file_takes() -> None:
    image = np.array([[[0, 51, 255]], [[10, 20, 30]]], np.uint8)
    floats = as_input(image)
    assert floats.shape == (1, 3, 2, 1)
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats[0, :, 0, 0], [0, 0.2, 1])
    assert as_input(np.stack([image, image]), np.float16).shape == (2, 3, 2, 1)
    signed = as_input(image, np.int8, (1 / 255, -128))
    assert (signed.shape, signed[0, 0, 0].tolist()) == ((1, 2, 1, 3), [-128, -77, 127])
    assert as_input(image, np.uint8, (1 / 255, 0))[0].tolist() == image.tolist()


def test_stretched_boxes_come_back_by_two_scales() -> None:
    placement = stretched((50, 200), (100, 100))
    assert placement.scale == (0.5, 2.0)
    assert placement.margins == (0, 0, 0, 0)
    box, one = np.array([[10, 20, 60, 120]], np.float32), np.ones(1, np.float32)
    there = in_image(Detections(box, one, np.zeros(1, np.int64), np.zeros((1, 0), np.float32)), placement, QUERIES)
    assert there.boxes.tolist() == [[20, 10, 120, 50]]  # nothing lies below the image


def test_metadata_are_read_from_every_file(tmp_path: Path) -> None:
    """Of ONNX without the package, by what that package wrote; of an engine by the bytes that Ultralytics reads."""
    onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", [], [])
    graph.initializer.append(onnx.numpy_helper.from_array(np.arange(5000, dtype=np.float32), "w"))
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    own = {**METADATA, "thresholds": {"everything": 0.3, "classes": {"1": 0.6, "0": 0.3}}}
    onnx.helper.set_model_props(model, {key: str(value) for key, value in own.items()} | {"author": "me, 猫"})
    onnx.save(model, tmp_path / "m.onnx")
    assert onnx_metadata(tmp_path / "m.onnx") == {entry.key: entry.value for entry in model.metadata_props}
    said = json.dumps(own).encode()
    (tmp_path / "m.engine").write_bytes(struct.pack("<I", len(said)) + said + b"engine")
    (tmp_path / "m.tflite").write_bytes(b"a flatbuffer")
    append_metadata(tmp_path / "m.tflite", own)
    (tmp_path / "m_openvino_model").mkdir()
    (tmp_path / "m_openvino_model" / "metadata.yaml").write_text(json.dumps(own))  # YAML knows JSON
    for name in ("m.onnx", "m.engine", "m.tflite", "m_openvino_model"):
        info = read_model_info(tmp_path / name)
        assert (info.task, info.names, info.layout.imgsz) == ("detect", ("cat", "dog"), (64, 96))
        assert info.layout.end2end
        assert (info.threshold, info.class_thresholds, info.normalised) == (0.3, {1: 0.6}, False)
        np.testing.assert_array_equal(info.least_scores, np.array([0.3, 0.6], np.float32))


def test_which_files_give_shares_of_the_input() -> None:
    one2many = {**METADATA, "end2end": False}
    raw = {"raw_outputs": {"strides": [8], "reg_max": 1, "further": "", "shape": [0, 0], "newer": False}}
    assert info_of(one2many, tflite=True).unit == (96, 64)
    for metadata, tflite in ((one2many, False), (METADATA, True), ({**one2many, **raw}, True)):
        assert info_of(metadata, tflite).unit == (1, 1)
    assert not info_of({**one2many, "task": "classify"}, tflite=True).normalised


VARINT = b"\xff" * 11
REFUSED = [
    ("missing.onnx", None, "cannot be read"),
    ("m.tflite", b"a flatbuffer alone", "has no metadata"),
    ("m.onnx", VARINT, "no ONNX model"),
    ("m.onnx", b"\x72\xff\xff\xff\x0f", "cut short"),
    ("m.onnx", b"\x73", "no ONNX model"),
    ("m.onnx", b"\x72", "cut short"),
    ("m.onnx", b"\x08\x01" * 100_001, "more than 100,000 fields"),
    ("m.onnx", b"", "not as qexport writes them"),
    ("m.engine", b"\xff\xff\xff\x7f", "does not begin with metadata"),
    ("m.engine", b"\x02\0\0\0[]", "not as qexport writes them"),
    ("m.engine", b"\x05\0\0\0[[[[[", "has no metadata"),
]


@pytest.mark.parametrize(("name", "content", "reason"), REFUSED)
def test_files_that_say_nothing_are_one_line(name: str, content: bytes | None, reason: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=reason) as raised:
        read_model_info(tmp_path / name)
    assert name in str(raised.value)


@pytest.mark.parametrize(
    "wrong", [{"task": "play"}, {"names": {}}, {"names": {1: "a"}}, {"imgsz": [0, 64]}, {"batch": 0}, {"channels": "x"}]
)
def test_metadata_of_another_form_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        info_of({**METADATA, **wrong})
    with pytest.raises(ValueError, match="names"):
        info_of({key: value for key, value in METADATA.items() if key != "names"})


def test_outputs_are_told_apart_by_their_axes() -> None:
    layout = HeadLayout((), (64, 96), 2, end2end=True, extras="coefficients")
    info = ModelInfo(task="segment", layout=layout, names=("cat", "dog"), class_thresholds={1: 0.6})
    rows = np.array([[[1, 2, 30, 40, 0.5, 0, 7, 8], [5, 6, 70, 80, 0.5, 1, 7, 8], [0] * 8]], np.float32)
    planes = np.random.default_rng(0).normal(size=(1, 2, 16, 24)).astype(np.float32)
    for outputs in ([rows, planes], [planes, rows]):
        (found,) = found_in(outputs, info)
        assert (found.boxes.tolist(), found.classes.tolist()) == ([[1, 2, 30, 40]], [0])
        np.testing.assert_array_equal(prototypes(outputs, info)[0, 3, 5], planes[0, :, 3, 5])


def test_a_classifier_has_probabilities_and_no_boxes() -> None:
    layout = HeadLayout((), (64, 64), 2, head="classifier")
    info = ModelInfo(task="classify", layout=layout, names=("cat", "dog"))
    assert probabilities([np.array([[0.25, 0.75]], np.float32)], info).tolist() == [[0.25, 0.75]]
    raw = ModelInfo(task="classify", layout=layout, names=("cat", "dog"), integers=True)
    np.testing.assert_allclose(probabilities([np.log([[1, 3]]).astype(np.float32)], raw), [[0.25, 0.75]], rtol=1e-6)
    with pytest.raises(ValueError, match="finds no boxes"):
        found_in([np.zeros((1, 2), np.float32)], info)


def test_thin_images_keep_a_pixel() -> None:
    assert letterboxed((1, 1000), (64, 64)).inner == (1, 64)
    image = Image.fromarray(pixels(1, 1000))
    assert letterbox(np.asarray(image), (64, 64))[0].shape == (64, 64, 3)
