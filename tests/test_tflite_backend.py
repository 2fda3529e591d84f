"""TFLite files: written from a plan, read back from their bytes, run, and compared with NumPy and the simulation."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    SMALL,
    Rectified,
    TinyDecode,
    TinyDetector,
    captured,
    demo_checkpoint,
    demo_image,
    demo_images,
    lowering,
    seeded,
    statistics_of,
    synthetic_statistics,
)
from numpy.typing import NDArray
from small_models import small_model
from torch import Tensor, nn

from qexport.backends.tflite.backend import TFLiteBackend
from qexport.calibration.calibrate import calibrate
from qexport.decode.metadata import tflite_metadata
from qexport.errors import ConversionError, VerificationError
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.stored import StoredGraph
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.capture import capture
from qexport.programs.captured_graph import module_of
from qexport.programs.heads import split_head
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.simulation.rewrite import simulated
from qexport.verification.coverage import check_coverage
from qexport.verification.verify import check_plan, verify

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")


@dataclass(frozen=True)
class Lowered:
    path: Path
    plan: QuantPlan
    stored: StoredGraph
    metadata: dict[str, Any]


@pytest.fixture(scope="module")
def lowered(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The end-to-end demo model at 96 pixels, calibrated on four images."""
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, TFLITE)
    path = tmp_path_factory.mktemp("tflite") / "demo_int8.tflite"
    metadata = artifact_metadata(demo_checkpoint(), demo_program, "int8", plan)
    backend = TFLiteBackend()
    backend.lower(lowering(demo_program, "int8", plan, metadata), path)
    return Lowered(path, plan, backend.read(path), metadata)


class Doubled(TinyDecode):
    """Computes with the raw boxes, as a real decode does: the converter then leaves it in float."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.cat((boxes.flatten(2) * 2.0, scores.flatten(2).sigmoid()), dim=1)


class Plain(TinyDetector):
    """The tiny detector without its attention."""

    def __init__(self) -> None:
        super().__init__()
        self.decode = Doubled()

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.act(self.stem(images)).chunk(2, 1)
        second = second + self.act(self.left(second))
        shallow = torch.cat((first, second), 1)
        deep = nn.functional.max_pool2d(self.deep(shallow), 3, 1, 1)
        deep = nn.functional.interpolate(deep, scale_factor=2.0, mode="nearest")
        neck = self.act(self.neck(torch.cat((shallow, deep), 1)))
        decoded: Tensor = self.decode(self.box(neck), self.cls(neck))
        return decoded


@pytest.fixture(scope="module")
def plain() -> Program:
    return captured(seeded(Plain()))


@pytest.fixture(scope="module")
def small(plain: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, QuantPlan]:
    plan = make_plan(plain, synthetic_statistics(plain.values), TFLITE, "minmax")
    path = tmp_path_factory.mktemp("small") / "small.tflite"
    TFLiteBackend().lower(lowering(plain, "int8", plan), path)
    return path, plan


def interpreter(path: Path) -> Any:
    """LiteRT's own interpreter, without anything of ours."""
    from ai_edge_litert.interpreter import Interpreter

    loaded = Interpreter(str(path), num_threads=1)
    loaded.allocate_tensors()
    return loaded


def test_the_small_file_holds_its_plan(plain: Program, small: tuple[Path, QuantPlan]) -> None:
    path, plan = small
    stored = TFLiteBackend().read(path)
    assert check_plan(plain, plan, stored) >= 12
    assert {f"{layer}_conv" for layer in ("stem", "left", "deep", "neck")} <= set(stored.tensors)


def test_the_small_file_computes_the_simulated_program(plain: Program, small: tuple[Path, QuantPlan]) -> None:
    path, plan = small
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = simulated(plain, plan)(image).numpy()
        exact = plain.graph(image).numpy()
    actual = TFLiteBackend().runner(path, 1)(image.numpy())[0]
    step = 2 * plan.tensors["box_conv"].scale[0]
    boxes = np.abs(actual[:, :4] - expected[:, :4]) / step
    assert boxes.mean() < 1
    assert np.abs(actual[:, 4:] - expected[:, 4:]).max() < 0.1
    # The float program is further away than kernels that round differently.
    assert np.abs(exact - expected).mean() > 2 * np.abs(actual - expected).mean()


def test_multiply_accumulates_of_the_small_file_by_hand(small: tuple[Path, QuantPlan]) -> None:
    stored = TFLiteBackend().read(small[0])
    stem, deep = 8 * 4 * 4 * 27, 8 * 2 * 2 * 72
    left = 4 * 4 * 4 * 2
    neck, box, cls = 8 * 4 * 4 * 16, 4 * 4 * 4 * 8, 2 * 4 * 4 * 8
    assert stored.integer_macs == stored.total_macs == stem + deep + left + neck + box + cls
    assert stored.coverage == 1


def test_attention_in_integers_around_it_holds_its_plan(tiny: Program, tmp_path: Path) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, "minmax")
    path, backend = tmp_path / "tiny.tflite", TFLiteBackend()
    backend.lower(lowering(tiny, "int8", plan), path)
    assert check_plan(tiny, plan, backend.read(path)) >= 24
    check_coverage(tiny, plan, backend.read(path))
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = simulated(tiny, plan)(image).numpy()
    actual = backend.runner(path, 1)(image.numpy())[0]
    assert np.abs(actual[:, :4] - expected[:, :4]).mean() < 2 * plan.tensors["box_conv"].scale[0]
    assert np.abs(actual[:, 4:] - expected[:, 4:]).max() < 0.1


class Unknown(TinyDecode):
    """Computes what the converter has no lowering for."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.cat((torch.special.bessel_j0(boxes.flatten(2)), scores.flatten(2).sigmoid()), dim=1)


def test_a_model_that_the_converter_refuses_is_one_line_that_names_the_operator(tmp_path: Path) -> None:
    module = Plain()
    module.decode = Unknown()
    program = captured(seeded(module))
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE, "minmax")
    with pytest.raises(
        ConversionError, match=r"^litert-torch cannot convert this model \(.*special_bessel_j0.*\): .+$"
    ):
        TFLiteBackend().lower(lowering(program, "int8", plan), tmp_path / "a.tflite")


@pytest.mark.parametrize("negatives", [False, True])
def test_a_relu_is_part_of_its_convolution_wherever_zero_lies(negatives: bool, tmp_path: Path) -> None:
    program = captured(seeded(Rectified(negatives)))
    statistics = synthetic_statistics(program.values)
    rectified = {name: statistics_of(np.linspace(0, 5, 1001), 8.0) for name in program.values if name.endswith("_relu")}
    plan = make_plan(program, statistics | rectified, TFLITE, "minmax")
    assert (plan.tensors["first_relu"].zero_point[0] > -128) == negatives
    assert not plan.is_quantised("first_conv")
    path, backend = tmp_path / "a.tflite", TFLiteBackend()
    backend.lower(lowering(program, "int8", plan), path)
    stored = backend.read(path)
    assert "RELU" not in stored.operators
    assert "first_relu.weight" in stored.tensors  # it has the name of what its kernel gives
    assert check_plan(program, plan, stored) == 9 == sum(not t.is_float for t in plan.tensors.values()) - 1
    check_coverage(program, plan, stored)
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        expected = simulated(program, plan)(image).numpy()
    step = plan.tensors["box_conv"].scale[0]
    assert np.abs(backend.runner(path, 1)(image.numpy())[0] - expected).max() < 1.5 * step


@pytest.mark.slow
def test_input_and_output_are_float(lowered: Lowered) -> None:
    loaded = interpreter(lowered.path)
    (given,), (result,) = loaded.get_input_details(), loaded.get_output_details()
    assert (given["dtype"], tuple(given["shape"])) == (np.float32, (1, 3, *SMALL))
    assert (result["dtype"], tuple(result["shape"])) == (np.float32, (1, 189, 6))
    assert len(loaded.get_input_details()) == len(loaded.get_output_details()) == 1


@pytest.mark.slow
def test_the_file_holds_its_plan_and_runs_in_integers(demo_program: Program, lowered: Lowered) -> None:
    found = check_plan(demo_program, lowered.plan, lowered.stored)
    assert found > 0.8 * sum(not t.is_float for t in lowered.plan.tensors.values())
    assert lowered.stored.coverage > 0.9
    counted = sum(value.macs for value in demo_program.values.values())
    assert lowered.stored.total_macs == pytest.approx(counted, rel=0.02)
    convolutions = sum(v.operation == "conv" for v in demo_program.values.values())
    kernels = lowered.stored.operators
    assert kernels["CONV_2D"] + kernels["DEPTHWISE_CONV_2D"] == convolutions
    assert kernels["LOGISTIC"] >= 80


@pytest.mark.slow
def test_weights_in_the_file_are_numpys_rounding(demo_program: Program, lowered: Lowered) -> None:
    """First layer and a depthwise one, read with LiteRT's own interpreter."""
    module = module_of(demo_program).state_dict()
    for value in ("model_0_conv", "model_23_one2one_cv3_0_0_0_conv"):
        weight = module[demo_program.values[value].weight].double().numpy()
        scales = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
        expected = np.round(weight / scales[:, None, None, None])
        stored = lowered.stored.tensors[f"{value}.weight"]
        assert stored.integers is not None
        np.testing.assert_array_equal(stored.integers, expected)
        np.testing.assert_allclose(stored.scale, scales, rtol=1e-5)
    loaded = interpreter(lowered.path)
    first = module["model.0.conv.weight"].double().numpy()
    wanted = np.round(first / (np.abs(first).max(axis=(1, 2, 3), keepdims=True) / 127)).transpose(0, 2, 3, 1)
    details = [d for d in loaded.get_tensor_details() if tuple(d["shape"]) == wanted.shape and d["dtype"] == np.int8]
    assert any(np.array_equal(loaded.get_tensor(d["index"]), wanted) for d in details)


@pytest.mark.slow
def test_attention_and_decode_compute_in_float(lowered: Lowered) -> None:
    """The converter must not make integers of planned floats; kernels that only move data may keep integers."""
    loaded = interpreter(lowered.path)
    types = {d["index"]: (d["name"], d["dtype"]) for d in loaded.get_tensor_details()}
    seen: set[str] = set()
    for kernel in loaded._get_ops_details():
        name, dtype = types[kernel["outputs"][0]]
        attention = kernel["op_name"] in ("BATCH_MATMUL", "FULLY_CONNECTED", "SOFTMAX")
        if attention or (kernel["op_name"] in ("SUB", "ADD", "MUL", "LOGISTIC") and "qexport_decode" in name):
            seen.add(kernel["op_name"])
            assert dtype in (np.float32, np.int32, np.int64), (kernel["op_name"], name)
            assert all(types[i][1] != np.int8 for i in kernel["inputs"] if i >= 0), (kernel["op_name"], name)
    assert seen >= {"FULLY_CONNECTED", "SOFTMAX", "SUB", "ADD", "MUL", "LOGISTIC"}


@pytest.mark.slow
def test_every_sigmoid_in_the_file_has_the_kernels_scale(lowered: Lowered) -> None:
    gates = {name: t for name, t in lowered.stored.tensors.items() if name.endswith("_sigmoid")}
    body = {name: t for name, t in gates.items() if not name.startswith("decode")}
    assert len(body) >= 80
    assert {(t.dtype, t.scale, t.zero_point) for t in body.values()} == {("int8", (1 / 256,), (-128,))}


@pytest.mark.slow
def test_the_runtime_agrees_with_the_simulation_on_real_images(demo_program: Program, lowered: Lowered) -> None:
    runner = TFLiteBackend().runner(lowered.path, 2)
    inputs = sample_inputs(demo_images("val", 4), demo_program)
    found = verify(demo_program, lowered.plan, lowered.stored, runner, inputs)
    assert found.agreement is not None
    assert found.agreement >= 0.75
    assert found.coverage == lowered.stored.coverage


@pytest.mark.slow
def test_a_file_of_another_plan_is_refused(demo_program: Program, lowered: Lowered) -> None:
    other = make_plan(demo_program, synthetic_statistics(demo_program.values), TFLITE)
    with pytest.raises(VerificationError, match="the file differs from the plan in model_0_conv: scale"):
        check_plan(demo_program, other, lowered.stored)


@pytest.mark.slow
def test_a_run_does_not_change_its_input_or_an_earlier_result(lowered: Lowered) -> None:
    runner = TFLiteBackend().runner(lowered.path, 1)
    one, other = demo_image(SMALL, 0).numpy(), demo_image(SMALL, 1).numpy()
    before = one.copy()
    first = runner(one)[0]
    kept: NDArray[np.float32] = first.copy()
    second = runner(other)[0]
    np.testing.assert_array_equal(one, before)
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(runner(one)[0], first)


@pytest.mark.slow
def test_metadata_is_readable_as_ultralytics_reads_it(demo_program: Program, lowered: Lowered) -> None:
    expected = json.loads(json.dumps(lowered.metadata))
    assert tflite_metadata(lowered.path) == {**expected, "layout": "nchw", "normalised_boxes": False}
    # Ultralytics opens the file as a zip archive and takes its first member.
    with zipfile.ZipFile(lowered.path) as archive:
        content = json.loads(archive.read(archive.namelist()[0]))
    assert content["names"] == {str(i): name for i, name in demo_checkpoint().names.items()}
    assert (content["task"], content["stride"], content["batch"]) == ("detect", 32, 1)
    assert (content["imgsz"], content["end2end"], content["channels"]) == ([96, 96], True, 3)
    assert (content["program"], content["plan"]) == (demo_program.fingerprint, lowered.plan.fingerprint)


@pytest.mark.slow
def test_a_float_file_is_the_program_and_its_boxes_come_back_in_pixels(tmp_path: Path) -> None:
    """The one-to-many file holds coordinates in 0..1, as Ultralytics expects; the runner gives pixels."""
    size = (96, 160)  # not square, so that a wrong order of height and width is found
    program = capture(split_head(small_model(nc=6), "one2many", size), size)
    metadata = artifact_metadata(demo_checkpoint(), program, "fp32", None)
    path = tmp_path / "small_fp32.tflite"
    TFLiteBackend().lower(lowering(program, "fp32", None, metadata), path)
    image = demo_image(size)
    with torch.no_grad():
        expected = program.graph(image).numpy()
    np.testing.assert_allclose(TFLiteBackend().runner(path, 2)(image.numpy())[0], expected, atol=0.05, rtol=1e-3)
    loaded = interpreter(path)
    loaded.set_tensor(loaded.get_input_details()[0]["index"], image.numpy())
    loaded.invoke()
    raw = loaded.get_tensor(loaded.get_output_details()[0]["index"])
    unit = np.array([160, 96, 160, 96])[:, None]
    np.testing.assert_allclose(raw[:, :4] * unit, expected[:, :4], atol=0.05, rtol=1e-3)
    stored = TFLiteBackend().read(path)
    assert stored.coverage == 0
    assert stored.total_macs == pytest.approx(sum(v.macs for v in program.values.values()), rel=0.02)
