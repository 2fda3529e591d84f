"""What is fuzzed: each kind of file, how it is made hostile, and the door of the command that it comes in by.

A door is the command line itself where a verb only reads (`report`, `diff`), and what a command calls up to its first
slow step elsewhere, with the command's own way to tell errors (`qexport.cli.app.ended`). So an export ends here before
a checkpoint's model is captured, and behind: a config's rules, an ONNX file's program, a plan's check against program
and runtime, a plan made of a calibration table, what training has learned.
"""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from conftest import TinyDetector, captured, demo_images, seeded, synthetic_statistics
from layer_graphs import Graph
from layer_graphs import saved as saved_graph
from small_models import saved, small_model
from trained import kept, record, trained

from fuzzing import archives, texts
from fuzzing.pickles import changed, hostile, mutated
from qexport.calibration.calibrate import described
from qexport.calibration.calibration_table import CalibrationTable, check_table, load_table, save_table
from qexport.checkpoints.identify import holds_learned
from qexport.cli.app import ended, main
from qexport.data.dataset import image_list
from qexport.data.images import letterbox, read_image
from qexport.data.labels import Wanted, read_labels
from qexport.data.resolve import resolve_data
from qexport.decode import read_model_info
from qexport.detections.agreement import Findings
from qexport.detections.detections import Detections
from qexport.inspection.manifest import read_manifest, recorded_names, samples_of
from qexport.inspection.run_folder import Model, companions, report_beside, run_folder
from qexport.inspection.samples import SampleInput, Samples, load_samples, save_samples
from qexport.job.options import make_job
from qexport.job.places import check_paths
from qexport.job.sweep_file import read_sweep
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.sensitivity_record import Sensitivity, SensitivityRow
from qexport.planning.plan import load_plan, save_plan
from qexport.planning.planner import make_plan
from qexport.planning.registry import RANGES
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.build import DEFAULTS, chosen_size, read_checkpoint, read_source
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.reporting.baseline import compare
from qexport.reporting.load import load_baseline, load_report
from qexport.reporting.sensitivity_file import load_sensitivity, save_sensitivity
from qexport.reporting.training_report import ProfileTraining, TrainingReport, load_training, save_training
from qexport.steps.plan import check_given, make_target, plan
from qexport.training.container import pack, unpack
from qexport.training.qat_file import read_learned
from qexport.training.state import FileStore, TrainingState

HERE = Path(__file__).resolve().parents[1]
GOLDEN = HERE / "golden" / "report.json"
DONE, DIFFERENT, USAGE, INPUT, MISSING = 0, 1, 2, 3, 4


@dataclass(frozen=True)
class Kind:
    """One kind of hostile file.

    Attributes:
        file: its name, which decides how it is read.
        share: of all cases, in proportion to the others'.
        make: a case; random numbers are all that it depends on.
        door: reads it as a command does; returns the exit code.
        codes: that are documented for it.
    """

    file: str
    share: int
    plain: Callable[[], bytes]
    make: Callable[[Random], bytes]
    door: Callable[[Path], int]
    codes: tuple[int, ...] = (DONE, INPUT)


def _door(read: Callable[[Path], object]) -> Callable[[Path], int]:
    def command(path: Path) -> int:
        read(path)
        return DONE

    return lambda path: ended(lambda: command(path))


def _content(write: Callable[[Path], object], name: str = "x") -> bytes:
    """The bytes of what something writes to a path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


@cache
def _program() -> Program:
    return captured(seeded(TinyDetector()))


@cache
def _checkpoint() -> bytes:
    return _content(lambda path: saved(small_model("Detect"), path, epoch=3, date="2026", optimizer=None))


@cache
def _legacy() -> bytes:
    stream = io.BytesIO()
    torch.save({"model": small_model("Classify")}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


@cache
def _members() -> dict[str, bytes]:
    return archives.read(_checkpoint())


def _with_pickle(content: bytes) -> bytes:
    name = next(each for each in _members() if each.endswith("/data.pkl"))
    return archives.packed({**_members(), name: content})


def _pickle() -> bytes:
    return next(content for name, content in _members().items() if name.endswith("/data.pkl"))


def _other_pickle(random: Random) -> bytes:
    if random.random() < 0.2:
        return mutated(_legacy(), random)
    return _with_pickle(changed(_pickle(), random))


def _hostile_pickle(random: Random) -> bytes:
    made = hostile(random)
    if random.random() < 0.2:  # as versions before 1.6 wrote files: pickles one behind the other
        magic = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        return magic + made + pickle.dumps(["0"], 2) + (16).to_bytes(8, "little") + bytes(64)
    return archives.packed({**_few_members(), "archive/data.pkl": made})


@cache
def _few_members() -> dict[str, bytes]:
    """What there is to view beside a hostile pickle: three storages."""
    stream = io.BytesIO()
    torch.save([torch.zeros(count) for count in (16, 64, 4096)], stream)
    return archives.read(stream.getvalue())


def _other_archive(random: Random) -> bytes:
    if random.random() < 0.03:
        return archives.bomb(random)
    return archives.changed(_members(), random)


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 2**40, 10**30, float("nan"), float("inf"), 1e300, "", "x", "[" * 500, b"x", [], [[]], [None]),
    *({}, {0: []}, {"a": {}}, {0.5: 1}, (), (1, 2), {1}, frozenset({1}), torch.zeros(0), torch.ones(3), 1j),
    *(torch.float16, torch.Size([2]), {"backbone": "x"}, {"nc": "x" * 100}, [1] * 5000, "__import__('os').system('x')"),
)
ATTRIBUTES = (
    *(
        "names",
        "nc",
        "stride",
        "yaml",
        "args",
        "task",
        "model",
        "training",
        "pt_path",
        "end2end",
        "kpt_shape",
        "reg_max",
    ),
    *(
        "nl",
        "no",
        "na",
        "anchors",
        "shape",
        "f",
        "i",
        "type",
        "np",
        "inplace",
        "export",
        "dynamic",
        "format",
        "xyxy",
        "extra",
    ),
    *("_modules", "_parameters", "_buffers", "_forward_hooks", "forward", "__class__", "weight", "bias", "in_channels"),
    *(
        "kernel_size",
        "padding",
        "groups",
        "dilation",
        "padding_mode",
        "eps",
        "running_var",
        "save",
        "legacy",
        "conf",
        "iou",
    ),
)


def _attributes(random: Random) -> bytes:
    model = small_model(random.choice(("Detect", "Classify", "Pose", "Segment", "OBB", "v10Detect", "RTDETRDecoder")))
    chosen, layers = (model, model.model[-1], model.model[0]), list(model.modules())
    for _ in range(random.choice((1, 1, 2, 3))):
        layer = random.choice((*chosen, random.choice(layers)))
        vars(layer)[random.choice(ATTRIBUTES)] = random.choice(VALUES)
    content: Any = {"model": model, "ema": None, "train_args": {"imgsz": 64}, "epoch": -1}
    for _ in range(random.choice((0, 0, 1))):
        content[random.choice(("ema", "train_args", "qexport", "modelopt", "model"))] = random.choice(VALUES)
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _read_checkpoint(path: Path) -> None:
    holds_learned(path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.task_spec is not None
    chosen_size(DEFAULTS, checkpoint)
    if checkpoint.learned:
        read_learned(checkpoint.learned, path)


@cache
def _learned() -> bytes:
    def write(path: Path) -> None:
        model = path.with_name("model.pt")
        source = read_source(saved(small_model(end2end=True, reg_max=1), model), CaptureOptions(imgsz=(64, 64)))
        given = make_plan(source.program, synthetic_statistics(source.program.values), TFLITE)
        kept(path, model, source.checkpoint.fingerprint, trained(source.program, given, TFLITE))

    return _content(write)


@cache
def _unpickled_learned() -> dict[str, Any]:
    found: dict[str, Any] = torch.load(io.BytesIO(_learned()), weights_only=False)
    return found


def _other_learned(random: Random) -> bytes:
    """What training has left in a checkpoint, changed: the archive, or plans and records in its head."""
    content = _unpickled_learned()["qexport"]
    return _kept(_repacked(content, random))


def _kept(learned: bytes) -> bytes:
    stream = io.BytesIO()
    torch.save({**_unpickled_learned(), "qexport": learned}, stream)
    return stream.getvalue()


def _repacked(content: bytes, random: Random) -> bytes:
    """An archive of `qexport.training.container` with another head, or other arrays."""
    if random.random() < 0.4:
        return archives.arrays(archives.read(content), random)
    head, arrays = unpack(content)
    for row in head.get("profiles", ()) if random.random() < 0.5 else ():
        row["plan"] = texts.json_of(json.loads(row["plan"]), random).decode("utf-8", "replace")
    if isinstance(found := _loaded(texts.json_of(head, random)), dict):
        head = found
    return pack(head, arrays)


def _loaded(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


@cache
def _state() -> bytes:
    tensors = {"student/a.weight": torch.ones(2, 3), "adam step": torch.tensor(24), "mask": torch.tensor([True])}
    state = TrainingState(2, 24, tensors, record("tflite"))
    return _content(lambda path: FileStore(path, {"model": "a"}).save(state))


def _described() -> dict[str, Any]:
    root = str(HERE.parent / "calibration_data" / "shapes")
    return {
        "path": root,
        "train": "images/train",
        "val": ["images/val"],
        "test": None,
        "nc": 3,
        "names": ["a", "b", "c"],
        "channels": 3,
        "kpt_shape": [5, 3],
        "download": "https://127.0.0.1:9/x.zip",
        "labels": "labels",
    }


def _options() -> dict[str, Any]:
    return {
        "model": str(HERE.parent / "calibration_data" / "shapes26.pt"),
        "format": "tflite",
        "int8": True,
        "imgsz": [64, 64],
        "data": str(HERE.parent / "calibration_data" / "shapes" / "shapes.yaml"),
        "batch": 1,
        "fraction": 0.5,
        "threads": 2,
        "calib-images": 4,
        "ranges": "auto",
        "effort": "none",
        "no_eval": True,
        "max_drop": "1%",
        "max-size": "900kB",
        "keep_float": "a,b",
        "cpu": "auto",
        "head": "end2end",
        "out": "out",
        "option": "a=b",
        "target": "pi5",
    }


def _other_options(random: Random) -> bytes:
    given = _options()
    fixed = {key: given.pop(key) for key in ("model", "data")}
    chosen = random.sample(list(given), random.choice((0, 1, 2, 4)))
    return texts.yaml_of({**fixed, **{key: given[key] for key in chosen}}, random)


def _sweep() -> dict[str, Any]:
    """A sweep whose options may be had together."""
    unmeasured = {"no-eval": True, "no-latency": True}
    lists = {"models": [_options()["model"]], "formats": ["onnx", "openvino"], "precisions": ["fp32", "fp16"]}
    more = {"include": [{"model": _options()["model"], "format": "tflite", "precision": "fp32"}]}
    return {**lists, **unmeasured, "exclude": [{"format": "onnx", "precision": "fp16"}], **more}


def _read_config(path: Path) -> None:
    check_paths(make_job({}, path))


def _report() -> Any:
    return json.loads(GOLDEN.read_text(encoding="utf-8"))


def _read_report(path: Path) -> int:
    return main(["report", str(path), "--out", str(path.with_name("page.html"))])


def _read_baseline(path: Path) -> None:
    compare(load_report(GOLDEN), load_baseline(path).report, "int8")


@cache
def _plan() -> bytes:
    made = make_plan(_program(), synthetic_statistics(_program().values), TFLITE)
    return _content(lambda path: save_plan(made, path))


def _read_plan(path: Path) -> None:
    check_given(load_plan(path), _program(), make_target("tflite"), path)


@cache
def _table() -> bytes:
    program = _program()
    table = CalibrationTable(
        program.fingerprint,
        "letterbox 8x8",
        "0" * 64,
        ("a.jpg",),
        (("b.jpg", "empty"),),
        synthetic_statistics(program.values),
    )
    return _content(lambda path: save_table(table, path), "x.npz")


def _read_table(path: Path) -> None:
    table = load_table(path)
    check_table(table, _program().fingerprint, "letterbox 8x8", [each.name for each in described(_program())], path)
    for ranges in RANGES.own:
        plan(_program(), table, make_target("tflite"), ranges=ranges)


@cache
def _samples() -> bytes:
    detections = Detections(
        np.ones((2, 4), np.float32), np.ones(2, np.float32), np.zeros(2, np.int64), np.zeros((2, 0), np.float32), "xyxy"
    )
    found = (Findings(detections, np.ones(21, np.float32)),) * 2
    samples = Samples(_program().layout, SampleInput(1), np.zeros((2, 8, 8, 3), np.uint8), {"a.onnx": found})
    return _content(lambda path: save_samples(samples, path), "x.npz")


@cache
def _candidate() -> bytes:
    program = _program()
    made = trained(program, make_plan(program, synthetic_statistics(program.values), TFLITE), TFLITE)
    return _content(lambda path: save_candidate(Candidate(made.program, made.plan, program), path), "x.npz")


def _heads(content: bytes, random: Random, *names: str) -> bytes:
    """An archive of arrays with other texts in it, or other arrays."""
    members = archives.read(content)
    if random.random() < 0.5:
        return archives.arrays(members, random)
    name = random.choice(names)
    text = str(np.load(io.BytesIO(members[f"{name}.npy"]), allow_pickle=False))
    other = texts.json_of(json.loads(text), random).decode("utf-8", "replace")
    stream = io.BytesIO()
    np.save(stream, np.array(other))
    return archives.packed({**members, f"{name}.npy": stream.getvalue()})


def _training() -> bytes:
    report = TrainingReport(
        "a.pt",
        "0" * 64,
        Path("a_qat.pt"),
        "qexport qat",
        "1",
        "x.yaml",
        "int8",
        (64, 64),
        (ProfileTraining(("tflite",), record("tflite"), (), 0.5, 0.6),),
        {"read": 1.5},
        ("note",),
    )
    return _content(lambda path: save_training(report, path))


def _sensitivity() -> bytes:
    row = SensitivityRow(
        name="a",
        kind="layer",
        operation="conv",
        block="b",
        macs=0.5,
        alone=0.1,
        left_out=0.2,
        noise=0.01,
        values=("a",),
    )
    found = Sensitivity(profile="tflite", program="0" * 64, images=4, whole=0.3, noise=0.01, rows=(row,))
    return _content(lambda path: save_sensitivity(found, path))


def _manifest() -> dict[str, Any]:
    return {
        "schema": 1,
        "artifact": "x.onnx",
        "format": "onnx",
        "precision": "int8",
        "sha256": "0" * 64,
        "bytes": 7,
        "weights": {"file": "x.pt", "sha256": "0" * 64},
        "program": "0",
        "calibration": {"images": 4},
        "plan": {"file": "plan.json", "sha256": "0", "weights": {"a": "b"}, "merged": {"a": "b"}},
        "samples": "samples.npz",
    }


def _read_manifest(path: Path) -> None:
    artifact = path.with_name("x.onnx")
    recorded_names(read_manifest(artifact) or {})
    samples_of(artifact)
    artifact.touch()
    try:
        report_beside(artifact)
        with run_folder(path.parent, True, Model("x.pt", "0" * 64, "0"), Silent()):
            companions(path.parent)
    finally:
        artifact.unlink()


@cache
def _network() -> bytes:
    graph = Graph()
    graph.conv(4, 3, 3)
    graph.add("Relu", graph.x)
    graph.add("MaxPool", graph.x, kernel_shape=[2, 2], strides=[2, 2])
    graph.conv(4, 4, 3)
    graph.add("Sigmoid", graph.x)
    graph.add("Reshape", graph.x, graph.constant(np.array([1, 4, -1], np.int64)))
    return _content(lambda path: saved_graph(graph, path))


def _other_network(random: Random) -> bytes:
    import onnx

    if random.random() < 0.3:
        return mutated(_network(), random)
    made = onnx.load_model_from_string(_network())
    for _ in range(random.choice((1, 1, 2))):
        _change_message(made, random)
    return bytes(made.SerializeToString())


MESSAGE, TEXT, FLOATS = 11, 9, (5, 6)
"""Protobuf's numbers: a field's type; a field's type in C++."""


def _change_message(message: Any, random: Random) -> None:
    """Somewhere below a protobuf message, a field of another value."""
    fields = [(field, found) for field, found in message.ListFields()]
    if not fields:
        return
    field, found = random.choice(fields)
    repeated = not isinstance(found, str | bytes | int | float) and hasattr(found, "__len__")
    if field.type == MESSAGE:
        chance, inner = random.random(), random.choice(list(found)) if repeated and len(found) else found
        if chance < 0.1:
            message.ClearField(field.name)
        elif repeated and chance < 0.2:
            found.add().CopyFrom(inner)
        elif repeated and chance < 0.3:
            del found[random.randrange(len(found))]
        else:
            _change_message(inner, random)
        return
    value = _field_value(field.cpp_type, random)
    try:
        if repeated:
            found[random.randrange(len(found))] = value
        else:
            setattr(message, field.name, value)
    except (ValueError, TypeError, OverflowError):
        message.ClearField(field.name)


def _field_value(kind: int, random: Random) -> Any:
    if kind == TEXT:
        return random.choice(
            ("", "x", "images", "conv0", "Loop", "If", "Resize", "QLinearConv", "../x", "é" * 50, b"\xff")
        )
    if kind in FLOATS:
        return random.choice((0.0, -1.0, 1e30, float("nan"), float("inf")))
    return random.choice((0, 1, -1, 2, 3, 7, 16, 2**15, 2**20, 2**31 - 1, -(2**31)))


@cache
def _pictures() -> tuple[bytes, ...]:
    image = cv2.imread(str(demo_images("val", 1)[0]))
    assert image is not None
    small = cv2.resize(image, (24, 16))
    return tuple(cv2.imencode(f".{kind}", small)[1].tobytes() for kind in ("png", "jpg", "bmp", "webp", "tiff", "ppm"))


def _read_picture(path: Path) -> None:
    letterbox(read_image(path), (32, 32))
    read_image(path, 1)


def _lines(random: Random) -> bytes:
    words = (
        "0",
        "1",
        "7",
        "-1",
        "0.5",
        "1e999",
        "nan",
        "x",
        "",
        "0.1 0.2",
        "9" * 400,
        "\0",
        "é",
        "../x.jpg",
        "/dev/zero",
        "#",
    )
    rows = [
        " ".join(random.choice(words) for _ in range(random.choice((0, 1, 5, 9))))
        for _ in range(random.choice((0, 1, 4, 40)))
    ]
    made = random.choice(("\n", "\r\n", "\r", "\0")).join(rows).encode()
    return mutated(made, random) if random.random() < 0.3 else made


def _read_labels(path: Path) -> None:
    for task in ("detect", "segment", "pose", "obb"):
        read_labels([path.with_suffix(".png")], "labels", Wanted(task, 2))


def _read_data(path: Path) -> None:
    image_list(resolve_data(str(path)), "train")


def _yaml(content: dict[str, Any]) -> bytes:
    return yaml.safe_dump(content).encode()


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


ABOUT = {"task": "detect", "names": {"0": "cat", "1": "dog"}, "imgsz": [64, 96], "batch": 1, "end2end": True}
ABOUT |= {"thresholds": {"everything": 0.3, "classes": {"0": 0.3, "1": 0.4}}}
"""Metadata that a device reads."""


def _device(metadata: bytes) -> bytes:
    return archives.packed({"metadata.json": metadata})


def _other_device(random: Random) -> bytes:
    if random.random() < 0.5:
        return _device(texts.json_of(ABOUT, random))
    return archives.changed({"metadata.json": _json(ABOUT)}, random)


def _device_network() -> bytes:
    """An ONNX file of nothing but properties, by protobuf's wire format."""
    return b"".join(_field(14, _field(1, key.encode()) + _field(2, str(ABOUT[key]).encode())) for key in ABOUT)


def _field(number: int, content: bytes) -> bytes:
    assert len(content) < 2**7, "a length of one byte"
    return bytes([number << 3 | 2, len(content)]) + content


KINDS = {
    "pickle": Kind("x.pt", 14, lambda: _checkpoint(), _other_pickle, _door(_read_checkpoint)),
    "hostile pickle": Kind("x.pt", 20, _legacy, _hostile_pickle, _door(_read_checkpoint)),
    "archive": Kind("x.pt", 10, _checkpoint, _other_archive, _door(_read_checkpoint)),
    "attributes": Kind("x.pt", 5, _checkpoint, _attributes, _door(_read_checkpoint)),
    "learned": Kind("x.pt", 4, _learned, _other_learned, _door(_read_checkpoint)),
    "data": Kind(
        "x.yaml", 12, lambda: _yaml(_described()), lambda random: texts.yaml_of(_described(), random), _door(_read_data)
    ),
    "config": Kind(
        "x.yaml",
        6,
        lambda: _yaml({"model": _options()["model"], "no_eval": True, "no_latency": True}),
        _other_options,
        _door(_read_config),
        (DONE, USAGE, INPUT, MISSING),
    ),
    "sweep": Kind(
        "x.yaml",
        4,
        lambda: _yaml(_sweep()),
        lambda random: texts.yaml_of(_sweep(), random),
        _door(lambda path: read_sweep(path, path.with_name("out"))),
        (DONE, USAGE, INPUT, MISSING),
    ),
    "report": Kind("report.json", 2, GOLDEN.read_bytes, lambda random: texts.json_of(_report(), random), _read_report),
    "diff": Kind(
        "report.json",
        10,
        GOLDEN.read_bytes,
        lambda random: texts.json_of(_report(), random),
        lambda path: main(["diff", str(path), str(GOLDEN)]),
        (DONE, DIFFERENT, INPUT),
    ),
    "baseline": Kind(
        "report.json", 8, GOLDEN.read_bytes, lambda random: texts.json_of(_report(), random), _door(_read_baseline)
    ),
    "plan": Kind("plan.json", 12, _plan, lambda random: texts.json_of(json.loads(_plan()), random), _door(_read_plan)),
    "calibration": Kind(
        "calibration.npz", 4, _table, lambda random: _heads(_table(), random, "head"), _door(_read_table)
    ),
    "candidate": Kind(
        "candidate.npz",
        3,
        _candidate,
        lambda random: _heads(_candidate(), random, "head", "plan"),
        _door(lambda path: load_candidate(path, _program())),
    ),
    "samples": Kind(
        "samples.npz",
        3,
        _samples,
        lambda random: _heads(_samples(), random, "head"),
        _door(lambda path: load_samples(path).batches),
    ),
    "state": Kind(
        "train.state",
        3,
        _state,
        lambda random: _repacked(_state(), random),
        _door(lambda path: FileStore(path, {"model": "a"}).load()),
    ),
    "training": Kind(
        "train.json", 2, _training, lambda random: texts.json_of(json.loads(_training()), random), _door(load_training)
    ),
    "sensitivity": Kind(
        "sensitivity.json",
        2,
        _sensitivity,
        lambda random: texts.json_of(json.loads(_sensitivity()), random),
        _door(load_sensitivity),
    ),
    "manifest": Kind(
        "x.onnx.manifest.json",
        2,
        lambda: _json(_manifest()),
        lambda random: texts.json_of(_manifest(), random),
        _door(_read_manifest),
    ),
    "device": Kind("x.tflite", 3, lambda: _device(_json(ABOUT)), _other_device, _door(read_model_info)),
    "device network": Kind(
        "x.onnx", 3, _device_network, lambda random: mutated(_device_network(), random), _door(read_model_info)
    ),
    "network": Kind("x.onnx", 8, _network, _other_network, _door(read_source), (DONE, USAGE, INPUT)),
    "image": Kind(
        "x.png",
        6,
        lambda: _pictures()[0],
        lambda random: mutated(random.choice(_pictures()), random),
        _door(_read_picture),
    ),
    "labels": Kind("x.txt", 2, lambda: b"0 0.5 0.5 0.1 0.1\n", _lines, _door(_read_labels)),
    "list": Kind("x.txt", 2, lambda: str(demo_images("val", 1)[0]).encode(), _lines, _door(_read_data)),
}
