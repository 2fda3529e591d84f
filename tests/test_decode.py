"""The NumPy decode against the float decode of the program, on the same raw outputs."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.detections.layout import HeadLayout, layout_of, raw_outputs_of
from qexport.detections.masks import instance_masks
from qexport.detections.matching import rotated_overlaps
from qexport.detections.numpy_decode import anchor_points, decoded, dequantised, detections, sigmoid
from qexport.detections.suppression import suppressed, suppressed_rotated
from qexport.programs.torch_decode import Decode

IMGSZ = (64, 96)
STRIDES = (8, 16, 32)
"""96, 24 and 6 cells."""


KINDS = {"": (0, 0), "coefficients": (4, 1), "angles": (1, 1), "keypoints": (3, 3), "two-valued keypoints": (2, 2)}


def layout(
    classes: int = 3, reg_max: int = 1, end2end: bool = True, kind: str = "", direct: bool = False
) -> HeadLayout:
    return HeadLayout(STRIDES, IMGSZ, classes, reg_max, end2end, kind.rpartition(" ")[2], KINDS[kind], direct)


def raw_outputs(seed: int, at: HeadLayout, batch: int = 1) -> tuple[list[Any], list[Any], list[Any]]:
    """Channels-last distances, logits and further values; logits all differ, so that no order is left to chance."""
    random = np.random.default_rng(seed)
    boxes, scores, extras = [], [], []
    cells = [(IMGSZ[0] // s, IMGSZ[1] // s) for s in STRIDES]
    number = batch * at.classes * sum(h * w for h, w in cells)
    logits = iter(np.split(random.permutation(np.linspace(-9, 5, number)), number))
    for h, w in cells:
        spread = 3.0 if at.reg_max > 1 else 5.0
        boxes.append(random.uniform(0, spread, (batch, h, w, 4 * at.reg_max)).astype(np.float32))
        values = np.array([next(logits)[0] for _ in range(batch * h * w * at.classes)])
        scores.append(values.reshape(batch, h, w, at.classes).astype(np.float32))
        if at.extras:
            extras.append(random.normal(0, 2, (batch, h, w, at.shape[0] * at.shape[1])).astype(np.float32))
    return boxes, scores, extras


def float_decode(raw: tuple[list[Any], ...], at: HeadLayout) -> Any:
    decode = Decode(at)
    given = [[torch.from_numpy(level).permute(0, 3, 1, 2) for level in levels] for levels in raw]
    return decode(*given).numpy()


def test_what_metadata_say_of_raw_outputs_is_read_as_it_was_written() -> None:
    at = HeadLayout(STRIDES, IMGSZ, 2, 16, True, "keypoints", (5, 3), direct=True, max_detections=84)
    said = raw_outputs_of(at)
    assert said == {
        "strides": [8, 16, 32],
        "reg_max": 16,
        "further": "keypoints",
        "shape": [5, 3],
        "newer": True,
        "max_detections": 84,
    }
    metadata = {"imgsz": list(IMGSZ), "names": {0: "a", 1: "b"}, "end2end": True, "task": "pose", "raw_outputs": said}
    assert layout_of(metadata) == at


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 5, 16]),
    st.booleans(),
    st.sampled_from([1, 3, 20]),
    st.sampled_from(list(KINDS)),
    st.booleans(),
)
def test_all_of_the_output_is_that_of_the_float_decode(
    seed: int, batch: int, reg_max: int, end2end: bool, classes: int, kind: str, direct: bool
) -> None:
    at = layout(classes, reg_max, end2end, kind, direct)
    raw = raw_outputs(seed, at, batch)
    expected, found = float_decode(raw, at), decoded([level for levels in raw for level in levels], at)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(-128, 127), st.floats(1e-4, 0.2))
def test_integers_become_the_numbers_that_they_stand_for(seed: int, zero_point: int, scale: float) -> None:
    integers = np.random.default_rng(seed).integers(-128, 128, 50).astype(np.int8)
    expected = [(int(i) - zero_point) * float(np.float32(scale)) for i in integers]
    np.testing.assert_allclose(dequantised(integers, scale, zero_point), expected, rtol=1e-6)


def test_one_cell_by_hand() -> None:
    """Stride 8, second cell of the first row: centre (12, 4); one stride left, two down."""
    at = HeadLayout((8,), (8, 16), 2, 1, True)
    boxes = np.zeros((1, 1, 2, 4), np.float32)
    boxes[0, 0, 1] = (1, 0, 0, 2)
    scores = np.full((1, 1, 2, 2), -20, np.float32)
    scores[0, 0, 1, 1] = 0
    (found,) = detections([boxes, scores], at)
    assert found.boxes.tolist() == [[4, 4, 12, 20]]
    assert found.scores.tolist() == [0.5]
    assert found.classes.tolist() == [1]


def test_one_to_many_heads_are_suppressed_class_by_class() -> None:
    """Two cells say the same box twice, once as another class."""
    at = HeadLayout((8,), (8, 16), 2, 1, False)
    boxes = np.array([[[[0.5, 0.5, 1.5, 0.5], [1.5, 0.5, 0.5, 0.5]]]], np.float32)  # both 0..16 by 0..8
    scores = np.array([[[[2.0, -9], [1.0, 3.0]]]], np.float32)
    (found,) = detections([boxes, scores], at)
    assert found.classes.tolist() == [1, 0]
    np.testing.assert_allclose(found.scores, [1 / (1 + np.exp(-3)), 1 / (1 + np.exp(-2))], rtol=1e-6)
    np.testing.assert_allclose(found.boxes, [[0, 0, 16, 8]] * 2, atol=1e-5)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_suppression_is_ultralytics_own(seed: int) -> None:
    from ultralytics.utils.nms import TorchNMS

    random = np.random.default_rng(seed)
    corner, size = random.uniform(0, 40, (30, 2)), random.uniform(5, 30, (30, 2))
    boxes = np.concatenate((corner, corner + size), 1).astype(np.float32)
    scores = torch.linspace(1, 0.1, 30)
    expected = TorchNMS.nms(torch.from_numpy(boxes), scores, 0.45).tolist()
    assert suppressed(boxes, np.zeros(30, np.int64), 0.45).tolist() == expected


@pytest.mark.parametrize("end2end", [True, False])
def test_keypoints_of_one_cell_by_hand(end2end: bool) -> None:
    """YOLO26's offsets are in strides from the middle of the cell, those before it twice as far from its corner."""
    at = HeadLayout((8,), (8, 16), 1, 1, end2end, "keypoints", (1, 3), direct=end2end)
    scores = np.array([[[[-20], [3]]]], np.float32)
    said = np.zeros((1, 1, 2, 3), np.float32)
    said[0, 0, 1] = (1, -0.25, 0)
    (found,) = detections([np.ones((1, 1, 2, 4), np.float32), scores, said], at)
    # The middle is at (12, 4). Newer: + 8 · (1, −0.25). Older: + 8 · (2 · (1, −0.25) − 0.5).
    assert found.extras.tolist() == [[20, 2, 0.5] if end2end else [24, -4, 0.5]]


def test_rotated_boxes_of_one_cell_by_hand() -> None:
    """A quarter turn, (sigmoid(ln 3) − 0.25) · π: the middle moves two strides to the right, so down."""
    at = HeadLayout((8,), (8, 8), 1, 1, False, "angles", (1, 1))
    quarter = np.full((1, 1, 1, 1), np.log(3), np.float32)
    boxes = np.array([[[[1, 1, 5, 1]]]], np.float32)
    (found,) = detections([boxes, np.zeros((1, 1, 1, 1), np.float32), quarter], at)
    np.testing.assert_allclose(found.boxes, [[4, 4 + 16, 48, 16]], atol=1e-4)
    np.testing.assert_allclose(found.extras, [[np.pi / 2]], rtol=1e-6)


def rotated_boxes(seed: int, number: int = 25) -> Any:
    random = np.random.default_rng(seed)
    columns = random.uniform(0, 40, (number, 2)), random.uniform(4, 30, (number, 2)), random.uniform(-1, 3, (number, 1))
    return np.concatenate(columns, 1).astype(np.float32)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_rotated_boxes_overlap_as_ultralytics_says(seed: int) -> None:
    from ultralytics.utils.metrics import batch_probiou
    from ultralytics.utils.nms import TorchNMS

    boxes = rotated_boxes(seed)
    expected = batch_probiou(boxes, boxes).numpy()
    # Where boxes are alike a square root makes 3e-4 of float32's last digit.
    np.testing.assert_allclose(rotated_overlaps(boxes), expected, atol=2e-3)
    kept = TorchNMS.fast_nms(torch.from_numpy(boxes), torch.linspace(1, 0.1, 25), 0.3, iou_func=batch_probiou)
    assert suppressed_rotated(boxes, np.zeros(25, np.int64), 0.3).tolist() == kept.tolist()


def test_rotated_boxes_of_other_classes_are_no_rivals() -> None:
    boxes = np.repeat(rotated_boxes(0, 1), 3, axis=0)
    assert suppressed_rotated(boxes, np.array([0, 1, 0]), 0.5).tolist() == [0, 1]


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([(64, 96), (128, 96)]))
def test_masks_are_ultralytics_own(seed: int, imgsz: tuple[int, int]) -> None:
    from ultralytics.utils.ops import process_mask

    random = np.random.default_rng(seed)
    prototypes = random.normal(0, 1, (imgsz[0] // 4, imgsz[1] // 4, 6)).astype(np.float32)
    coefficients = random.normal(0, 1, (5, 6)).astype(np.float32)
    corner, size = random.uniform(-5, 50, (5, 2)), random.uniform(0, 60, (5, 2))
    boxes = np.concatenate((corner, corner + size), 1).astype(np.float32)
    given = torch.from_numpy(prototypes).permute(2, 0, 1), torch.from_numpy(coefficients), torch.from_numpy(boxes)
    expected = process_mask(*given, imgsz, upsample=True).bool().numpy()
    found = instance_masks(coefficients, prototypes, boxes, imgsz)
    assert found.shape == (5, *imgsz)
    assert (found != expected).mean() < 1e-4  # a pixel may lie on either side of zero


def test_there_are_as_many_masks_as_objects() -> None:
    nothing = np.zeros((0, 6), np.float32), np.ones((4, 4, 6), np.float32), np.zeros((0, 4), np.float32)
    assert instance_masks(*nothing, (16, 16)).shape == (0, 16, 16)


def test_a_classifiers_logits_become_probabilities() -> None:
    logits = np.log(np.array([[1, 2, 5], [7, 2, 1]], np.float32))
    found = decoded([logits], HeadLayout((), (96, 96), 3))
    np.testing.assert_allclose(found, [[1 / 8, 2 / 8, 5 / 8], [0.7, 0.2, 0.1]], rtol=1e-6)


def test_nothing_found_is_nothing_given() -> None:
    for end2end in (True, False):
        at = layout(end2end=end2end)
        boxes, scores, _ = raw_outputs(0, at)
        (found,) = detections([*boxes, *(np.full_like(s, -30) for s in scores)], at)
        assert (found.boxes.shape, found.scores.shape, found.classes.shape) == ((0, 4), (0,), (0,))
        assert found.extras.shape == (0, 0)


def test_extreme_logits_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert sigmoid(np.array([-1e4, 0, 1e4], np.float32)).tolist() == [0, 0.5, 1]


def test_the_layout_is_read_from_the_files_metadata() -> None:
    metadata = {
        "imgsz": [64, 96],
        "names": {0: "a", 1: "b"},
        "end2end": False,
        "raw_outputs": {"strides": [8, 16, 32], "reg_max": 16, "further": "angles", "shape": [1, 1], "newer": True},
    }
    assert layout_of(metadata) == layout(2, 16, False, "angles", direct=True)
    points, strides = anchor_points(layout_of(metadata))
    assert points.shape == (126, 2)
    assert strides[[0, 96, 120], 0].tolist() == [8, 16, 32]


def test_what_programs_on_devices_import_and_read_stays() -> None:
    """Names that the README of every version gives to devices, whatever the package calls them inside."""
    from qexport.decode import Detections, decoded, dequantised, detections, layout_of
    from qexport.decode.masks import instance_masks as masks

    assert masks is instance_masks
    assert all(map(callable, (decoded, dequantised, detections, layout_of)))
    angles = np.array([[0.5]], np.float32)
    found = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), angles)
    assert found.further is angles


def test_it_imports_without_torch() -> None:
    """In a Python where torch, ultralytics and onnx cannot be imported."""
    code = (
        "import sys\n"
        "for name in ('torch', 'ultralytics', 'onnx', 'tensorflow', 'torchvision'): sys.modules[name] = None\n"
        "import importlib, pkgutil, qexport.decode.masks\n"
        "for m in pkgutil.iter_modules(qexport.detections.__path__, 'qexport.detections.'):\n"
        "    importlib.import_module(m.name)\n"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in ('numpy', 'torch')and sys.modules[m])[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "numpy"), done.stderr
