"""Small files that expand without end, once somebody else reads them: each is refused in one line before that."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import FunctionProto, NodeProto, TensorProto, helper, numpy_helper
from PIL import Image
from test_hostile_inputs import no_hang, refusal

from qexport.data import images
from qexport.data.dataset import image_list, load_dataset, load_folder, load_list
from qexport.data.images import read_image
from qexport.programs.build import read_source
from qexport.programs.onnx.file import described, read_file, unreadable
from qexport.system import given_files

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
    options: dict[str, Any] = {"axis": 0} if kind == "Concat" else {}
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


TEXT = numpy_helper.from_array(np.array(["ab"], object), "text")
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


def tensor(name: str, *numbers: float, kind: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(numbers, kind), name)


def folded(kind: str, inputs: Sequence[str], *more: NodeProto, **options: Any) -> onnx.ModelProto:
    """An operator on small constants, which has 2^34 numbers when they are folded."""
    constants = [
        tensor("square", 2**17, 2**17),
        tensor("half", 2**16, 2**16),
        tensor("sides", 0, 0, 2**17, 2**17),
        tensor("none", *[0] * 2**17),
        tensor("depth", 2**17),
        tensor("off on", 0, 1, kind=np.float32),
        tensor("scales", 2**17, 2**17, kind=np.float32),
        numpy_helper.from_array(np.ones((1, 1), np.float32), "one"),
        numpy_helper.from_array(np.ones((1, 2**17), np.float32), "row"),
        numpy_helper.from_array(np.ones((2**17, 1), np.float32), "column"),
    ]
    return network([*more, helper.make_node(kind, inputs, ["z"], **options)], constants)


DOUBLED = helper.make_node("Add", ["half", "half"], ["whole"])
FOLDED: dict[str, Callable[[], onnx.ModelProto]] = {
    "joined": lambda: network(doubled("Concat", "one"), [ones()]),
    "joined in functions": lambda: called(doubling_functions(), "one"),
    "expanded": lambda: network([helper.make_node("Expand", ["one", "shape"], ["z"])], [ones(1), SHAPE]),
    "padded": lambda: folded("Pad", ["one", "sides"]),
    "gathered": lambda: folded("Gather", ["row", "none"]),
    "broadcast": lambda: folded("Add", ["row", "column"]),
    "multiplied": lambda: folded("MatMul", ["column", "row"]),
    "enlarged": lambda: folded("Resize", ["one", "", "scales"], mode="nearest"),
    "one of many": lambda: folded("OneHot", ["none", "depth", "off on"]),
    "filled": lambda: folded("ConstantOfShape", ["square"]),
    "as often as is computed": lambda: folded("Tile", ["one", "whole"], DOUBLED),
    "by a product": lambda: folded("Einsum", ["column", "row"], equation="ij,jk->ik"),
}


@pytest.mark.parametrize("sample", FOLDED)
def test_constants_that_expand_when_they_are_folded(
    sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qexport.programs.bounded_run.MAX_BYTES", 2**20)
    path = tmp_path / "x.onnx"
    path.write_bytes(FOLDED[sample]().SerializeToString())
    said = refusal(read_source, path)
    assert "computes a tensor of" in said
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


@pytest.mark.parametrize(("key", "value"), [("names", "['a']"), ("names", "5"), ("stride", "x"), ("imgsz", "{}")])
def test_metadata_of_another_form_are_not_passed_over_in_silence(key: str, value: str, tmp_path: Path) -> None:
    said = GOOD | {"names": "{0: 'a'}"}
    assert unreadable(said) == unreadable({**said, "task": "unknown"}) == unreadable({"author": "x"}) == ""
    made = network()
    for name, text in (said | {key: value}).items():
        made.metadata_props.add(key=name, value=text)
    (tmp_path / "x.onnx").write_bytes(made.SerializeToString())
    (note,) = read_source(tmp_path / "x.onnx").checkpoint.notes
    assert "cannot be read" in note


def test_plain_metadata_are_read() -> None:
    names = {
        0: "it's",
        1: 'a "b"',
        2: "back\\slash",
        3: "ünï: [x]",
        4: "4006381333931",
        **dict.fromkeys(range(5, 20_000), "n"),
    }
    said = described(GOOD | {"names": repr(names)})
    assert said is not None
    assert said.names == names


@pytest.mark.parametrize("outputs", [["z"], []])
def test_a_constant_of_nothing(outputs: list[str], tmp_path: Path) -> None:
    value: dict[str, Any] = {"value": ones()} if not outputs else {}
    made = network([helper.make_node("Constant", [], outputs, **value)])
    made.opset_import[0].version = 7
    (tmp_path / "x.onnx").write_bytes(made.SerializeToString())
    assert "without a value" in refusal(read_file, tmp_path / "x.onnx")


def test_a_file_that_grows_is_read_no_further_than_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO(bytes(100))
    monkeypatch.setattr(given_files, "open_given", lambda *_: stream)
    monkeypatch.setattr(stream, "close", lambda: None)
    with pytest.raises(OSError, match="more than 10 bytes"):
        given_files.read_bytes(tmp_path / "x", 10)
    assert stream.tell() == 11


@pytest.mark.parametrize("text", ["path: {}\ntrain: x", "train: {}", "train: [x, {}]"])
@pytest.mark.parametrize("times", [1000, 50_000])
def test_long_paths_are_not_repeated(text: str, times: int, tmp_path: Path) -> None:
    yaml, listing = tmp_path / "x.yaml", tmp_path / "x.txt"
    yaml.write_text(f"{text.format('a/' * times)}\nnames: [a]\n")
    listing.write_text(f"{'a/' * times}x.jpg")
    refusal(lambda path: image_list(load_dataset(path), "train"), yaml)
    refusal(lambda path: image_list(load_list(path), "train"), listing)


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((16, 16, 3), np.uint8))


def test_folders_linked_in_a_circle_are_walked_once(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/b.jpg", ".hidden/c.jpg", "deep/.d.jpg"):
        picture(tmp_path / "data" / name)
    picture(tmp_path / "pool" / "e.jpg")
    for name, to in (("x", "."), ("y", "."), ("deep/up", ".."), ("z", "../pool"), ("a", "deep")):
        (tmp_path / "data" / name).symlink_to(to)
    with no_hang():
        found = image_list(load_folder(tmp_path / "data"), "train")
    assert [image.relative_to(tmp_path / "data").as_posix() for image in found] == ["a.jpg", "deep/b.jpg", "z/e.jpg"]


@pytest.mark.parametrize("place", ["/proc", "/sys", "/dev", "link"])
def test_folders_of_the_system_are_not_walked(place: str, tmp_path: Path) -> None:
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "inside").symlink_to("/proc")
    yaml = tmp_path / "x.yaml"
    yaml.write_text(f"train: {place}\nnames: [a]\n")
    assert "of the system" in refusal(lambda path: image_list(load_dataset(path), "train"), yaml)


def test_folders_of_too_many_files_are_not_walked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.data.layout.MAX_ENTRIES", 3)
    for number in range(4):
        (tmp_path / f"{number}").touch()
    assert str(tmp_path) in refusal(load_folder, tmp_path)


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_pages_of_an_image_count_together(channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64)
    small, page = Image.new("L", (16, 16)), Image.new("L", (64, 64))
    small.save(tmp_path / "x.tif", save_all=True, append_images=[page] * 2, compression="tiff_deflate")
    assert "pages" in refusal(lambda path: read_image(path, channels), tmp_path / "x.tif")
    small.save(tmp_path / "x.tif", save_all=True, append_images=[small] * 11, compression="tiff_deflate")
    assert read_image(tmp_path / "x.tif", channels).shape == (16, 16, channels)


def test_the_bytes_that_were_checked_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = images._refused

    def exchanged(path: Path, encoded: bytes) -> str:
        said = checked(path, encoded)
        path.unlink()
        path.mkdir()
        return said

    Image.new("RGB", (16, 12), (0, 0, 255)).save(tmp_path / "x.tif")
    monkeypatch.setattr(images, "_refused", exchanged)
    assert (read_image(tmp_path / "x.tif") == (255, 0, 0)).all()
