"""ONNX and OpenVINO files with INT8 weights and float arithmetic: small on disk, floats once loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import demo_checkpoint, demo_image, lowering
from hard_numbers import layers

from qexport.backends.protocol import Backend
from qexport.backends.registry import find_backend
from qexport.errors import VerificationError
from qexport.lowering.metadata import artifact_metadata
from qexport.planning.plan import TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import WEIGHTS
from qexport.programs.program import Program
from qexport.verification.constants import check_weights

onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")


def written(name: str, program: Program, folder: Path) -> tuple[Backend, Path]:
    pytest.importorskip({"onnx": "onnxruntime"}.get(name, name), reason=f"needs the extra qexport[{name}]")
    backend = find_backend(name)
    path = folder / f"demo_int8-dynamic{backend.info.suffix}"
    plan = make_plan(program, None, WEIGHTS, float_values=backend.info.float_weights(program))
    metadata = artifact_metadata(demo_checkpoint(), program, "int8-dynamic", plan)
    backend.lower(lowering(program, "int8-dynamic", plan, metadata), path)
    return backend, path


def test_every_layer_has_integer_weights_and_nothing_else_has(demo_program: Program) -> None:
    plan = make_plan(demo_program, None, WEIGHTS)
    weights = {value.weight for value in demo_program.values.values() if value.weight}
    assert {name for name, tensor in plan.tensors.items() if not tensor.is_float} == weights
    assert plan.integer == frozenset()
    kept = next(value for value in demo_program.values.values() if value.weight)
    one_float = make_plan(demo_program, None, WEIGHTS, float_values={kept.name: "wanted"})
    assert one_float.tensors[kept.weight] == TensorQuant("float32", why="wanted")


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize("head", ["demo_program", "demo_one2many"])
def test_what_is_found_stays(name: str, head: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    program: Program = request.getfixturevalue(head)
    backend, path = written(name, program, tmp_path)
    image = demo_image(program.input.imgsz)
    with torch.no_grad():
        expected = program.graph(image).numpy()
    actual = backend.runner(path, 1)(image.numpy())[0]
    assert not np.array_equal(actual, expected)
    if program.layout.end2end:
        np.testing.assert_allclose(actual[0, :3, 4], expected[0, :3, 4], atol=0.1)
    else:
        np.testing.assert_allclose(actual[:, 4:], expected[:, 4:], atol=0.2)


def test_onnx_weights_take_a_byte_each(demo_program: Program, tmp_path: Path) -> None:
    _, path = written("onnx", demo_program, tmp_path)
    stored = {each.name: each for each in onnx.load(path).graph.initializer}
    for value in demo_program.values.values():
        if value.weight:
            integers = onnx.numpy_helper.to_array(stored[f"{value.weight}.quantised"])
            scales = onnx.numpy_helper.to_array(stored[f"{value.weight}.scale"])
            array = demo_program.graph.parameter(value.weight).numpy()
            assert integers.dtype == np.int8
            np.testing.assert_allclose(integers * scales, array, atol=float(scales.max()) * 0.51)
            assert value.weight not in stored


def test_onnx_runtime_makes_floats_of_them_when_it_loads(demo_program: Program, tmp_path: Path) -> None:
    """Otherwise it would do so for every image, and could not choose its fastest kernels."""
    from qexport.programs.onnx.session import session

    _, path = written("onnx", demo_program, tmp_path)
    session(path, 1, tmp_path / "optimised.onnx")
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    assert not [each for each in graph.initializer if each.data_type == onnx.TensorProto.INT8]
    assert not [node for node in graph.node if node.op_type == "DequantizeLinear"]


def test_openvino_weights_take_a_byte_each(demo_program: Program, tmp_path: Path) -> None:
    import openvino

    from qexport.backends.openvino.info import behind_split

    _, path = written("openvino", demo_program, tmp_path)
    model = openvino.Core().read_model(path / "model.xml")
    kinds = [op.get_element_type().to_string() for op in model.get_ops() if op.get_type_name() == "Constant"]
    layers = {value.name for value in demo_program.values.values() if value.weight}
    float_layers = set(behind_split(demo_program))
    assert float_layers < layers
    assert kinds.count("i8") == len(layers - float_layers)


@pytest.mark.parametrize("name", ["onnx", "openvino", "tflite"])
def test_weights_in_the_file_are_checked_against_the_plan(name: str, tmp_path: Path) -> None:
    """Another layer's weights, other scales, integers where floats were wanted: each is found and named."""
    package = {"onnx": "onnxruntime", "tflite": "litert_torch"}.get(name, name)
    pytest.importorskip(package, reason=f"needs the extra qexport[{name}]")
    program, backend = layers(), find_backend(name)
    kept = {"point_conv": "float as asked"}
    plan = make_plan(program, None, WEIGHTS, float_values={**backend.info.float_weights(program), **kept})
    path = tmp_path / f"a{backend.info.suffix}"
    backend.lower(lowering(program, "int8-dynamic", plan), path)
    stored = backend.read(path)
    assert check_weights(program, plan, stored) == sum(plan.is_quantised(v.weight) for v in program.values.values())
    with pytest.raises(VerificationError, match=r"point\.weight: float32 instead of int8|only 5 of 6|only 4 of 6"):
        check_weights(program, make_plan(program, None, WEIGHTS), replace(stored, complete=True))
    other = make_plan(layers(first=lambda weight, _: weight.mul_(1.5)), None, WEIGHTS, float_values=kept)
    with pytest.raises(VerificationError, match=r"first\.weight: weights are \d+\.\d+ steps away"):
        check_weights(layers(first=lambda weight, _: weight.mul_(1.5)), other, stored)
    floats = make_plan(program, None, WEIGHTS, float_values={"first_conv": "float as asked", **kept})
    with pytest.raises(VerificationError, match=r"first\.weight: int8, and was to stay float"):
        check_weights(program, floats, stored)
