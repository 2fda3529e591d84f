"""Upsampling as copies gives exactly what `Resize` gives, and leaves every other `Resize` alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import SMALL, lowering, synthetic_statistics

from qexport.backends.onnxruntime.backend import OnnxBackend
from qexport.lowering.onnx.upsample import upsample_by_copies
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME
from qexport.programs.onnx.session import session
from qexport.programs.program import Program

onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")


def resized(scales: tuple[float, ...], mode: str = "nearest", rounding: str = "floor") -> ir.Model:
    """Input (n, 3, 4, 6) → Resize → Neg."""
    height, width = round(4 * scales[2]), round(6 * scales[3])
    attributes = {"mode": mode, "coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
    nodes = [
        onnx.helper.make_node("Resize", ["images", "", "scales"], ["up"], **attributes),
        onnx.helper.make_node("Neg", ["up"], ["output0"]),
    ]
    given = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 3, 4, 6])
    made = onnx.helper.make_tensor_value_info("output0", onnx.TensorProto.FLOAT, ["n", 3, height, width])
    constant = onnx.numpy_helper.from_array(np.array(scales, dtype=np.float32), "scales")
    shape = onnx.helper.make_tensor_value_info("up", onnx.TensorProto.FLOAT, ["n", 3, height, width])
    graph = onnx.helper.make_graph(nodes, "graph", [given], [made], [constant], value_info=[shape])
    opset = [onnx.helper.make_opsetid("", 18)]
    return ir.serde.deserialize_model(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9))


def run(model: ir.Model, path: Path, batch: np.ndarray) -> np.ndarray:
    proto = ir.serde.serialize_model(model)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(proto.SerializeToString())
    found: np.ndarray = session(path, 1).run(None, {"images": batch})[0]
    return found


@pytest.mark.parametrize("times", [(2, 2), (1, 3), (4, 1)])
@pytest.mark.parametrize("batch", [1, 2])
def test_copies_are_the_same_as_resize(times: tuple[int, int], batch: int, tmp_path: Path) -> None:
    model = resized((1, 1, *times))
    images = np.random.default_rng(0).random((batch, 3, 4, 6), dtype=np.float32)
    upsample_by_copies(model)
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["Transpose", "Reshape", "Expand", "Reshape", "Transpose", "Neg"]
    expected = -images.repeat(times[0], axis=2).repeat(times[1], axis=3)
    np.testing.assert_array_equal(run(model, tmp_path / "copies.onnx", images), expected)


def test_the_result_keeps_its_name() -> None:
    model = resized((1, 1, 2, 2))
    upsample_by_copies(model)
    last = next(node for node in model.graph if node.op_type == "Neg").inputs[0]
    assert last is not None
    assert last.name == "up"


@pytest.mark.parametrize(
    "model",
    [resized((1, 1, 1.5, 1.5)), resized((1, 1, 2, 2), mode="linear"), resized((1, 1, 2, 2), rounding="ceil")],
    ids=["half", "linear", "ceil"],
)
def test_any_other_resize_stays(model: ir.Model) -> None:
    upsample_by_copies(model)
    assert [node.op_type for node in model.graph] == ["Resize", "Neg"]


def test_onnx_runtime_copies_integers(tiny: Program, tmp_path: Path) -> None:
    """The runtime's own graph has no float between the integers that come and the copies of them."""
    plan = make_plan(tiny, synthetic_statistics(tiny.values), ONNXRUNTIME)
    path, optimised = tmp_path / "tiny.onnx", tmp_path / "optimised.onnx"
    OnnxBackend().lower(lowering(tiny, "int8", plan, {"imgsz": list(SMALL)}), path)
    session(path, 1, optimised)
    graph = onnx.load(optimised).graph
    assert not [node for node in graph.node if node.op_type == "Resize"]
    makers = {name: node for node in graph.node for name in node.output}
    copies = [node for node in graph.node if node.op_type == "Expand"]
    assert copies
    for node in copies:
        while node.op_type in ("Expand", "Reshape", "Transpose"):
            node = makers[node.input[0]]
        assert node.op_type.startswith(("QLinear", "QuantizeLinear"))
