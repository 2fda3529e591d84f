"""Small checkpoints that would take all of a machine's time or memory: refused in one line, and at once."""

from __future__ import annotations

import lzma
import pickle
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing.pickles import text
from small_models import archive, saved, small_model
from test_hostile_inputs import refusal
from torch import nn

from qexport.checkpoints.allowed import layer_class
from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.errors import ConversionError, InputError
from qexport.programs.build import read_source


def _shared(levels: int) -> nn.Module:
    """Each layer holds the two before it, so that paths double with every second level."""
    last: nn.Module = nn.Identity()
    before: nn.Module = nn.Identity()
    for _ in range(levels):
        layer = nn.Module()
        layer._modules.update(a=last, b=before)
        last, before = layer, last
    return last


def _endless_layers() -> nn.Module:
    layer = nn.RNN(1, 1)
    layer.__dict__["_all_weights"], layer.__dict__["num_layers"] = [[0]], 10**12
    return layer


def _attention(**attributes: Any) -> nn.Module:
    """An attention of 2025, whose class computes `all_head_dim` when it is loaded."""
    from ultralytics.nn.modules.block import AAttn

    layer = AAttn(8, 1)
    del layer.all_head_dim
    layer.__dict__.update(attributes)
    return layer


def _buffer_of_many(count: int) -> nn.Module:
    """Layers that have one buffer of 16 bits, which each makes one of 32 bits of."""
    layer, shared = nn.Module(), torch.zeros(2**21, dtype=torch.float16)
    for number in range(count):
        layer._modules[f"part{number}"] = part = nn.Module()
        part._buffers["shared"] = shared
    return layer


LAYERS: dict[str, tuple[Any, str]] = {
    "a list times a number": (lambda: _attention(head_dim=10**11, num_heads=[0]), "its class computes with"),
    "a text times a number": (lambda: _attention(head_dim=10**11, num_heads="x"), "its class computes with"),
    "numbers of a million digits": (lambda: _attention(head_dim=1 << 3_000_000), "a number of 3,000,001 bits"),
    "a buffer of many layers": (lambda: _buffer_of_many(100), "of many times the bytes"),
    "10^12 paths to 60 layers": (lambda: _shared(60), "stands for more than 100,000"),
    "10^12 layers of a recurrent one": (_endless_layers, "torch.nn.modules.rnn.RNN"),
}


@pytest.mark.parametrize("sample", LAYERS)
def test_layers(sample: str, tmp_path: Path) -> None:
    make, words = LAYERS[sample]
    model = small_model("Classify")
    model.model[0]._modules["extra"] = make()
    assert words in refusal(load_checkpoint, saved(model, tmp_path / "x.pt"))


def _set(where: str, **attributes: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        layer = model.model[-1] if where == "head" else model.model[0].conv
        vars(layer).update(attributes)

    return change


def _activation(layer: Callable[[], nn.Module]) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        model.model[0]._modules["act"] = layer()

    return change


def _endless_pooling() -> nn.Module:
    from ultralytics.nn.modules.block import SPPF

    layer = SPPF(8, 8)
    layer.n = 10**12
    return layer


RUNS: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "bins": ("Detect", _set("head", reg_max=3 * 10**8), "1,200,000,000 bytes"),
    "padding": ("Classify", _set("conv", padding=(30_000, 30_000)), "more than networks do (aten.convolution"),
    "upsampling": ("Classify", _activation(lambda: nn.Upsample(scale_factor=1000.0)), "aten.upsample_nearest2d"),
    "operations": ("Classify", _activation(_endless_pooling), "more than 1,000 operations"),
    "stride": ("Detect", _set("head", stride=torch.tensor([0.5, 8, 16])), "0.5 where a whole number belongs"),
    "keypoints": ("Pose", _set("head", kpt_shape=[10**9, 3]), "cannot be captured"),
    "coefficients": ("Segment", _set("head", nm=10**9), "its head computes 8"),
}


@pytest.mark.parametrize("sample", RUNS)
def test_what_a_model_computes(sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.programs.bounded_run.MAX_OPERATIONS", 1000)
    head, change, words = RUNS[sample]
    model = small_model(head)
    change(model)
    path = saved(model, tmp_path / "x.pt")
    with pytest.raises((InputError, ConversionError)) as caught:
        read_source(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_what_a_class_computes_for_older_files(tmp_path: Path) -> None:
    model = small_model("Classify")
    model.model[0]._modules["extra"] = _attention()
    loaded = load_checkpoint(saved(model, tmp_path / "x.pt")).module.model[0].extra
    assert (loaded.all_head_dim, loaded.num_heads) == (8, 1)
    assert list(loaded._modules) == ["qkv", "proj", "pe"]


def test_names_that_repeat_one_text(tmp_path: Path) -> None:
    model = small_model()
    model.names = dict.fromkeys(range(4), "x" * 2**21)
    assert "names of 8,388,608 characters" in refusal(load_checkpoint, saved(model, tmp_path / "x.pt"))


def test_few_paths_to_a_shared_layer(tmp_path: Path) -> None:
    model = small_model("Classify")
    model.model[0]._modules["extra"] = _shared(10)
    assert load_checkpoint(saved(model, tmp_path / "x.pt")).task == "classify"


def test_no_layer_does_more_with_an_attribute_than_to_keep_it() -> None:
    from ultralytics.nn import modules

    names = [
        f"{each.__module__}.{each.__name__}"
        for each in [*vars(nn).values(), *vars(modules).values()]
        if isinstance(each, type)
    ]
    kinds = [kind for kind in map(layer_class, names) if kind]
    assert len(kinds) > 150
    assert {kind for kind in kinds if kind.__setattr__ is not nn.Module.__setattr__} == set()
    for name in ("torch.nn.modules.rnn.LSTM", "torchvision.models.feature_extraction.DualGraphModule"):
        assert layer_class(name) is None


def test_an_archive_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    """A name that says that it is of 2^30 bytes, packed to 0.2 MB."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**30
    content = header.tobuf(tarfile.GNU_FORMAT) + bytes(2**20)
    (tmp_path / "x.pt").write_bytes(content)
    assert "is a tar archive" in refusal(load_checkpoint, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes(lzma.compress(content, lzma.FORMAT_ALONE))
    assert "is not a checkpoint" in refusal(load_checkpoint, tmp_path / "x.pt")


def packed(path: Path, content: bytes) -> Path:
    """A file as `archive` makes it, packed again: of a few kilobytes where its content repeats."""
    plain = archive(path.with_suffix(".plain"), content)
    with zipfile.ZipFile(plain) as stored, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name in stored.namelist():
            made.writestr(name, stored.read(name))
    return path


def colliding(count: int) -> list[bytes]:
    """Operations for numbers that all have the hash 0, as Python's is the remainder by 2^61 - 1."""
    numbers = [pickle.encode_long((2**61 - 1) * number) for number in range(1, count + 1)]
    return [b"\x8a" + bytes([len(number)]) + number for number in numbers]


def _pairs(count: int) -> bytes:
    """Pairs for an ordered dictionary, which are hashed only where it is made."""
    return b"(" + b"".join(each + b"N\x86" for each in colliding(count)) + b"l"


ORDERED = b"ccollections\nOrderedDict\n"
PICKLES: dict[str, tuple[bytes, str]] = {
    "lists": (b"(" + b"]" * 11_000 + b"l", "more than 10,000 operations"),
    "objects": (b"(" + ORDERED + b"q\x01" + b")Rh\x01" * 4_000 + b")Rl", "more than 10,000 operations"),
    "copies of one tuple": (b"(" + b"N" * 4_000 + b"tq\x010(" + (ORDERED + b"h\x01R") * 3 + b"l", "10,000 operations"),
    "copies of one dictionary": (
        b"}("
        + b"".join(text(f"x{each}") + b"N" for each in range(2_000))
        + b"uq\x010("
        + (ORDERED + b")h\x01\x92") * 3
        + b"l",
        "10,000 operations",
    ),
    "dictionaries made of one list": (
        b"]"
        + b"("
        + b"".join(text("x") + b"N\x86" for each in range(2_000))
        + b"eq\x010("
        + (ORDERED + b"h\x01\x85R") * 7
        + b"l",
        "10,000 values that are copied",
    ),
    "object of a dictionary": (b"(" + ORDERED + b"}R" + b"l", "makes something of a dict"),
    "object of a text": (ORDERED + text("x" * 10_000) + b"R", "makes something of a str"),
    "dictionary of colliding numbers": (
        b"}(" + b"".join(each + b"N" for each in colliding(2_001)) + b"u",
        "2,000 keys",
    ),
    "older dictionary of such": (b"(" + b"".join(each + b"N" for each in colliding(2_001)) + b"d", "2,000 keys"),
    "one after another": (b"}" + b"".join(each + b"Ns" for each in colliding(2_001)), "2,000 keys"),
    "frozen set of such": (b"(" + b"".join(colliding(2_001)) + b"\x91", "2,000 keys"),
    "set of such": (b"\x8f(" + b"".join(colliding(2_001)) + b"\x90", "2,000 keys"),
    "tuples of such": (b"}" + b"".join(each + b"\x85Ns" for each in colliding(2_001)), "2,000 keys"),
    "ordered dictionary of such": (ORDERED + _pairs(2_001) + b"\x85R", "2,000 keys"),
    "long name": (b"c" + b"a" * 2_000 + b"\nb\n", "wants to load aaa"),
}


@pytest.mark.parametrize("sample", PICKLES)
def test_pickles(sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.checkpoints.unpickle.MAX_STEPS", 10_000)
    monkeypatch.setattr("qexport.checkpoints.rebuild.MAX_STEPS", 10_000)
    content, words = PICKLES[sample]
    path = packed(tmp_path / "x.pt", b"\x80\x04}" + text("model") + content + b"s.")
    assert words in refusal(load_checkpoint, path)


def test_places_of_a_long_name_are_short(tmp_path: Path) -> None:
    """300 dictionaries in each other under one key of a million characters."""
    nested = b"}h\x01" * 300 + b"K\x01" + b"s" * 300
    content = (
        b"\x80\x02}" + text("model") + b"Ns" + text("train_args") + text("k" * 1_000_000) + b"q\x010" + nested + b"s."
    )
    path = packed(tmp_path / "x.pt", content)
    tracemalloc.start()
    try:
        assert "no Ultralytics model" in refusal(load_checkpoint, path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
