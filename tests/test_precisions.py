"""Files whose weights alone are smaller, and files without any float: read from their bytes, run and compared."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import demo_checkpoint, demo_image, demo_images, lowering
from guides import DOCS, blocks, page

from qexport.backends.tflite.backend import TFLiteBackend
from qexport.backends.tflite.file import append_metadata, convert_io_to_uint8
from qexport.calibration.calibrate import calibrate
from qexport.decode.metadata import tflite_metadata
from qexport.errors import ConversionError
from qexport.lowering.metadata import artifact_metadata
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE_INT16, TFLITE_INTEGER, WEIGHTS
from qexport.programs.program import Program, has_constant_operand
from qexport.programs.sample_inputs import sample_inputs
from qexport.simulation.rewrite import simulated
from qexport.verification.verify import verify

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
pytestmark = pytest.mark.slow


def types_of(path: Path) -> Counter[str]:
    """How many tensors of each type a file has, by the schema and nothing of ours."""
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    return Counter(names[tensor.type] for tensor in model.subgraphs[0].tensors)


def interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    loaded = Interpreter(str(path), num_threads=1)
    loaded.allocate_tensors()
    return loaded


@pytest.fixture(scope="module")
def floats(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The end-to-end demo model at 96 pixels with its weights in each type."""
    folder, files = tmp_path_factory.mktemp("floats"), {}
    for precision in ("fp32", "fp16", "int8-dynamic"):
        files[precision] = folder / f"{precision}.tflite"
        plan = make_plan(demo_program, None, WEIGHTS) if precision == "int8-dynamic" else None
        metadata = artifact_metadata(demo_checkpoint(), demo_program, precision, plan)
        TFLiteBackend().lower(lowering(demo_program, precision, plan, metadata), files[precision])
    return files


def test_half_precision_stores_every_kernel_in_two_bytes(floats: dict[str, Path]) -> None:
    assert floats["fp16"].stat().st_size < 0.62 * floats["fp32"].stat().st_size  # names are a tenth of this small file
    assert types_of(floats["fp16"])["FLOAT16"] >= 60
    assert types_of(floats["fp32"])["FLOAT16"] == 0


def test_dynamic_range_stores_every_kernel_in_one_byte(floats: dict[str, Path]) -> None:
    assert floats["int8-dynamic"].stat().st_size < 0.42 * floats["fp32"].stat().st_size
    assert types_of(floats["int8-dynamic"])["INT8"] >= 60
    details = interpreter(floats["int8-dynamic"]).get_input_details()[0]
    assert details["dtype"] == np.float32


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.02), ("int8-dynamic", 0.2)])
def test_smaller_weights_find_the_same(
    floats: dict[str, Path], demo_program: Program, precision: str, tolerance: float
) -> None:
    """Scores of the best detections are those of the float file, next to each other."""
    image = demo_image((96, 96)).numpy()
    expected, actual = (TFLiteBackend().runner(floats[p], 1)(image)[0] for p in ("fp32", precision))
    np.testing.assert_allclose(actual[0, :3, 4], expected[0, :3, 4], atol=tolerance)
    assert not np.array_equal(actual, expected)


@pytest.fixture(scope="module", params=["end2end", "one2many"])
def integer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Program, QuantPlan, Path]:
    """Either head of the demo model at 96 pixels without floats."""
    name = {"end2end": "demo_program", "one2many": "demo_one2many"}[request.param]
    program: Program = request.getfixturevalue(name)
    table = calibrate(program, demo_images("train", 4), lambda: None)
    plan = make_plan(program, table.statistics, TFLITE_INTEGER)
    path = tmp_path_factory.mktemp(request.param) / "demo_int8-full.tflite"
    metadata = artifact_metadata(demo_checkpoint(), program, "int8-full", plan)
    TFLiteBackend().lower(lowering(program, "int8-full", plan, metadata), path)
    return program, plan, path


def test_everything_in_front_of_the_decode_is_planned_in_integers(integer: tuple[Program, QuantPlan, Path]) -> None:
    program, plan, _ = integer
    body = [value for value in program.values.values() if value.region == "body"]
    assert {value.operation for value in body} >= {"matmul", "softmax", "conv", "cat"}
    assert [value.name for value in body if plan.tensors[value.name].is_float] == []
    assert any(has_constant_operand(value) for value in body)  # attention's 1 / sqrt(d)


def test_no_tensor_is_a_float(integer: tuple[Program, QuantPlan, Path]) -> None:
    types = types_of(integer[2])
    assert set(types) <= {"INT8", "INT32", "INT64", "BOOL"}
    assert types["INT8"] > 300


def test_integers_go_in_and_each_level_comes_out_with_a_scale_of_its_own(
    integer: tuple[Program, QuantPlan, Path],
) -> None:
    program, plan, path = integer
    loaded = interpreter(path)
    (given,) = loaded.get_input_details()
    height, width = program.input.imgsz
    assert (given["dtype"], list(given["shape"])) == (np.int8, [1, height, width, 3])
    assert given["quantization"] == (pytest.approx(1 / 255), -128)
    outputs = loaded.get_output_details()
    cells = [[height // stride, width // stride] for stride in (8, 16, 32)]
    assert [list(output["shape"][1:3]) for output in outputs] == cells * 2
    for output, name in zip(outputs, (*program.raw.boxes, *program.raw.scores), strict=True):
        assert output["dtype"] == np.int8
        assert output["quantization"][0] == pytest.approx(plan.tensors[name].scale[0], rel=1e-6)
        assert output["quantization"][1] == plan.tensors[name].zero_point[0]


def test_the_file_does_what_the_simulated_program_does(integer: tuple[Program, QuantPlan, Path]) -> None:
    program, plan, path = integer
    backend = TFLiteBackend()
    inputs = sample_inputs(demo_images("val", 4), program)
    found = verify(program, plan, backend.read(path), backend.runner(path, 1), inputs)
    assert found.coverage == 1.0
    with torch.no_grad():
        expected = simulated(program, plan)(torch.from_numpy(inputs[0])).numpy()
    actual = backend.runner(path, 1)(inputs[0])[0]
    assert actual.shape == expected.shape
    if program.layout.end2end:
        np.testing.assert_allclose(actual[0, :2, 4], expected[0, :2, 4], atol=0.15)


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_documented_walk_from_integers_to_detections(integer: tuple[Program, QuantPlan, Path]) -> None:
    """As the page has it, with nothing but an interpreter, NumPy and `qexport.decode`; on the clearest image."""
    from ultralytics.utils.nms import non_max_suppression

    program, _, path = integer
    clearest = torch.zeros(1, 6)
    pixels = np.zeros(0, np.float32)
    for candidate in sample_inputs(demo_images("val", 12), program, count=12):
        with torch.no_grad():
            output = program.graph(torch.from_numpy(candidate)).clone()
        (rows,) = non_max_suppression(output, conf_thres=0.01, iou_thres=0.7, end2end=program.layout.end2end)
        if len(rows) and rows[:, 4].max() > clearest[0, 4]:
            clearest, pixels = rows[rows[:, 4].argmax()][None], candidate
    code = blocks(page("formats.md"), "python")[-1]
    names: dict[str, Any] = {"pixels": np.rint(pixels * 255).astype(np.uint8).transpose(0, 2, 3, 1)}
    exec(code.replace("yolo26n_int8-full.tflite", str(path)).replace("confidence=0.25", "confidence=0.01"), names)
    found = names["found"]
    assert clearest[0, 4] > 0.1
    assert found.classes[0] == int(clearest[0, 5])
    np.testing.assert_allclose(found.boxes[0], clearest[0, :4].numpy(), atol=6)
    assert found.scores[0] == pytest.approx(float(clearest[0, 4]), abs=0.15)


def test_unsigned_integers_are_the_same_steps_128_higher(
    integer: tuple[Program, QuantPlan, Path], tmp_path: Path
) -> None:
    program, plan, signed = integer
    path = Path(shutil.copy(signed, tmp_path / "unsigned.tflite"))
    convert_io_to_uint8(path)
    append_metadata(path, tflite_metadata(signed))
    assert set(types_of(path)) <= {"UINT8", "INT8", "INT32", "INT64", "BOOL"}
    pixels = np.random.default_rng(0).integers(0, 256, (1, *program.input.imgsz, 3), dtype=np.uint8)
    results: list[list[Any]] = []
    zero_points: list[list[int]] = []
    for file, given in ((signed, (pixels.astype(np.int16) - 128).astype(np.int8)), (path, pixels)):
        loaded = interpreter(file)
        assert loaded.get_input_details()[0]["dtype"] == given.dtype
        loaded.set_tensor(loaded.get_input_details()[0]["index"], given)
        loaded.invoke()
        results.append([loaded.get_tensor(output["index"]) for output in loaded.get_output_details()])
        zero_points.append([output["quantization"][1] for output in loaded.get_output_details()])
    assert len(results[1]) == 6
    assert zero_points[1] == [zero_point + 128 for zero_point in zero_points[0]]
    for one, other in zip(*results, strict=True):
        assert other.dtype == np.uint8
        np.testing.assert_array_equal(one.astype(int) + 128, other)
    image = demo_image(program.input.imgsz).numpy()
    backend = TFLiteBackend()
    np.testing.assert_array_equal(backend.runner(path, 1)(image)[0], backend.runner(signed, 1)(image)[0])
    verify(program, plan, backend.read(path), backend.runner(path, 1), [image])


@pytest.fixture(scope="module")
def wide(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantPlan, Path]:
    """The end-to-end demo model at 96 pixels with INT8 weights and INT16 activations."""
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, TFLITE_INT16, "minmax")
    path = tmp_path_factory.mktemp("wide") / "demo_w8a16.tflite"
    TFLiteBackend().lower(
        lowering(demo_program, "w8a16", plan, artifact_metadata(demo_checkpoint(), demo_program, "w8a16", plan)), path
    )
    return plan, path


def test_sixteen_bit_activations_are_as_planned(wide: tuple[QuantPlan, Path], demo_program: Program) -> None:
    plan, path = wide
    planned = [tensor for tensor in plan.tensors.values() if not tensor.is_float and tensor.axis is None]
    assert {tensor.dtype for tensor in planned} == {"int16"}
    assert {tensor.zero_point for tensor in planned} == {(0,)}
    assert types_of(path)["INT16"] >= 0.9 * len(planned)
    backend = TFLiteBackend()
    inputs = sample_inputs(demo_images("val", 4), demo_program)
    found = verify(demo_program, plan, backend.read(path), backend.runner(path, 1), inputs)
    assert found.coverage > 0.9
    assert found.tensors > 0.9 * (found.tensors + found.unnamed)


def test_sixteen_bits_lose_next_to_nothing_beyond_the_weights(
    wide: tuple[QuantPlan, Path], demo_program: Program
) -> None:
    """INT16 steps are 256 times as fine: what remains is the rounding of the weights."""
    image = demo_image((96, 96))
    with torch.no_grad():
        expected = demo_program.graph(image).numpy()
    actual = TFLiteBackend().runner(wide[1], 1)(image.numpy())[0]
    np.testing.assert_allclose(actual[0, :3, 4], expected[0, :3, 4], atol=0.05)
    assert not np.array_equal(actual, expected)


def test_every_weight_of_a_16_bit_file_is_read_back(wide: tuple[QuantPlan, Path], demo_program: Program) -> None:
    """AI Edge Quantizer stores large ones behind the flatbuffer."""
    plan, path = wide
    stored = TFLiteBackend().read(path).tensors
    layers = (value for value in demo_program.values.values() if value.weight)
    weights = [f"{value.name}.weight" for value in layers if plan.is_quantised(value.weight)]
    assert len(weights) > 80
    assert [name for name in weights if stored[name].integers is None] == []


def test_tensorflow_runs_a_16_bit_file_alike(wide: tuple[QuantPlan, Path]) -> None:
    pytest.importorskip("tensorflow", reason="needs the extra qexport[tensorflow]")
    from qexport.inspection.cross_check import cross_check

    found = cross_check(wide[1], demo_images("val", 2), 1)
    assert found.first_layer.startswith("qexport_model_0_conv")
    assert found.steps <= 1


def test_sixteen_bits_clip_nothing(wide: tuple[QuantPlan, Path], demo_program: Program) -> None:
    """Every value reaches the largest magnitude that calibration saw."""
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    compared = 0
    for name, tensor in wide[0].tensors.items():
        if tensor.dtype == "int16" and not tensor.group and name in table.statistics and name in wide[0].integer:
            seen = table.statistics[name]
            assert tensor.scale[0] * 32767 >= 0.999 * max(seen.maximum, -seen.minimum), name
            compared += 1
    assert compared > 50


def test_a_float_left_over_is_refused(floats: dict[str, Path], demo_program: Program) -> None:
    from qexport.backends.tflite.file import check_integers

    with pytest.raises(ConversionError, match=r"tensors are not made of integers, the first belongs to \w+ "):
        check_integers(floats["fp32"], demo_program)
