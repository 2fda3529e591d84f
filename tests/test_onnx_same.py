"""An ONNX file and its normal form: ties and rounding are no difference, what is computed wrongly is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from layer_graphs import Graph, saved, stem
from onnx import numpy_helper

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

from qexport.data.input_form import UNIT
from qexport.errors import InputError
from qexport.programs.onnx.file import read_file
from qexport.programs.onnx.graph import OnnxGraph
from qexport.programs.onnx.normal_form import normalised
from qexport.programs.onnx.same import check_same

EPSILON = np.float32(3e-7)
"""What rounding changes of a number near 1."""


def rows_by_score(graph: Graph, k: int) -> list[str]:
    """End-to-end detectors: rows (four sides, score), the best `k` by score."""
    stem(graph)
    graph.conv(5, 16, 1)
    rows = graph.add("Transpose", graph.add("Reshape", graph.x, whole(graph, 1, 5, -1)), perm=[0, 2, 1])
    scores = graph.add("Sigmoid", graph.add("Slice", rows, whole(graph, 4), whole(graph, 5), whole(graph, 2)))
    flat = graph.add("Reshape", scores, whole(graph, 1, -1), name="scores")
    graph.nodes.append(onnx.helper.make_node("TopK", [flat, whole(graph, k)], ["best", "places"], "topk"))
    places = graph.add("Reshape", "places", whole(graph, -1))
    graph.add("Gather", rows, places, axis=1, name="rows")
    return ["rows", "best"]


def whole(graph: Graph, *numbers: int) -> str:
    return graph.constant(np.array(numbers, np.int64))


def map_of_classes(graph: Graph) -> list[str]:
    """Semantic segmentation with the choice in the graph: int64 (1, height, width)."""
    stem(graph)
    graph.conv(6, 16, 1)
    return [graph.add("ArgMax", graph.x, axis=1, keepdims=0, name="classes")]


def best_class(graph: Graph) -> list[str]:
    """A classifier that answers with a number: int64 (1,)."""
    stem(graph)
    graph.add("Flatten", graph.add("GlobalAveragePool", graph.x))
    graph.add("Gemm", graph.x, graph.weight(7, 16), transB=1, name="logits")
    return ["logits", graph.add("ArgMax", graph.x, axis=1, keepdims=0, name="answer")]


def above_threshold(graph: Graph) -> list[str]:
    """A mask of zeros and ones."""
    stem(graph)
    graph.conv(1, 16, 1)
    graph.add("Greater", graph.add("Sigmoid", graph.x, name="probability"), graph.constant(np.array(0.5, np.float32)))
    return [graph.add("Cast", graph.x, to=onnx.TensorProto.FLOAT, name="mask")]


Made = tuple[Path, OnnxGraph]
CASES: dict[str, Callable[[Graph], list[str]]] = {
    "rows": lambda graph: rows_by_score(graph, 40),
    "one row": lambda graph: rows_by_score(graph, 1),
    "map": map_of_classes,
    "answer": best_class,
    "mask": above_threshold,
}


def made(name: str, path: Path) -> tuple[Path, list[str]]:
    graph = Graph()
    outputs = CASES[name](graph)
    proto = onnx.load(saved(graph, path, outputs=outputs))
    for output in proto.graph.output:
        output.type.tensor_type.elem_type = kind_of(output.name)
    onnx.save(proto, path)
    return path, outputs


def kind_of(name: str) -> int:
    return onnx.TensorProto.INT64 if name in ("classes", "answer") else onnx.TensorProto.FLOAT


def constants(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in proto.graph.initializer}


def store(proto: onnx.ModelProto, arrays: dict[str, np.ndarray]) -> None:
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(arrays[tensor.name], tensor.name))


def prepared(path: Path) -> OnnxGraph:
    file = read_file(path)
    return OnnxGraph(*normalised(file, file.imgsz, 1, dynamic=False))


def tie(path: Path, name: str) -> None:
    """Let the last layer give the same for every pixel, or every class, but for rounding that the file has."""
    proto = onnx.load(path)
    arrays = constants(proto)
    last = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")][-1]
    weight, bias = last.input[1], last.input[2] if len(last.input) > 2 else ""
    arrays[weight][...] = arrays[weight][:1] if name in ("map", "answer") else 0
    if bias:
        arrays[bias][...] = 0
        if name in ("rows", "one row"):
            arrays[bias][:4] = 3
    store(proto, arrays)
    onnx.save(proto, path)


def round_otherwise(graph: OnnxGraph) -> None:
    """Move every weight of the normal form by less than rounding does."""
    arrays = constants(graph.proto)
    random = np.random.default_rng(5)
    for key, array in arrays.items():
        if array.dtype == np.float32:
            arrays[key] = (array * (1 + EPSILON * random.choice([-1, 1], array.shape)) + 0).astype(np.float32)
            if key.endswith("bias"):
                arrays[key] = arrays[key] + random.choice([-1, 1], array.shape).astype(np.float32) * EPSILON
    store(graph.proto, arrays)


@pytest.mark.parametrize("tied", [False, True], ids=["distinct", "tied"])
@pytest.mark.parametrize("name", CASES)
def test_rounding_is_no_difference_even_where_it_decides(name: str, tied: bool, tmp_path: Path) -> None:
    path, _ = made(name, tmp_path / "model.onnx")
    if tied:
        tie(path, name)
    graph = prepared(path)
    round_otherwise(graph)
    check_same(read_file(path), graph, UNIT)


def other_weight(proto: onnx.ModelProto) -> None:
    arrays = constants(proto)
    last = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")][-1]
    arrays[last.input[1]] = arrays[last.input[1]] * np.float32(1.2) + np.float32(0.02)
    store(proto, arrays)


def one_channel(proto: onnx.ModelProto) -> None:
    """What no figure over everything would show."""
    arrays = constants(proto)
    last = [node for node in proto.graph.node if node.op_type in ("Conv", "Gemm")][-1]
    arrays[last.input[1]][-1] *= np.float32(-1)
    store(proto, arrays)


def other_rows(proto: onnx.ModelProto) -> None:
    """Boxes of other places than the scores are of."""
    arrays = constants(proto)
    (gather,) = (node for node in proto.graph.node if node.op_type == "Gather")
    shift = onnx.helper.make_node("Mod", [gather.input[1], "size"], ["shifted"], "shift")
    moved = onnx.helper.make_node("Add", [gather.input[1], "one"], ["moved"], "move")
    shift.input[0] = "moved"
    proto.graph.initializer.extend(
        [numpy_helper.from_array(np.array([1]), "one"), numpy_helper.from_array(np.array([200]), "size")]
    )
    index = list(proto.graph.node).index(gather)
    gather.input[1] = "shifted"
    proto.graph.node.insert(index, shift)
    proto.graph.node.insert(index, moved)
    assert arrays


@pytest.mark.parametrize(
    ("name", "fault", "words"),
    [
        ("rows", other_weight, "which a decision is made from"),
        ("rows", one_channel, "which a decision is made from"),
        ("rows", other_rows, "of the rows of rows are there"),
        ("map", other_weight, "which a decision is made from"),
        ("map", one_channel, "which a decision is made from"),
        ("answer", one_channel, "logits"),
        ("mask", other_weight, "which a decision is made from"),
    ],
)
def test_what_is_computed_wrongly_is_found(
    name: str, fault: Callable[[onnx.ModelProto], None], words: str, tmp_path: Path
) -> None:
    path, _ = made(name, tmp_path / "model.onnx")
    graph = prepared(path)
    check_same(read_file(path), graph, UNIT)
    fault(graph.proto)
    with pytest.raises(InputError, match=rf"model\.onnx computes something else in its normal form \(.*{words}"):
        check_same(read_file(path), graph, UNIT)


def test_pixels_do_not_hide_scores(tmp_path: Path) -> None:
    """Boxes up to 640 and scores in one output: a thousandth of 640 is most of a score."""
    graph = Graph()
    stem(graph)
    sides = graph.add("Mul", graph.conv(4, 16, 1), graph.constant(np.array(100, np.float32)))
    scores = graph.add("Sigmoid", graph.conv(1, 16, 1, "relu1"))
    graph.add("Concat", sides, scores, axis=1)
    graph.add("Reshape", graph.x, whole(graph, 1, 5, -1))
    path = saved(graph, tmp_path / "model.onnx")
    wrong = prepared(path)
    arrays = constants(wrong.proto)
    (name,) = (key for key, array in arrays.items() if key.endswith("weight") and array.shape[0] == 1)
    arrays[name] = arrays[name] + np.float32(0.01)
    store(wrong.proto, arrays)
    with pytest.raises(InputError, match="computes something else"):
        check_same(read_file(path), wrong, UNIT)


def test_numbers_that_are_none_are_named(tmp_path: Path) -> None:
    graph = Graph()
    stem(graph)
    graph.add("Log", graph.add("Mul", graph.x, graph.constant(np.array(-1, np.float32))))
    path = saved(graph, tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"log3 is not a number"):
        check_same(read_file(path), prepared(path), UNIT)
