"""Small files that expand without end, once somebody else reads them: each is refused in one line before that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper
from test_hostile_inputs import refusal

from qexport.programs.onnx.file import described, read_file

IMAGES = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 8, 8])
NUMBERS = 1024


def network(
    nodes: Sequence[NodeProto] = (),
    constants: Sequence[TensorProto] = (),
    functions: Sequence[FunctionProto] = (),
) -> onnx.ModelProto:
    """A convolution and what is put beside it."""
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["images", "w"], ["y"]), *nodes],
        "g",
        [IMAGES],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight, *constants],
    )
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=9, functions=functions)


def apart(name: str, numbers: int, location: str = "x.onnx", **more: str) -> TensorProto:
    """A tensor whose bytes are in a file."""
    tensor = TensorProto(name=name, data_type=1, dims=[numbers], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def doubled(kind: str, first: str, times: int = 39) -> list[NodeProto]:
    steps = [first, *(f"s{step}" for step in range(1, times + 1))]
    options = {"axis": 0} if kind == "Concat" else {}
    return [helper.make_node(kind, [a, a], [b], **options) for a, b in pairwise(steps)]


def nested(levels: int, body: str = "Relu") -> list[FunctionProto]:
    """Functions that call the one before twice."""
    sets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    made = [helper.make_function("f", "F0", ["a"], ["b"], [helper.make_node(body, ["a"], ["b"])], sets)]
    for level in range(1, levels):
        call = [helper.make_node(f"F{level - 1}", [a], [b], domain="f") for a, b in ("at", "tb")]
        made.append(helper.make_function("f", f"F{level}", ["a"], ["b"], call, sets))
    return made


def called(functions: list[FunctionProto], argument: str = "y") -> onnx.ModelProto:
    one = [numpy_helper.from_array(np.ones(NUMBERS, np.float32), "one")]
    return network([helper.make_node(functions[-1].name, [argument], ["z"], domain="f")], one, functions)


def endless() -> list[FunctionProto]:
    call = [helper.make_node("R", ["a"], ["b"], domain="f")]
    return [helper.make_function("f", "R", ["a"], ["b"], call, [helper.make_opsetid("f", 1)])]


def doubling_functions() -> list[FunctionProto]:
    made = nested(6)
    made[0].node[0].CopyFrom(helper.make_node("Concat", ["a", "a"], ["b"], axis=0))
    return made


def ones(numbers: int = NUMBERS) -> TensorProto:
    return numpy_helper.from_array(np.ones(numbers, np.float32), "one")


def sparse() -> onnx.ModelProto:
    made = network()
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "i")
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(ones(1), indices, [2**40]))
    return made


TEXT = helper.make_tensor("text", TensorProto.STRING, [1], [b"ab"])
SHAPE = numpy_helper.from_array(np.array([2**20, 2**20]), "shape")
EXPANDING: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "weights in one another": (
        lambda: network([], [ones(), *(apart(f"e{i}", NUMBERS) for i in range(30))]),
        "in files",
    ),
    "more than the tensor": (lambda: network([], [ones(), apart("e", 1, length="4096")]), "4096"),
    "weights in a hole": (lambda: network([], [apart("e", 2**32, "hole")]), "in files"),
    "sparse": (sparse, "sparse"),
    "functions": (lambda: called(nested(40)), "functions"),
    "a function in itself": (lambda: called(endless()), "without end"),
    "constants": (lambda: network(doubled("Concat", "one"), [ones()]), "constant"),
    "constants in functions": (lambda: called(doubling_functions(), "one"), "constant"),
    "repeated": (lambda: network([helper.make_node("Expand", ["one", "shape"], ["z"])], [ones(1), SHAPE]), "constant"),
    "texts": (lambda: network(doubled("StringConcat", "text"), [TEXT]), "texts"),
    "texts of numbers": (lambda: network([helper.make_node("Cast", ["one"], ["z"], to=8)], [ones()]), "texts"),
}


@pytest.mark.parametrize("sample", EXPANDING)
def test_networks_that_expand(sample: str, tmp_path: Path) -> None:
    make, word = EXPANDING[sample]
    path = tmp_path / "x.onnx"
    path.write_bytes(make().SerializeToString())
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(2**34)
    said = refusal(read_file, path)
    assert word in said
    assert str(path) in said


def test_weights_that_say_no_length_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    made = network()
    made.graph.initializer[0].CopyFrom(apart("w", 108, "w.bin"))
    made.graph.initializer[0].dims[:] = [4, 3, 3, 3]
    (tmp_path / "w.bin").write_bytes(np.arange(200, dtype=np.float32).tobytes())
    (tmp_path / "x.onnx").write_bytes(made.SerializeToString())
    read = numpy_helper.to_array(read_file(tmp_path / "x.onnx").proto.graph.initializer[0])
    assert np.array_equal(read.ravel(), np.arange(108, dtype=np.float32))


def test_functions_that_expand_to_little_are_read(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(called(nested(5)).SerializeToString())
    assert len(read_file(tmp_path / "x.onnx").proto.functions) == 5


GOOD = {"task": "detect", "stride": "32", "imgsz": "[32, 32]"}
LITERALS = {
    "numbers that collide": "{" + ",".join(f"{(2**61 - 1) * i}:0" for i in range(1, 60_000)) + "}",
    "lists": "{0:[" + "[]," * 100_000 + "]}",
    "nested": "{" * 3000,
    "signs": "{0:" + "-" * 100_000 + "1}",
    "long": "{0:'" + "n" * 2**20 + "'}",
    "joined": "{0:" + "'a' " * 100_000 + "}",
    "three quotes": "{0:'''[]'''}",
}


@pytest.mark.parametrize("sample", LITERALS)
def test_metadata_that_are_no_plain_literals_are_not_parsed(sample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(text: str) -> None:
        pytest.fail(f"parses {text[:20]}")

    monkeypatch.setattr("ast.literal_eval", parse)
    assert described(GOOD | {"names": LITERALS[sample]}) is None


def test_plain_metadata_are_read() -> None:
    names = {
        0: "it's",
        1: 'a "b"',
        2: "back\\slash",
        3: "ünï: [x]",
        4: "4006381333931",
        **dict.fromkeys(range(5, 50_000), "n"),
    }
    said = described(GOOD | {"names": repr(names)})
    assert said is not None
    assert said.names == names
