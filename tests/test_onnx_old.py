"""ONNX files of the model zoo's age: constants among the inputs, operators as they were, sizes that files decide."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from layer_graphs import SIZE, Graph, saved
from onnx import TensorProto, helper, numpy_helper
from refusals import INPUT, Refusal

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

import onnxruntime

from qexport.backends.info import profile_for
from qexport.backends.registry import find_backend
from qexport.errors import InputError, UsageError
from qexport.job.options import make_job
from qexport.planning.planner import make_plan
from qexport.programs.onnx.build import read_onnx
from qexport.programs.onnx.file import QUANTISED
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program


def base(graph: Graph) -> None:
    graph.conv(8, 3, 3)
    graph.add("Relu", graph.x)


def normalised_twice(graph: Graph) -> None:
    graph.conv(8, 8, 3)
    numbers = [graph.constant(graph.random.uniform(0.5, 1.5, 8).astype(np.float32)) for _ in range(4)]
    graph.add("BatchNormalization", graph.x, *numbers, spatial=1)


def scales(graph: Graph, *numbers: float) -> str:
    return graph.constant(np.array(numbers, np.float32))


def dropped(graph: Graph) -> None:
    graph.nodes.append(helper.make_node("Dropout", [graph.x], ["kept", "mask"], "dropout", ratio=0.5))
    graph.x = "kept"


def best(graph: Graph) -> None:
    graph.add("Flatten", graph.add("GlobalAveragePool", graph.x))
    graph.nodes.append(helper.make_node("TopK", [graph.x], ["values", "places"], "topk", k=3, axis=1))
    graph.x = "values"


def parts(graph: Graph) -> None:
    graph.nodes.append(helper.make_node("Split", [graph.x], ["one", "two"], "split", axis=1, split=[4, 4]))
    graph.add("Concat", "two", "one", axis=1)


def head(graph: Graph) -> None:
    graph.add("Squeeze", graph.add("GlobalAveragePool", graph.x), axes=[2, 3])
    graph.add("Gemm", graph.x, graph.weight(10, 8), graph.weight(10), transB=1)


def resized(*times: float, mode: str = "nearest", kind: str = "Upsample") -> Callable[[Graph], None]:
    def add(graph: Graph) -> None:
        graph.add(kind, graph.x, scales(graph, 1, 1, *times), mode=mode)

    return add


OLD: dict[str, tuple[int, Callable[[Graph], None]]] = {
    "batch normalisation": (8, normalised_twice),
    "upsample by attribute": (7, lambda graph: void(graph.add("Upsample", graph.x, scales=[1.0, 1.0, 2.0, 2.0]))),
    "upsample three times": (9, resized(3, 3)),
    "upsample unevenly": (9, resized(1.5, 2.5)),
    "upsample linearly": (9, resized(2, 2, mode="linear")),
    "resize linearly": (10, resized(2, 2, mode="linear", kind="Resize")),
    "shrink": (10, resized(0.5, 0.5, kind="Resize")),
    "shrink unevenly": (10, resized(0.75, 0.25, kind="Resize")),
    "dropout with a mask": (7, dropped),
    "clip by attributes": (6, lambda graph: void(graph.add("Clip", graph.x, min=0.0, max=6.0))),
    "pad by attribute": (10, lambda graph: void(graph.add("Pad", graph.x, pads=[0, 0, 1, 1, 0, 0, 1, 1]))),
    "slice by attributes": (9, lambda graph: void(graph.add("Slice", graph.x, axes=[1], starts=[0], ends=[8]))),
    "softmax over the rest": (8, lambda graph: void(graph.add("Softmax", graph.x))),
    "mean by attribute": (12, lambda graph: void(graph.add("ReduceMean", graph.x, axes=[2, 3], keepdims=1))),
    "squeeze by attribute": (11, head),
    "split by attribute": (11, parts),
    "top by attribute": (7, best),
}


def void(_: str) -> None:
    """For the sake of types."""


def old_file(name: str, path: Path, ir_version: int) -> Path:
    """The file, in the days of IR version 3 with its constants among the inputs."""
    opset, block = OLD[name]
    graph = Graph()
    base(graph)
    block(graph)
    saved(graph, path, opset, ir_version)
    if ir_version < 4:
        proto = onnx.load(path)
        listed = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in graph.constants]
        proto.graph.input.extend(listed)
        onnx.save(proto, path)
    return path


def program_of(path: Path, **options: Any) -> Program:
    return read_onnx(path, CaptureOptions(**options))[1]


@pytest.mark.parametrize("ir_version", [3, 6])
@pytest.mark.parametrize("name", OLD)
def test_old_files_compute_what_they_did(name: str, ir_version: int, tmp_path: Path) -> None:
    path = old_file(name, tmp_path / "old.onnx", ir_version)
    program = program_of(path)
    picture = np.random.default_rng(3).random((1, 3, SIZE, SIZE), dtype=np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    expected = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(
        None, {"images": picture}
    )
    actual = program.graph(torch.from_numpy(picture))
    np.testing.assert_allclose(actual.numpy(), expected[0], atol=1e-4)


def test_the_quantised_file_of_an_old_one_has_one_input_and_a_version_that_is_right(tmp_path: Path) -> None:
    from conftest import lowering, synthetic_statistics

    program = program_of(old_file("split by attribute", tmp_path / "old.onnx", 3))
    backend, path = find_backend("onnx"), tmp_path / "new.onnx"
    plan = make_plan(program, synthetic_statistics(program.values), profile_for(backend.info, "int8", "vnni"))
    backend.lower(lowering(program, "int8", plan), path)
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert [each.name for each in proto.graph.input] == ["images"]
    assert proto.ir_version == 8  # that of Split-18's days


def test_operator_sets_that_nothing_runs_are_named(tmp_path: Path) -> None:
    graph = Graph()
    base(graph)
    graph.add("Add", graph.x, graph.weight(8), broadcast=1, axis=1)
    path = saved(graph, tmp_path / "older.onnx", opset=6)
    with pytest.raises(InputError, match=r"older\.onnx.*operator set 6, and 7 is the oldest"):
        program_of(path)


@pytest.mark.parametrize("size", [8, 24, 30])
def test_the_file_decides_its_size(size: int, tmp_path: Path) -> None:
    graph = Graph()
    base(graph)
    path = saved(graph, tmp_path / "small.onnx")
    proto = onnx.load(path)
    for dimension in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = size
    onnx.save(proto, path)
    assert program_of(path).input.imgsz == program_of(path, imgsz=(size, size)).input.imgsz == (size, size)
    for dimension in proto.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_param = "size"
    onnx.save(proto, path)
    assert program_of(path, imgsz=(size, size)).input.imgsz == (size, size)


def test_checkpoints_need_32_pixels_and_files_one() -> None:
    for model, size, words in (("a.pt", 24, "32 pixels or more"), ("a.onnx", 0, "1 pixel or more")):
        with pytest.raises(UsageError, match=f"--imgsz {size}x{size} is out of range: give {words}"):
            make_job({"model": model, "no_eval": True, "imgsz": size})
    assert make_job({"model": "a.onnx", "no_eval": True, "imgsz": 24}).imgsz == (24, 24)


def spoilt(path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    graph = Graph()
    base(graph)
    proto = onnx.load(saved(graph, path))
    change(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def operator(kind: str, domain: str = "") -> Callable[[onnx.ModelProto], None]:
    def add(proto: onnx.ModelProto) -> None:
        proto.graph.node.append(helper.make_node(kind, ["relu1"], [kind], domain=domain))

    return add


def in_a_function(proto: onnx.ModelProto) -> None:
    inner = helper.make_node("DequantizeLinear", ["a", "b"], ["c"])
    proto.functions.append(
        helper.make_function("own", "Restored", ["a", "b"], ["c"], [inner], [helper.make_opsetid("", 18)])
    )


def integer_weights(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 3, 3), np.int8), "small"))
    proto.graph.node.insert(0, helper.make_node("Cast", ["small"], ["large"], to=TensorProto.FLOAT))


def judged_later(folder: Path) -> str:
    """A description of data that is there, which is all that is looked at before the model is, and no good."""
    (folder / "bad.yaml").write_text("path: nowhere\n", encoding="utf-8")
    return "bad.yaml"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (operator("QLinearConv"), "QLinearConv"),
        (operator("MatMulInteger"), "MatMulInteger"),
        (operator("DynamicQuantizeMatMul", "com.microsoft"), "DynamicQuantizeMatMul"),
        (operator("MatMulNBits", "com.microsoft"), "MatMulNBits"),
        (operator("TRT_FP8QuantizeLinear", "trt"), "TRT_FP8QuantizeLinear"),
        (in_a_function, "DequantizeLinear"),
        (integer_weights, "weights of integers, small"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_quantised_file_is_told_before_its_data_are_judged(
    refused: Refusal, tmp_path: Path, change: Callable[[onnx.ModelProto], None], word: str
) -> None:
    spoilt(tmp_path / "small.onnx", change)
    line = refused("small.onnx", "--data", judged_later(tmp_path), "--int8", code=INPUT)
    assert f"small.onnx is quantised already ({word})" in line


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_other_floats_are_named(kind: type, refused: Refusal, tmp_path: Path) -> None:
    """They would be taken for shapes, and nothing would be quantised."""

    def add(proto: onnx.ModelProto) -> None:
        proto.graph.initializer.append(numpy_helper.from_array(np.ones((8, 3, 3, 3), kind), "other"))
        proto.graph.node.insert(0, helper.make_node("Cast", ["other"], ["weight"], to=TensorProto.FLOAT))

    spoilt(tmp_path / "half.onnx", add)
    line = refused("half.onnx", "--data", judged_later(tmp_path), "--int8", code=INPUT)
    assert f"half.onnx has {'float16' if kind is np.float16 else 'double'} weights (other)" in line


@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "MatMul", "Gemm", "FusedConv", "Attention", "Quick"])
def test_float_operators_are_not_taken_for_quantised_ones(kind: str) -> None:
    assert not QUANTISED.match(kind)


def test_other_faults_of_the_file_are_told_first_too(refused: Refusal, tmp_path: Path) -> None:
    def half(proto: onnx.ModelProto) -> None:
        proto.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    spoilt(tmp_path / "half.onnx", half)
    assert "half.onnx takes float16" in refused("half.onnx", "--data", judged_later(tmp_path), "--int8", code=INPUT)
