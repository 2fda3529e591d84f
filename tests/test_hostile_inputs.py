"""Files that want to fill the memory, never end, or have values of other types than anything that writes them.

Each is refused in one line with a documented exit code, and before anything is expanded. Checkpoints that want to run
code are in test_hostile_checkpoints.py.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
import signal
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from layer_graphs import Graph
from onnx import TensorProto, helper
from refusals import DATA, INPUT, MODEL, UNMEASURED, USAGE, Refusal, description
from small_models import Call, saved, small_model

from qexport.calibration.calibration_table import load_table
from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.checkpoints.identify import holds_learned
from qexport.cli.app import main
from qexport.data.dataset import fingerprint, image_list, load_dataset, load_folder, load_list
from qexport.data.images import read_image
from qexport.data.labels import Wanted, read_labels
from qexport.errors import OUT_OF_MEMORY, InputError, QexportError
from qexport.inspection.difference import compare_reports
from qexport.inspection.samples import load_samples
from qexport.job.options import read_config
from qexport.optimisation.candidate_file import load_candidate
from qexport.planning.plan import load_plan
from qexport.programs.build import read_source
from qexport.programs.onnx.file import described, read_file
from qexport.reporting.load import load_report
from qexport.reporting.sensitivity_file import load_sensitivity
from qexport.system.given_files import ALWAYS_UNPACKED

GOLDEN = Path(__file__).parent / "golden" / "report.json"
SECONDS = 60
"""After which a reader hangs; on a busy machine everything takes its time."""


@contextmanager
def no_hang() -> Iterator[None]:
    """A block that ends by itself."""

    def fail(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def line_of(error: QexportError, code: int) -> str:
    assert error.exit_code == code
    assert "\n" not in str(error)
    assert len(str(error)) < 600
    return str(error)


def refusal(read: Callable[[Path], Any], path: Path, code: int = INPUT) -> str:
    """What a reader says of a file."""
    with pytest.raises(QexportError) as caught, no_hang():
        read(path)
    return line_of(caught.value, code)


def _images_of(path: Path) -> None:
    image_list(load_list(path), "train")


READERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "x.pt": (load_checkpoint, INPUT),
    "x.onnx": (read_file, INPUT),
    "x.yaml": (load_dataset, INPUT),
    "config.yaml": (read_config, USAGE),
    "x.txt": (_images_of, INPUT),
    "x.png": (read_image, INPUT),
    "y.png": (lambda path: fingerprint([path]), INPUT),
    "plan.json": (load_plan, INPUT),
    "report.json": (load_report, INPUT),
    "sensitivity.json": (load_sensitivity, INPUT),
    "calibration.npz": (load_table, INPUT),
    "samples.npz": (load_samples, INPUT),
    "candidate.npz": (lambda path: load_candidate(path, cast(Any, None)), INPUT),
}
"""Name of a file → what reads it, the exit code."""


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _circle(path: Path) -> None:
    path.symlink_to(path)


NO_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (_pipe, "a named pipe"),
    "device": (_device, "a device"),
    "folder": (Path.mkdir, "folder"),
    "circle": (_circle, ""),
}


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file_is_not_opened(name: str, kind: str, tmp_path: Path) -> None:
    make, word = NO_FILES[kind]
    read, code = READERS[name]
    path = tmp_path / name
    make(path)
    line = refusal(read, path, code)
    assert name in line
    assert word in line or name == "x.txt"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_labels_that_are_no_file(kind: str, tmp_path: Path) -> None:
    NO_FILES[kind][0](tmp_path / "x.txt")
    with no_hang():
        found = read_labels([tmp_path / "x.png"], "labels", Wanted("detect", 2))
    assert "x.txt cannot be read" in found.fault


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_image_of_a_folder_that_is_no_file(kind: str, tmp_path: Path) -> None:
    """A mask beside an image is looked at, too."""
    make, word = NO_FILES[kind]
    make(tmp_path / "a_mask.png")
    (tmp_path / "a.png").touch()
    assert word in refusal(lambda path: image_list(load_folder(path), "train"), tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
@pytest.mark.parametrize(
    "option", ["model", "--data", "--plan", "--candidate", "--calibration", "--baseline", "--config"]
)
def test_the_command_line_opens_no_pipe(option: str, kind: str, tmp_path: Path, refused: Refusal) -> None:
    name = "given.yaml" if option in ("--data", "--config") else "given.pt"
    path = tmp_path / name
    NO_FILES[kind][0](path)
    given = {"model": str(MODEL), "--data": DATA, option: str(path)}
    if option in ("--plan", "--candidate", "--calibration"):
        given["--precision"] = "int8"
    words = [word for key, value in given.items() if key != "model" for word in (key, value)]
    with no_hang():
        line = refused(given["model"], *words, *UNMEASURED, code=USAGE if option == "--config" else INPUT)
    assert name in line or kind == "folder"


def aliases(first: str, form: str) -> str:
    """Ten times the line before, nine times over: a thousand million values."""
    lines = [f"a: &a {first}"]
    for before, name in zip("abcdefghi", "bcdefghij", strict=True):
        lines.append(f"{name}: &{name} {form.format(', '.join([f'*{before}'] * 10))}")
    return "\n".join(lines)


TEXTS: dict[str, tuple[str, str]] = {
    "lists of lists": (aliases("[x, x]", "[{}]"), "more than 50,000 values"),
    "merged keys": (aliases("{x: 1}", "{{<<: [{}]}}"), "more than 50,000 values"),
    "in itself": ("a: &a [*a]", "alias of the whole"),
    "map in itself": ("a: &a {b: *a}", "alias of the whole"),
    "in itself and much": ("a: &a [*a, 1]\nb: &b [*a, *a]", "alias of the whole"),
    "deep lists": ("a: " + "[" * 500 + "]" * 500, "nested"),
    "deep maps": ("{a: " * 500 + "}" * 500, "nested"),
    "deep blocks": ("\n".join(" " * i + "a:" for i in range(100)), "nested"),
    "too large": ("#" * (2**22 + 1), "more than 4,194,304 bytes"),
    "long number": ("nc: " + "9" * 5000, "5,000 characters"),
    "long time": ("nc: " + "1:" * 20_000 + "1", "40,001 characters"),
    "zero byte": ('path: "a\\0b"', "no text has"),
    "half a character": ('names: ["\\ud800"]', "no text has"),
    "half a key": ('{"\\udfff": 1}', "no text has"),
    "no month": ("a: 2024-13-45", "month"),
    "no hour": ("a: 2024-01-01 25:61:61", "hour"),
    "no date": ("a: !!timestamp x", "tag"),
    "no number": ("a: !!int ''", "tag"),
    "no float": ("a: !!float x", "float"),
    "neither true nor false": ("a: !!bool maybe", "maybe"),
    "no set": ("a: !!set [1]", "mapping node"),
    "no map": ("a: !!omap x", "ordered map"),
    "a call": ("a: !!python/object/apply:os.system [ls]", "constructor"),
    "a list as a key": ("{[1]: 2}", "unhashable"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "no such alias": ("a: *b", "undefined alias"),
    "another YAML": ("%YAML 9.9\n---\na: 1", "incompatible"),
    "no end": ("a: [", "line 1"),
}
"""A text that is no YAML within bounds, a word of the line."""


@pytest.mark.parametrize("sample", TEXTS)
@pytest.mark.parametrize("name", ["x.yaml", "config.yaml"])
def test_yaml_is_bounded(name: str, sample: str, tmp_path: Path) -> None:
    text, word = TEXTS[sample]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    read, code = READERS[name]
    line = refusal(read, path, code)
    assert word in line
    assert name in line


DESCRIPTIONS: dict[str, tuple[str, str]] = {
    "a thousand million classes": ("nc: 1000000000", "1 to 50000"),
    "classes of 60 digits": ("nc: " + "9" * 60, "1 to 50000"),
    "endless classes": ("nc: .inf", "'nc'"),
    "no number of classes": ("nc: .nan", "'nc'"),
    "endless key": ("names: {.inf: a}", "'names'"),
    "key that is no number": ("names: {.nan: a}", "'names'"),
    "key of 40 digits": ("names: {" + "9" * 40 + ": a}", "without gaps"),
    "channels": ("{nc: 1, channels: 1000000000}", "'channels'"),
    "keypoints": ("{nc: 1, kpt_shape: [1000000000, 3]}", "'kpt_shape'"),
    "keypoints of a map": ("{nc: 1, kpt_shape: {a: 1}}", "'kpt_shape'"),
    "root": ("{nc: 1, path: [a]}", "'path'"),
    "split of a map": ("{nc: 1, train: {a: b}}", "'train'"),
    "split of lists": ("{nc: 1, val: [[a]]}", "'val'"),
    "names of a text": ("names: abc", "'names'"),
    "names of a number": ("names: 7", "'names'"),
}


@pytest.mark.parametrize("sample", DESCRIPTIONS)
def test_descriptions_of_data_are_bounded(sample: str, tmp_path: Path) -> None:
    text, word = DESCRIPTIONS[sample]
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    assert word in refusal(load_dataset, path)


def test_a_root_that_links_to_itself(tmp_path: Path) -> None:
    _circle(tmp_path / "round")
    path = description(tmp_path / "x.yaml", {"nc": 1, "path": "round", "train": "images"})
    assert "does not exist" in refusal(lambda path: image_list(load_dataset(path), "train"), path)


JSON_TEXTS = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "digits": '{"schema": ' + "9" * 5000 + "}",
    "more than 64 bits": '{"schema": 123456789012345678901234567890}',
    "half a character": '{"schema": 1, "profile": "\\ud800"}',
    "zero bytes": "\0\0\0\0",
    "a list": "[]",
    "a number": "1",
    "nothing": "",
    "not a number": "NaN",
    "bytes": "\x80\x81",
    "schema of a list": '{"schema": [1]}',
    "schema of a map": '{"schema": {}}',
}


@pytest.mark.parametrize("sample", JSON_TEXTS)
@pytest.mark.parametrize("name", ["plan.json", "report.json", "sensitivity.json"])
def test_json_is_bounded(name: str, sample: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(JSON_TEXTS[sample].encode("latin1"))
    assert name in refusal(READERS[name][0], path)


WRONG: tuple[Any, ...] = (True, -1, 10**19, "x", [], [None], {}, {"x": None})


def places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values are, of lists the first."""
    yield at
    pairs = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in pairs:
        yield from places(value, (*at, key))


def changed(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    made = part = copy.deepcopy(content)
    for key in at[:-1]:
        part = part[key]
    part[at[-1]] = value
    return made


def test_no_type_of_any_value_of_a_report_is_unexpected(tmp_path: Path) -> None:
    """Refused in one line, or good enough to compare."""
    content = json.loads(GOLDEN.read_text(encoding="utf-8"))
    good, path = load_report(GOLDEN), tmp_path / "report.json"
    chosen = random.Random(0)
    lines = []
    for at in [at for at in places(content) if at]:
        for value in chosen.sample(WRONG, 2):
            path.write_text(json.dumps(changed(content, at, value)), encoding="utf-8")
            try:
                list(compare_reports(load_report(path), good))
            except InputError as error:
                lines.append(line_of(error, INPUT))
    assert len(lines) > 100
    assert all(str(path) in line for line in lines)


THRESHOLDS = {"reference": 0.2, "everything": 0.2, "classes": {"x": 0.4}, "shift": 0.0, "images": 9, "count": {"x": 99}}
REPORTS = {
    "class of a threshold": (("artifacts", 0, "accuracy", "thresholds"), THRESHOLDS),
    "class of a box": (("artifacts", 0, "gallery", 0, "kept", 0, "class"), []),
    "corners of a box": (("artifacts", 0, "gallery", 0, "kept", 0, "box"), [1, 2]),
    "score of a box": (("artifacts", 0, "gallery", 0, "lost", 0, "score"), "x"),
    "outline of a box": (("artifacts", 0, "gallery", 0, "kept", 1, "outline"), [1]),
    "points of a pose": (("artifacts", 0, "gallery", 0, "kept", 2, "points"), [[1, 2]]),
    "artifacts": (("artifacts",), "x"),
    "artifact": (("artifacts", 0), 3),
    "format": (("artifacts", 0, "format"), []),
    "bytes": (("artifacts", 0, "bytes"), "many"),
    "accuracy": (("artifacts", 0, "accuracy"), [1]),
    "map": (("artifacts", 0, "accuracy", "map"), {}),
    "latency": (("artifacts", 0, "latency_ms"), 40.0),
    "model": (("model",), []),
    "size": (("model", "imgsz"), "640"),
    "seconds": (("seconds",), [1]),
    "threads": (("threads",), 2.5),
    "warnings": (("warnings",), {"a": 1}),
    "failures": (("failures",), "none"),
    "environment": (("environment",), []),
    "packages": (("environment", "packages"), ["a"]),
    "schema": (("schema",), "2"),
    "command": (("command",), None),
}


@pytest.mark.parametrize("sample", REPORTS)
@pytest.mark.parametrize("verb", ["report", "diff"])
@pytest.mark.usefixtures("logging_level")
def test_verbs_refuse_a_report_of_other_types(
    verb: str, sample: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(changed(json.loads(GOLDEN.read_text(encoding="utf-8")), *REPORTS[sample])))
    code = main([verb, str(path), *([str(GOLDEN)] if verb == "diff" else [])])
    output, errors = capfd.readouterr()
    assert (code, output, len(errors.splitlines())) == (INPUT, "", 1), errors
    assert str(path) in errors
    assert "unexpected" not in errors
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def packed(path: Path, entries: int, size: int) -> Path:
    """An archive of zeros, with what a checkpoint has besides."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}, 2))
        for number in range(entries):
            archive.writestr(f"a/data/{number}", bytes(size))
    return path


def test_a_checkpoint_that_unpacks_to_much_more(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.pt", 9, 2**23)
    assert "unpack to" in refusal(load_checkpoint, path)
    assert not holds_learned(path)


@pytest.mark.parametrize("name", ["calibration.npz", "samples.npz", "candidate.npz"])
def test_arrays_that_unpack_to_much_more(name: str, tmp_path: Path) -> None:
    assert "unpack to" in refusal(READERS[name][0], packed(tmp_path / name, 9, 2**23))


def _npy(kind: str, shape: str) -> bytes:
    """The head of an array's file, and nothing behind it."""
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': ({shape}), }}"
    return b"\x93NUMPY\x01\x00v\x00" + head.ljust(117).encode() + b"\n"


ARCHIVES: dict[str, bytes] = {
    "array of 8 TB": _npy("<f8", "1000000000000,"),
    "array of no bytes": _npy("<f8", "1000,"),
    "array of a negative size": _npy("<f8", "-5,"),
    "no array": b"x" * 100,
    "objects": _npy("|O", ""),
    "texts of 4 GB": _npy("<U1000000000", ""),
}


@pytest.mark.parametrize("sample", ARCHIVES)
@pytest.mark.parametrize("name", ["calibration.npz", "samples.npz", "candidate.npz"])
def test_arrays_that_are_not_what_they_say(name: str, sample: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("head.npy", ARCHIVES[sample])
    assert name in refusal(READERS[name][0], tmp_path / name)


@pytest.mark.parametrize("head", ["[]", "{}", "1", '{"schema": 99}', '{"schema": [1]}', "[" * 9999, '{"schema": 1}'])
@pytest.mark.parametrize("name", ["calibration.npz", "samples.npz", "candidate.npz"])
def test_arrays_with_another_head(name: str, head: str, tmp_path: Path) -> None:
    np.savez(tmp_path / name, head=np.array(head))
    assert name in refusal(READERS[name][0], tmp_path / name)


def _attribute(name: str, value: Any, at: str = "") -> Callable[[Any], None]:
    """Sets an attribute past what layers check."""

    def change(model: Any) -> None:
        layer = model.model[-1] if at == "head" else model.model[0].conv if at == "conv" else model
        vars(layer)[name] = value

    return change


def _shared(_model: Any) -> Any:
    text: Any = "x"
    for _ in range(40):
        text = [text] * 4
    return text


ATTRIBUTES: dict[str, Callable[[Any], None]] = {
    "names of a number": _attribute("names", 5),
    "names of a text": _attribute("names", "abc"),
    "names with lists": _attribute("names", {0: ["a"]}),
    "names with a key that is none": _attribute("names", {"a": "b"}),
    "names with a key between two": _attribute("names", {0: "a", 1.5: "b"}),
    "names with an endless key": _attribute("names", {float("inf"): "b"}),
    "classes and a part of one": _attribute("nc", 4.7, "head"),
    "classes of a model and a part of one": _attribute("nc", 4.7),
    "classes of a description and a part of one": _attribute("yaml", {"nc": 4.7}),
    "true classes": _attribute("nc", True, "head"),
    "bins and a part of one, classes": _attribute("reg_max", 1.5, "head"),
    "classes of a text": _attribute("nc", "many", "head"),
    "classes without end": _attribute("nc", float("inf"), "head"),
    "a thousand million classes": _attribute("nc", 10**9, "head"),
    "classes of a list": _attribute("nc", [4], "head"),
    "negative classes": _attribute("nc", -4, "head"),
    "stride between two": _attribute("stride", torch.tensor([8.5, 16, 32])),
    "stride of a text": _attribute("stride", "32"),
    "stride without end": _attribute("stride", torch.tensor([float("inf")])),
    "stride of a thousand million": _attribute("stride", torch.tensor([1e9])),
    "stride of a map": _attribute("stride", {}),
    "channels of a text": _attribute("yaml", {"channels": "three"}),
    "a thousand million channels": _attribute("yaml", {"channels": 10**9}),
    "channels of a list": _attribute("yaml", {"ch": [3]}),
    "size between two": _attribute("args", {"imgsz": 96.7}),
    "negative size": _attribute("args", {"imgsz": -5}),
    "size of a text": _attribute("args", {"imgsz": "large"}),
    "size without end": _attribute("args", {"imgsz": float("inf")}),
    "size of a thousand million": _attribute("args", {"imgsz": 10**9}),
    "size of maps": _attribute("args", {"imgsz": [{}, {}]}),
    "list of lists": lambda model: _attribute("extra", _shared(model))(model),
}


@pytest.mark.parametrize("sample", ATTRIBUTES)
def test_attributes_of_other_types_than_layers_have(sample: str, tmp_path: Path) -> None:
    model = small_model("Classify" if "classes" not in sample else "Detect")
    ATTRIBUTES[sample](model)
    path = tmp_path / "x.pt"
    torch.save({"model": model}, path)
    assert str(path) in refusal(load_checkpoint, path)


@pytest.mark.parametrize(
    "change",
    [_attribute("stride", "two", "conv"), _attribute("padding", None, "conv"), _attribute("groups", 0, "conv")],
)
def test_layers_that_cannot_be_run(change: Callable[[Any], None], tmp_path: Path) -> None:
    model = small_model("Classify")
    change(model)
    path = saved(model, tmp_path / "x.pt")
    assert str(path) in refusal(read_source, path)


def test_a_tensor_that_repeats_one_number(tmp_path: Path) -> None:
    """A stride of 0 makes any shape of four bytes."""
    model = small_model("Classify")
    model.extra = Call(
        torch._utils._rebuild_tensor_v2, torch.zeros(1)._typed_storage(), 0, (2**20, 2**20), (0, 0), False, {}
    )
    assert "many times the bytes" in refusal(load_checkpoint, saved(model, tmp_path / "x.pt"))


def test_tensors_that_share_what_is_stored(tmp_path: Path) -> None:
    storage = torch.zeros(2**20)._typed_storage()
    count = ALWAYS_UNPACKED // 2**22 + 10
    views = [Call(torch._utils._rebuild_tensor_v2, storage, 0, (2**20,), (1,), False, {}) for _ in range(count)]
    model = small_model("Classify")
    model.extra = views
    assert "many times the bytes" in refusal(load_checkpoint, saved(model, tmp_path / "x.pt"))


def network(path: Path, graph: Graph, shape: tuple[Any, ...] = (1, 3, 16, 16)) -> Path:
    """An ONNX file without any of ONNX's own checks."""
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)
    made = helper.make_graph(
        graph.nodes, "g", [given], [helper.make_tensor_value_info(graph.x, TensorProto.FLOAT, None)], graph.constants
    )
    path.write_bytes(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()
    )
    return path


def _conv(**attributes: Any) -> Graph:
    graph = Graph()
    graph.conv(4, 3, 3, **attributes)
    return graph


def _filled() -> Graph:
    graph = _conv()
    shape = graph.constant(np.array([2**20, 2**20, 64], np.int64))
    filled = graph.add("ConstantOfShape", shape)
    graph.add("Concat", "conv0", filled, axis=0)
    return graph


def _resized() -> Graph:
    graph = _conv()
    graph.add("Resize", graph.x, "", graph.constant(np.array([1, 1, 1e6, 1e6], np.float32)))
    return graph


def _unfilled() -> Graph:
    graph = _conv()
    graph.constants[0] = onnx.TensorProto(name=graph.constants[0].name, data_type=1, dims=[10**9, 10**9])
    return graph


NETWORKS: dict[str, tuple[Callable[[], Graph], tuple[Any, ...]]] = {
    "input of 10 billion pixels": (_conv, (1, 3, 10**5, 10**5)),
    "input beyond 64 bits": (_conv, (1, 3, 2**62, 2**62)),
    "batch of a thousand million": (_conv, (10**9, 3, 16, 16)),
    "stride of 0": (lambda: _conv(strides=[0, 0]), (1, 3, 16, 16)),
    "negative stride": (lambda: _conv(strides=[-1, -1]), (1, 3, 16, 16)),
    "dilation of 0": (lambda: _conv(dilations=[0, 0]), (1, 3, 16, 16)),
    "images of 7 channels": (_conv, (1, 7, 16, 16)),
    "a tensor of 256 TB": (_filled, (1, 3, 16, 16)),
    "enlarged a million times": (_resized, (1, 3, 16, 16)),
    "weights that are not there": (_unfilled, (1, 3, 16, 16)),
}


@pytest.mark.parametrize("sample", NETWORKS)
def test_networks_of_impossible_sizes(sample: str, tmp_path: Path) -> None:
    make, shape = NETWORKS[sample]
    path = network(tmp_path / "x.onnx", make(), shape)
    assert str(path) in refusal(read_source, path)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_weights_beside_a_network_that_are_no_file(kind: str, tmp_path: Path) -> None:
    NO_FILES[kind][0](tmp_path / "weights.bin")
    assert "weights.bin" in refusal(read_file, network(tmp_path / "x.onnx", _kept_apart("weights.bin")))


def _kept_apart(location: str, **more: str) -> Graph:
    """A convolution whose weights are said to be somewhere else."""
    graph = _conv()
    weight = onnx.TensorProto(
        name=graph.constants[0].name, data_type=1, dims=[4, 3, 3, 3], data_location=TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    graph.constants[0] = weight
    return graph


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "{}/secret.bin", "link.bin", "hard.bin"])
def test_weights_outside_the_folder_of_a_network_are_not_read(location: str, tmp_path: Path) -> None:
    secret, folder = tmp_path / "secret.bin", tmp_path / "folder"
    secret.write_bytes(bytes(4 * 4 * 3 * 3 * 3))
    (folder / "a").mkdir(parents=True)
    (folder / "link.bin").symlink_to(secret)
    (folder / "hard.bin").hardlink_to(secret)
    path = network(folder / "x.onnx", _kept_apart(location.format(tmp_path)))
    assert str(path) in refusal(read_file, path)


@pytest.mark.parametrize("key", ["offset", "length"])
@pytest.mark.parametrize("value", ["-1", "1000000000000", "x", "1e9"])
def test_weights_at_a_place_that_is_not_there(key: str, value: str, tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(4 * 4 * 3 * 3 * 3))
    path = network(tmp_path / "x.onnx", _kept_apart("weights.bin", **{key: value}))
    assert str(path) in refusal(read_file, path)


@pytest.mark.parametrize("side", [0, -16])
def test_a_network_for_images_of_no_pixels_is_one_of_any_size(side: int, tmp_path: Path) -> None:
    path = network(tmp_path / "x.onnx", _conv(), (1, 3, side, side))
    assert "--imgsz" in refusal(read_source, path, USAGE)


METADATA = {
    "stride": "0",
    "imgsz": "[0, 0]",
    "names": "[" * 5000,
    "kpt_shape": "(1e999, 'x')",
    "end2end": "{}[1]",
    "task": "detect\n",
}


@pytest.mark.parametrize("key", METADATA)
def test_metadata_of_another_form_say_nothing(key: str) -> None:
    said = {"task": "detect", "names": "{0: 'a'}", "imgsz": "[64, 64]", "stride": "32"}
    assert described(said) is not None
    assert described({**said, key: METADATA[key]}) is None


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 TB")], ids=str
)
def test_memory_that_runs_out_in_a_run_is_no_fault_of_ours(
    error: Exception, refused: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("qexport.pipeline.export", fail)
    assert refused(str(MODEL), *UNMEASURED, code=INPUT) == ": ".join(OUT_OF_MEMORY)
