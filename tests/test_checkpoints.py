"""What a checkpoint is, whatever it is called and whatever it leaves out; and what is said of one that is none."""

from __future__ import annotations

import argparse
import datetime
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from small_models import HEADS, Call, archive, saved, small_model
from torch import nn

from qexport.checkpoints.checkpoint import QUANTISED, load_checkpoint
from qexport.compat.torchvision import repair
from qexport.errors import InputError

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
        head.removesuffix("26"), "detect"
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
    from qexport.data.selection import RunImages
    from qexport.reporting.options import RunOptions
    from qexport.reporting.report import Warning
    from qexport.reporting.warnings import run_warnings

    checkpoint = load_checkpoint(saved(small_model(), tmp_path / "qat.pt", modelopt={"ranges": {}}))
    assert run_warnings(RunOptions(), checkpoint, None, RunImages()) == (Warning("run", QUANTISED),)


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
    extras = {"optimizer": optimizer, "best_fitness": np.float64(0.5), "train_args": {"save_dir": Path("a/b")}}
    assert load_checkpoint(saved(model, tmp_path / "cls.pt")).task == "classify"
    assert load_checkpoint(saved(detector, tmp_path / "last.pt", **extras)).imgsz == 96


BESIDE: dict[str, Callable[[], Any]] = {
    "date": lambda: datetime.datetime(2026, 1, 2),
    "arrays": lambda: {"fitness": np.zeros(3), "confusion": np.zeros((2, 2), np.int64)},
    "counts": lambda: [Counter("aab"), defaultdict(list, a=[1])],
    "optimizer": lambda: torch.optim.SGD(small_model().parameters(), 0.1, momentum=0.9),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_people_keep_beside_a_model_is_no_reason_to_refuse(kind: str, tmp_path: Path) -> None:
    path = saved(small_model(), tmp_path / "last.pt", extras=BESIDE[kind]())
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


@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_weights_alone_are_said_to_be_that(key: str, tmp_path: Path) -> None:
    path, state = tmp_path / "weights.pt", small_model().state_dict()
    torch.save({key: state, "epoch": 3} if key else state, path)
    with pytest.raises(InputError, match="no Ultralytics model, only weights"):
        load_checkpoint(path)
