"""What a checkpoint is, whatever it is called and whatever it leaves out; and what is said of one that is none."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import sys
import tarfile
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import HEADS, Call, saved, small_model
from torch import nn

from qexport.checkpoints import source
from qexport.checkpoints.checkpoint import QUANTISED, load_checkpoint
from qexport.checkpoints.source import read_source
from qexport.checkpoints.torchvision_repair import repair
from qexport.errors import InputError
from qexport.job import ExportJob

NAMES = {0: "a", 1: "b", 2: "c", 3: "d"}


def flat(output: Any) -> list[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        return [output]
    parts = output.values() if isinstance(output, dict) else output or ()
    return [tensor for part in parts for tensor in flat(part)]


def same(one: Any, other: Any, channels: int = 3) -> bool:
    """Whether two models compute the same, bit by bit."""
    images = torch.rand(1, channels, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        outputs = [flat(model.float().eval()(images)) for model in (one, other)]
    return len(outputs[0]) == len(outputs[1]) and all(map(torch.equal, *outputs))


@pytest.mark.parametrize(
    "name",
    [
        "yolov5s.pt",
        "yolov3.pt",
        "yolov3-tiny.pt",
        "yolov5n6.pt",
        "it's.pt",
        '"quoted".pt',
        " blank at both ends .pt",
        "100%20#1?.pt",
        "größe-模型.pt",
        "https:/host/yolo26n.pt",
        "yolo26n.pt",
        "weights",
    ],
)
def test_the_file_that_is_hashed_is_the_file_that_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside each lies another model under every name that Ultralytics would look for instead."""
    from ultralytics.utils import downloads

    monkeypatch.setattr(downloads, "attempt_download_asset", lambda *_, **__: pytest.fail("looked for another file"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a 'b' \"c\"" / Path(name).parent
    folder.mkdir(parents=True)
    plain = Path(name).name
    decoys = {plain.replace(".pt", "u.pt"), plain.strip(), plain.replace("'", ""), plain.replace('"', "")} - {plain}
    for decoy in decoys:
        saved(small_model("OBB"), folder / decoy)
    path = saved(small_model("Segment"), folder / plain)
    read = load_checkpoint(path)
    assert read.task == "segment"
    assert read.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert same(read.module, small_model("Segment"))


@pytest.mark.parametrize(
    ("head", "form"),
    [
        *((head, "archive") for head in HEADS),
        *(("v10Detect", form) for form in ("legacy", "half", "fused", "model alone")),
        ("Segment", "fused"),
        ("RTDETRDecoder", "fused"),
    ],
)
def test_what_was_saved_is_what_is_loaded(head: str, form: str, tmp_path: Path) -> None:
    model, path = small_model(head), tmp_path / "model.pt"
    if form == "half":
        model = model.half()
    if form == "fused":
        model.fuse(verbose=False)
    content = model if form == "model alone" else {"model": model}
    torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    loaded = load_checkpoint(path)
    assert same(loaded.module, model)
    assert loaded.task == {"OBB": "obb", "Pose": "pose", "Segment": "segment", "Classify": "classify"}.get(
        head, "detect"
    )


@pytest.mark.parametrize(
    "activation",
    ["nn.ReLU()", "nn.LeakyReLU(0.1)", "nn.Hardswish()", "nn.Mish()", "torch.nn.GELU()", "nn.ReLU6(inplace=True)"],
)
def test_activations(activation: str, tmp_path: Path) -> None:
    model = small_model(activation=activation)
    loaded = load_checkpoint(saved(model, tmp_path / "model.pt")).module
    assert type(loaded.model[0].act).__name__ in activation
    assert same(loaded, model)


def test_a_pruned_model_comes_out_as_it_went_in(tmp_path: Path) -> None:
    """Its weights fit no architecture: a third of the channels between two layers is gone."""
    model = small_model()
    first, second = model.model[0], model.model[1]
    kept = torch.tensor([0, 2, 3, 5, 7])
    for module, name, axis in ((first.conv, "weight", 0), (second.conv, "weight", 1)):
        setattr(module, name, nn.Parameter(getattr(module, name).index_select(axis, kept)))
    first.conv.out_channels = second.conv.in_channels = first.bn.num_features = len(kept)
    for name in ("weight", "bias"):
        setattr(first.bn, name, nn.Parameter(getattr(first.bn, name)[kept]))
    for name in ("running_mean", "running_var"):
        setattr(first.bn, name, getattr(first.bn, name)[kept])
    loaded = load_checkpoint(saved(model, tmp_path / "pruned.pt")).module
    assert loaded.model[0].conv.weight.shape == (5, 3, 3, 3)
    assert same(loaded, model)


def without(*names: str) -> Callable[[Any], None]:
    def spoil(model: Any) -> None:
        for name in names:
            vars(model).pop(name, None)

    return spoil


def _older_channels(model: Any) -> None:
    model.yaml["ch"] = model.yaml.pop("channels")


@pytest.mark.parametrize(
    ("spoil", "channels"),
    [
        (without("stride"), 3),
        (without("names"), 3),
        (without("task", "args"), 3),
        (without("yaml"), 3),
        (without("yaml"), 4),
        (_older_channels, 4),
        (without("stride", "names", "task", "args", "yaml", "nc"), 3),
    ],
    ids=["stride", "names", "task", "yaml", "yaml of four channels", "ch", "all"],
)
def test_what_is_left_out_is_found(spoil: Callable[[Any], None], channels: int, tmp_path: Path) -> None:
    model = small_model("Segment", channels)
    spoil(model)
    torch.save({"model": model}, tmp_path / "sparse.pt")
    found = load_checkpoint(tmp_path / "sparse.pt")
    assert (found.task, found.stride, found.channels, found.imgsz) == ("segment", 32, channels, 640)
    assert found.names == {0: "0", 1: "1", 2: "2", 3: "3"}
    assert found.module.yaml["channels"] == channels
    assert float(found.module.stride.max()) == 32


@pytest.mark.parametrize(
    ("head", "said", "task"),
    [("Segment", "detect", "segment"), ("Pose", None, "pose"), ("OBB", "", "obb"), ("Classify", "detect", "classify")],
)
def test_the_head_decides_the_task(head: str, said: str | None, task: str, tmp_path: Path) -> None:
    model = small_model(head)
    model.task = said
    path = saved(model, tmp_path / "model.pt", train_args={"task": "detect"})
    assert load_checkpoint(path).task == task


@pytest.mark.parametrize("names", [NAMES, list(NAMES.values()), {str(key): name for key, name in NAMES.items()}])
def test_names_of_every_form(names: Any, tmp_path: Path) -> None:
    model = small_model()
    model.names = names
    assert load_checkpoint(saved(model, tmp_path / "model.pt")).names == NAMES


@pytest.mark.parametrize("names", [["a", "b"], {1: "b", 0: "a", 7: "h"}, {}])
def test_every_class_of_the_head_has_a_name(names: Any, tmp_path: Path) -> None:
    """And no other: Ultralytics looks up the name of whatever an artifact finds."""
    model = small_model()
    model.names = names
    found = load_checkpoint(saved(model, tmp_path / "model.pt")).names
    assert found == {0: "a", 1: "b", 2: "2", 3: "3"} if names else {index: str(index) for index in range(4)}


@pytest.mark.parametrize(("name", "value"), [("stride", [8, 16, 32]), ("stride", 32), ("yaml", "yolov8n.yaml")])
def test_what_a_model_says_in_another_form_is_understood(name: str, value: Any, tmp_path: Path) -> None:
    model = small_model()
    setattr(model, name, value)
    found = load_checkpoint(saved(model, tmp_path / "model.pt"))
    assert (found.stride, found.channels, float(found.module.stride.max())) == (32, 3, 32.0)


def test_a_description_that_makes_no_sense_is_one_line(tmp_path: Path) -> None:
    model = small_model()
    model.names = {"first": "a"}
    with pytest.raises(InputError, match=r"model\.pt holds a model that cannot be described .*first"):
        load_checkpoint(saved(model, tmp_path / "model.pt"))


def test_averaged_weights_go_first(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    torch.save({"model": small_model("OBB"), "ema": small_model("Pose")}, path)
    assert load_checkpoint(path).task == "pose"


@pytest.mark.parametrize("state", [{"ranges": {}, "modelopt": [1]}, {"modelopt": Call(print, "x")}])
def test_what_modelopt_learned_is_said_to_be_left_out(state: Any, tmp_path: Path) -> None:
    assert load_checkpoint(saved(small_model(), tmp_path / "qat.pt", modelopt=state)).notes == (QUANTISED,)
    assert load_checkpoint(saved(small_model(), tmp_path / "plain.pt", modelopt=None)).notes == ()


def test_what_the_file_holds_and_is_not_used_is_a_warning_of_the_report(tmp_path: Path) -> None:
    from qexport.data.inputs import RunImages
    from qexport.job import ExportJob
    from qexport.reporting.warnings import run_warnings

    checkpoint = load_checkpoint(saved(small_model(), tmp_path / "qat.pt", modelopt={"ranges": {}}))
    assert run_warnings(ExportJob(model="qat.pt"), checkpoint, None, RunImages()) == (QUANTISED,)


def test_what_a_training_leaves_behind_is_no_reason_to_refuse(tmp_path: Path) -> None:
    """A checkpoint of a training that goes on: losses, optimiser, transforms, NumPy's numbers, paths."""
    repair()
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize
    from ultralytics.utils import IterableSimpleNamespace

    model = small_model("Classify")
    model.transforms = Compose([Resize(8, interpolation=InterpolationMode.BILINEAR), CenterCrop(8)])
    detector = small_model()
    detector.args = IterableSimpleNamespace(box=7.5, cls=0.5, dfl=1.5, imgsz=96, epochs=1)
    detector.criterion = detector.init_criterion()
    optimizer = torch.optim.AdamW(detector.parameters()).state_dict()
    further = {"optimizer": optimizer, "best_fitness": np.float64(0.5), "train_args": {"save_dir": Path("a/b")}}
    assert load_checkpoint(saved(model, tmp_path / "cls.pt")).task == "classify"
    assert load_checkpoint(saved(detector, tmp_path / "last.pt", **further)).imgsz == 96


BESIDE: dict[str, Callable[[], Any]] = {
    "date": lambda: datetime.datetime(2026, 1, 2),
    "arrays": lambda: {"fitness": np.zeros(3), "confusion": np.zeros((2, 2), np.int64)},
    "counts": lambda: [Counter("aab"), defaultdict(list, a=[1])],
    "optimizer": lambda: torch.optim.SGD(small_model().parameters(), 0.1, momentum=0.9),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_people_keep_beside_a_model_is_no_reason_to_refuse(kind: str, tmp_path: Path) -> None:
    path = saved(small_model(), tmp_path / "last.pt", further=BESIDE[kind]())
    assert load_checkpoint(path).imgsz == 64
    model = small_model()
    model.stride = BESIDE[kind]()
    with pytest.raises(InputError, match=r"model\.stride"):
        load_checkpoint(saved(model, tmp_path / "inside.pt"))


@pytest.mark.parametrize("kind", [SimpleNamespace, argparse.Namespace])
def test_arguments_of_every_form(kind: Any, tmp_path: Path) -> None:
    path = saved(small_model(), tmp_path / "model.pt", train_args=kind(imgsz=96, single_cls=True))
    for trust in (False, True):
        found = load_checkpoint(path, trust)
        assert (found.imgsz, found.single_class) == (96, True)


@pytest.mark.parametrize("trust", [False, True])
def test_a_wrapped_model_is_said_to_be_one(trust: bool, tmp_path: Path) -> None:
    from ultralytics.models.yolo.model import YOLO

    whole = YOLO.__new__(YOLO)
    nn.Module.__init__(whole)
    whole.model = small_model()
    for value, words in {
        nn.DataParallel(small_model()): "several GPUs: .*m.module",
        whole: "whole YOLO object: .*save",
    }.items():
        path = tmp_path / "wrapped.pt"
        torch.save({"model": value}, path)
        with pytest.raises(InputError, match=words):
            load_checkpoint(path, trust)


def test_a_compiled_model_is_said_to_be_one(tmp_path: Path) -> None:
    stream = b"\x80\x02}X\x05\x00\x00\x00modelctorch._dynamo.eval_frame\nOptimizedModule\n)\x81s."
    with pytest.raises(InputError, match=r"compiled model: .*_orig_mod"):
        load_checkpoint(archive(tmp_path / "compiled.pt", stream))


@pytest.mark.parametrize("content", [lambda state: state, lambda state: {"model": state}])
def test_weights_alone_are_said_to_be_that(content: Callable[[Any], Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content(small_model().state_dict()), path)
    with pytest.raises(InputError, match="no Ultralytics model, only weights"):
        load_checkpoint(path)


def vanished(module: str, name: str, path: Path, monkeypatch: pytest.MonkeyPatch, keep_module: bool = False) -> Path:
    """A checkpoint of a class that is gone afterwards, with its module or without."""
    made = ModuleType(module)
    kind = type(name, (nn.Module,), {"__module__": module})
    setattr(made, name, kind)
    parts = module.split(".")
    parents = [".".join(parts[:count]) for count in range(1, len(parts))]
    with monkeypatch.context() as patch:
        for parent in parents:
            patch.setitem(sys.modules, parent, ModuleType(parent))
        patch.setitem(sys.modules, module, made)
        torch.save({"model": kind()}, path)
    if keep_module:
        monkeypatch.setitem(sys.modules, module, ModuleType(module))
    return path


@pytest.mark.parametrize("trust", [False, True])
def test_checkpoints_of_other_projects_are_named(trust: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, project in {
        "models.yolo": "YOLOv5",
        "yolov6.models.yolo": "YOLOv6",
        "yolox.models": "YOLOX",
        "super_gradients.training": "SuperGradients",
    }.items():
        path = vanished(module, "Net", tmp_path / "other.pt", monkeypatch)
        with pytest.raises(InputError, match=rf"other\.pt is a checkpoint of .*{project}.*: .*{module}") as caught:
            load_checkpoint(path, trust)
        assert "export it there to ONNX" in caught.value.remedy


def test_another_project_is_named_where_its_classes_are_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ModuleType("models.yolo")
    vars(made)["Model"] = type("Model", (nn.Module,), {"__module__": "models.yolo"})
    monkeypatch.setitem(sys.modules, "models", ModuleType("models"))
    monkeypatch.setitem(sys.modules, "models.yolo", made)
    torch.save({"model": vars(made)["Model"]()}, tmp_path / "best.pt")
    with pytest.raises(InputError, match="YOLOv5 repository"):
        load_checkpoint(tmp_path / "best.pt", trust=True)


def test_a_pickle_of_dill_is_named(tmp_path: Path) -> None:
    stream = b"\x80\x02}X\x05\x00\x00\x00modelcdill._dill\n_load_type\nX\x04\x00\x00\x00Type\x85Rs."
    with pytest.raises(InputError, match=r"dill\.pt was pickled with dill.*dill\._dill\._load_type") as caught:
        load_checkpoint(archive(tmp_path / "dill.pt", stream))
    assert "torch.save" in caught.value.remedy


@pytest.mark.parametrize(
    ("module", "keep", "words"),
    [
        ("acme_layers.blocks", False, ("acme_layers", "PYTHONPATH")),
        ("acme_blocks", True, ("acme_blocks.Block", "PYTHONPATH")),
        ("__main__", True, ("__main__.Block", "class of the script that saved it", "module of its own")),
    ],
)
def test_a_trusted_class_that_is_not_here(
    module: str, keep: bool, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vanished(module, "Block", tmp_path / "own.pt", monkeypatch, keep_module=keep)
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, trust=True)
    for word in (*words, "own.pt"):
        assert word in str(caught.value)
    with pytest.raises(InputError, match=rf"wants to load {module}\.Block, which is not on the allow-list"):
        load_checkpoint(path)


def archive(path: Path, content: bytes) -> Path:
    """A file as torch.save writes one, around another pickle."""
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(path, "w") as made:
        for item in plain.infolist():
            made.writestr(item.filename, content if item.filename.endswith("data.pkl") else plain.read(item))
    return path


def _tar() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        made.addfile(tarfile.TarInfo("storages"))
    return stream.getvalue()


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("word/document.xml", "")
    return stream.getvalue()


def _good(legacy: bool = False) -> bytes:
    stream = io.BytesIO()
    torch.save({"model": small_model()}, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def _flipped() -> bytes:
    data = bytearray(_good())
    place = data.index(b"ultralytics.nn.tasks")
    data[place : place + 20] = b"\xff" * 20
    return bytes(data)


FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "Git LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
    "web page": (lambda: b"\n<!DOCTYPE html><html>404</html>", "web page"),
    "error of a store": (lambda: b"<?xml version='1.0'?><Error/>", "web page"),
    "image": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(64), "is an image"),
    "safetensors": (lambda: b'\x50\x00\x00\x00\x00\x00\x00\x00{"__metadata__":{}}', "safetensors"),
    "TFLite": (lambda: b"\x1c\x00\x00\x00TFL3" + bytes(64), "TFLite"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(64), "compressed archive"),
    "tar": (_tar, "tar archive"),
    "zip of something else": (_zip, "without a checkpoint in it.*word/document.xml"),
    "text": (lambda: b"hello", "is not a checkpoint.*begins with b'hello'"),
    "archive cut short": (lambda: _good()[:-5000], "is cut short"),
    "first bytes": (lambda: _good()[:60], "is cut short"),
    "older file cut short in its weights": (lambda: _good(legacy=True)[:-4000], "is cut short"),
    "older file cut short in its pickle": (lambda: _good(legacy=True)[:4000], "is cut short"),
    "bytes overwritten": (_flipped, "is damaged"),
    "weights alone": (lambda: _weights({"model": small_model().state_dict()}), "no Ultralytics model, only weights"),
    "a layer": (lambda: _weights({"model": nn.Linear(1, 1)}), "no Ultralytics model, but a Linear"),
    "nothing": (lambda: _weights({"epoch": 3}), "no Ultralytics model:"),
}


def _weights(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("trust", [False, True])
def test_other_files_are_said_to_be_what_they_are(kind: str, trust: bool, tmp_path: Path) -> None:
    make, words = FILES[kind]
    path = tmp_path / "file.pt"
    path.write_bytes(make())
    with pytest.raises(InputError, match=rf"file\.pt .*{words}") as caught:
        load_checkpoint(path, trust)
    assert ("cut short" in str(caught.value)) == ("cut short" in words)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)


def test_a_heads_own_max_det_is_obeyed(tmp_path: Path) -> None:
    from qexport.programs.heads import split_head

    model = small_model("v10Detect")
    images = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    for said, rows in ((1000, 1000), (7, 7), (5000, 32 * 32 + 16 * 16 + 8 * 8)):
        model.model[-1].max_det = said
        loaded = load_checkpoint(saved(model, tmp_path / "model.pt"))
        program = split_head(loaded.module, "end2end", (256, 256))
        assert program(images).shape == (1, rows, 6)


@pytest.mark.parametrize("said", [0, -1, True, 2.5, "many"])
def test_a_max_det_that_is_none_is_refused(said: Any, tmp_path: Path) -> None:
    from qexport.programs.heads import split_head

    model = small_model("v10Detect")
    model.model[-1].max_det = said
    loaded = load_checkpoint(saved(model, tmp_path / "model.pt"))
    with pytest.raises(InputError, match="max_det"):
        split_head(loaded.module, "end2end", (64, 64))


class AskedError(Exception):
    """What Ultralytics would have been asked to score."""

    def __init__(self, artifact: str, options: dict[str, Any]) -> None:
        super().__init__(artifact)
        self.artifact, self.options = artifact, options


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Listening:
        def __init__(self, artifact: str, task: str) -> None:
            self.artifact = artifact

        def add_callback(self, *_: Any) -> None:
            """Nothing to call."""

        def val(self, **options: Any) -> None:
            raise AskedError(self.artifact, options)

    from ultralytics import models

    monkeypatch.setattr(models, "YOLO", Listening, raising=False)


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("yolov5s.onnx", "artifact.onnx"),
        (" it's 100% #1 yolov3.tflite", "artifact.tflite"),
        ("größe.int8.engine", "artifact.engine"),
        (" yolov5u.yaml_openvino_model", "artifact_openvino_model"),
    ],
)
def test_the_validator_is_told_nothing_of_an_artifacts_name(name: str, plain: str, tmp_path: Path) -> None:
    from qexport.data.evaluation_set import EvaluationSet
    from qexport.measurement.accuracy import evaluate

    (tmp_path / "scratch").mkdir()
    artifact = tmp_path / "a 'yolov5' folder" / name
    inside = artifact / "model.xml" if name.endswith("_model") else artifact
    inside.parent.mkdir(parents=True)
    inside.write_bytes(b"weights")
    with pytest.raises(AskedError) as caught:
        evaluate(artifact, "detect", EvaluationSet(tmp_path / "data.yaml", {}), tmp_path / "scratch")
    told = Path(caught.value.artifact)
    assert told.name == plain
    assert "folder" not in caught.value.artifact
    assert (told / "model.xml" if told.is_dir() else told).read_bytes() == b"weights"


@pytest.mark.usefixtures("asked")
@pytest.mark.parametrize("single", [True, False])
def test_a_single_cls_model_is_scored_as_it_was_trained(single: bool, tmp_path: Path) -> None:
    """On its own YAML of three classes, all of whose labels count as the one that it knows."""
    from qexport.data.data_check import as_trained, mismatch
    from qexport.data.dataset import Dataset
    from qexport.data.evaluation_set import make_evaluation_set
    from qexport.data.inputs import RunImages
    from qexport.measurement.accuracy import evaluate

    model = small_model(nc=1)
    model.names = {0: "item"}
    path = saved(model, tmp_path / "model.pt", train_args={"single_cls": single, "imgsz": 64})
    checkpoint = load_checkpoint(path)
    (tmp_path / "data.yaml").write_text("")
    data = Dataset(tmp_path / "data.yaml", tmp_path, {}, {0: "a", 1: "b", 2: "c"}, 3, None)
    assert ("3 classes" in mismatch(checkpoint, data)) != single
    images = as_trained(checkpoint, RunImages(evaluation_data=data))
    assert images.evaluation_data is not None
    assert images.evaluation_data.names == ({0: "item"} if single else data.names)
    linked = make_evaluation_set(images.evaluation_data, (), tmp_path / "linked")
    with pytest.raises(AskedError) as caught:
        evaluate(path, "detect", linked, tmp_path)
    assert caught.value.options["single_cls"] is single


def _weight_of_another_shape(model: Any) -> None:
    model.model[0].conv.weight = nn.Parameter(torch.zeros(1, 1, 1, 1))


def _stride_that_is_text(model: Any) -> None:
    model.model[0].conv.stride = "x"


def _source_that_is_not_there(model: Any) -> None:
    model.model[1].f = 7


@pytest.mark.parametrize("spoil", [_weight_of_another_shape, _stride_that_is_text, _source_that_is_not_there])
def test_a_model_that_cannot_be_run_is_said_to_be_one(spoil: Callable[[Any], None], tmp_path: Path) -> None:
    model = small_model()
    spoil(model)
    path = saved(model, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt holds a model that Ultralytics [\d.]+ cannot run \(\w+Error: "):
        read_source(ExportJob(model=str(path), imgsz=(64, 64)), path, ())


def test_what_fails_in_a_model_that_runs_is_not_blamed_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("ours")

    path = saved(small_model(), tmp_path / "model.pt")
    monkeypatch.setattr(source, "capture_program", fail)
    with pytest.raises(RuntimeError, match="ours"):
        read_source(ExportJob(model=str(path), imgsz=(64, 64)), path, ())
