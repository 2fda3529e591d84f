"""What a file is that is no checkpoint, and whose it is: one line that says so."""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from small_models import archive, small_model
from torch import nn

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.errors import InputError


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
