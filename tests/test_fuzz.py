"""A sample of `make fuzz`, and by name what it has found: each is refused in one line, or read as what it is."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fuzzing.pickles import text
from layer_graphs import Graph
from small_models import archive
from test_hostile_inputs import READERS, network, refusal

from qexport.backends.artifact import manifest_path
from qexport.backends.tflite_micro.c_array import KEYWORDS, identifier
from qexport.calibration.calibration_table import CalibrationTable, load_table, save_table
from qexport.calibration.statistics import BINS, Statistics
from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.checkpoints.unpickle import unpickled
from qexport.data.dataset import image_list, load_dataset
from qexport.detections.layout import HeadLayout
from qexport.inspection.manifest import read_manifest
from qexport.inspection.run_folder import manifests_in
from qexport.inspection.samples import SampleInput, Samples, load_samples, save_samples
from qexport.programs.onnx.file import read_file

FUZZ = Path(__file__).with_name("fuzz.py")
CHEAP = (
    "hostile pickle,archive,data,config,sweep,baseline,samples,state,training,sensitivity,manifest,image,labels,list"
)
"""Kinds that nothing has to be captured, rendered or trained for."""


def test_a_sample(tmp_path: Path) -> None:
    """Cases of most kinds, in a process of their own: one that dies takes no other test with it."""
    command = [sys.executable, str(FUZZ), "--cases", "120", "--seed", "7", "--kept", str(tmp_path), "--kinds", CHEAP]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = re.search(r"(\d+) cases of seed 7 in \d+ s, 0 with faults", done.stdout)
    assert counted
    assert int(counted[1]) >= 100
    assert not list(tmp_path.iterdir())


def nested(levels: int) -> bytes:
    """A tuple that holds one tuple twice, which holds another one twice, and so on."""
    return b"K\x01" + b"2\x86" * levels


PICKLES: dict[str, tuple[bytes, str]] = {
    "key that takes 2^60 steps to hash": (b"}" + nested(60) + b"K\x01s", "stands for more than 5,000 values"),
    "set of such": (b"(" + nested(60) + b"\x91", "stands for more than 5,000 values"),
    "tuples 100,000 deep": (b"}" + b"N" + b"\x85" * 100_000 + b"K\x01s", "stands for more than 5,000 values"),
    "storage under such a key": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n)" + text("cpu") + b"K\x01tQ",
        "in another way than torch.save does",
    ),
    "storage of a negative size": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"J\xff\xff\xff\xfftQ",
        "more bytes than the file",
    ),
    "storage of 2^40 bytes": (
        b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"\x8a\x06\0\0\0\0\0\x01tQ",
        "more bytes than the file",
    ),
    "place 2^31 of the memory": (b"K\x01r\xff\xff\xff\x7f0ccollections\nx\n)R", "collections.x"),
    "extension of the process": (b"\x82\x01)R", "damaged"),
    "buffer of 2^40 bytes": (b"\x96\0\0\0\0\0\x01\0\0", "cut short"),
    "call of a text": (text("x") + b")R", "it calls a str"),
    "object of a number": (b"K\x01)\x81", "it makes a int"),
    "state of a list": (b"]}b", "it changes a list"),
}


@pytest.mark.parametrize("sample", PICKLES)
def test_pickles_that_no_save_writes(sample: str, tmp_path: Path) -> None:
    content, words = PICKLES[sample]
    path = archive(tmp_path / "x.pt", b"\x80\x02}" + text("model") + content + b"s.")
    assert words in refusal(load_checkpoint, path)


def test_an_archive_is_read_as_it_was_bounded(tmp_path: Path) -> None:
    """Of two directories in one file Python's reader takes the last; torch's could be shown the other one."""
    harmless, hidden = io.BytesIO(), io.BytesIO()
    for stream, content in ((harmless, b"\x80\x02K\x01."), (hidden, b"\x80\x02K\x02.")):
        with zipfile.ZipFile(stream, "w") as made:
            made.writestr("x/data.pkl", content)
            made.writestr("x/version", b"3\n")
    assert unpickled(hidden.getvalue() + harmless.getvalue()) == 1
    assert unpickled(harmless.getvalue() + hidden.getvalue()) == 2


@pytest.mark.parametrize("word", sorted({"class", "int", "main", "alignas", "_x", "", "7", "A-b", "x"}))
def test_names_that_c_plus_plus_keeps_for_itself(word: str, tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("needs a C++ compiler")
    name = identifier(word)
    source = tmp_path / "x.cc"
    source.write_text(f"extern const unsigned char {name}[1]; const unsigned char {name}[1] = {{0}};\n")
    subprocess.run([compiler, "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", source], check=True)
    assert (name == re.sub(r"\W", "_", word)) == (word in ("A-b", "x"))
    assert name not in KEYWORDS


@pytest.mark.parametrize("path", ["/", "/.."])
def test_a_split_of_the_whole_system_is_not_searched(path: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(f"nc: 1\ntrain: [{path}]\n")
    assert "every file there is" in refusal(lambda file: image_list(load_dataset(file), "train"), tmp_path / "x.yaml")


@pytest.mark.parametrize("name", ["x.yaml", "config.yaml"])
def test_a_tag_of_any_length_makes_a_short_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a: !" + "b" * 100_000 + " x")
    assert "constructor" in refusal(READERS[name][0], tmp_path / name, READERS[name][1])


STATISTICS: dict[str, dict[str, Any]] = {
    "histogram up to 0, which widening would never end": {"limit": 0.0},
    "histogram up to 3": {"limit": 3.0},
    "endless maximum": {"maximum": float("inf")},
    "extremes the wrong way round": {"minimum": 9.0},
    "negative number of images": {"images": -1},
    "negative count": {"counts": np.full(BINS, -1, np.int64)},
    "few bins": {"counts": np.ones(8, np.int64)},
    "counts of floats": {"counts": np.ones(BINS, np.float64)},
    "importance that is no number": {"importance": np.full(BINS, np.nan)},
}


@pytest.mark.parametrize("sample", STATISTICS)
def test_statistics_that_no_observer_leaves(sample: str, tmp_path: Path) -> None:
    counted = Statistics(-1.0, 2.0, 4.0, np.ones(BINS, np.int64), -1.0, 2.0, 1)
    table = CalibrationTable("0", "letterbox 8x8", "0", (), (), {"a": replace(counted, **STATISTICS[sample])})
    save_table(table, tmp_path / "x.npz")
    assert "is not a calibration table" in refusal(load_table, tmp_path / "x.npz")


MANIFESTS: dict[str, tuple[dict[str, Any], str]] = {
    "plan of a list": ({"plan": ["plan.json"]}, "(plan)"),
    "weights of a text": ({"weights": "a.pt"}, "(weights)"),
    "names of numbers": ({"plan": {"merged": {"a": 1}}}, "(plan.merged.a)"),
    "samples of a list": ({"samples": []}, "(samples)"),
    "another schema": ({"schema": [1]}, "schema [1]"),
}


@pytest.mark.parametrize("sample", MANIFESTS)
def test_manifests_of_other_types(sample: str, tmp_path: Path) -> None:
    entries, words = MANIFESTS[sample]
    artifact = tmp_path / "x.onnx"
    artifact.touch()
    manifest_path(artifact).write_text(json.dumps({"schema": 1, **entries}))
    assert words in refusal(read_manifest, artifact)
    assert bool(manifests_in(tmp_path)) == ("schema" in entries)  # of other types it is nobody's


@pytest.mark.parametrize("kind", [-1, 99])
def test_a_network_for_images_of_a_type_without_a_name(kind: int, tmp_path: Path) -> None:
    graph = Graph()
    graph.conv(4, 3, 3)
    proto = onnx.load_model(network(tmp_path / "x.onnx", graph))
    proto.graph.input[0].type.tensor_type.elem_type = kind
    (tmp_path / "x.onnx").write_bytes(proto.SerializeToString())
    assert f"takes type {kind}" in refusal(read_file, tmp_path / "x.onnx")


INPUTS: dict[str, dict[str, Any]] = {
    "no batch": {"batch": 0},
    "batch of a text": {"batch": "1"},
    "another preparation": {"preprocess": "x"},
    "four means": {"form": {"mean": [0.5] * 4}},
    "layout of a text": {"layout": "x"},
    "levels of a text": {"layout": {"strides": "x", "imgsz": [8, 8], "classes": 1}},
}


@pytest.mark.parametrize("sample", INPUTS)
def test_samples_of_another_form(sample: str, tmp_path: Path) -> None:
    samples = Samples(HeadLayout((8,), (8, 8), 1), SampleInput(1), np.zeros((1, 8, 8, 3), np.uint8))
    save_samples(samples, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as content:
        arrays: dict[str, Any] = dict(content)
    arrays["head"] = np.array(json.dumps({**json.loads(str(arrays["head"])), **INPUTS[sample]}))
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert "holds no samples" in refusal(load_samples, tmp_path / "x.npz")
