"""A second opinion from TensorFlow's own kernels, through the installed command, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO, demo_checkpoint, demo_images, lowering

from qexport.backends.tflite.backend import TFLiteBackend
from qexport.calibration.calibrate import calibrate
from qexport.errors import VerificationError
from qexport.inspection import cross_check as module
from qexport.inspection.cross_check import CrossCheck, cross_check
from qexport.lowering.metadata import artifact_metadata
from qexport.measurement.accuracy import score_against
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE_INTEGER
from qexport.programs.program import Program

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
if find_spec("tensorflow") is None:  # imported where it is needed: every process collects every file
    pytest.skip("needs the extra qexport[tensorflow]", allow_module_level=True)

DATA = str(DEMO / "shapes" / "shapes.yaml")
TENSORFLOW = ("--runtime", "tensorflow", "--data", DATA)


def verify(*words: str) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).with_name("qexport")), "verify", *words]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def integer(demo_one2many: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The one-to-many demo model without floats."""
    table = calibrate(demo_one2many, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_one2many, table.statistics, TFLITE_INTEGER)
    path = tmp_path_factory.mktemp("integer") / "demo_int8-full.tflite"
    metadata = artifact_metadata(demo_checkpoint(), demo_one2many, "int8-full", plan)
    TFLiteBackend().lower(lowering(demo_one2many, "int8-full", plan, metadata), path)
    return path


@pytest.mark.slow
def test_both_implementations_find_the_same(integer: Path) -> None:
    done = verify(str(integer), "--runtime", "tensorflow", "--data", DATA, "--images", "10", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert found["images"] == 10
    assert found["map"] >= 0.95
    assert "model_0" in found["first_layer"]
    assert found["steps"] <= 1


@pytest.mark.slow
def test_another_file_is_not_taken_for_the_same(integer: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With the weights of the first layer turned round, TensorFlow's copy of the file is another one."""
    from qexport.backends.tflite import reference_kernels
    from qexport.backends.tflite.file import load_file, save_file

    original = reference_kernels.reference_interpreter

    def damaged(path: Path) -> Any:
        model = load_file(path)
        graph = model.subgraphs[0]
        first = next(op for op in graph.operators if len(op.inputs) == 3)
        weights = model.buffers[graph.tensors[first.inputs[1]].buffer]
        weights.data = (-weights.data.view(np.int8)).view(np.uint8)
        save_file(model, tmp_path / "damaged.tflite")
        return original(tmp_path / "damaged.tflite")

    monkeypatch.setattr(reference_kernels, "reference_interpreter", damaged)
    found = cross_check(integer, demo_images("val", 4), 1)
    assert found.steps > 1
    with pytest.raises(VerificationError, match="differs: report the model"):
        found.check()


def test_what_is_too_far_apart_is_an_error() -> None:
    CrossCheck(20, 0.95, "conv", 1, "").check()
    CrossCheck(20, None, "", 0, "").check()
    with pytest.raises(VerificationError, match=r"reach 0\.949 mAP50-95 against LiteRT's, 0\.95 is expected"):
        CrossCheck(20, 0.949, "conv", 0, "").check()
    with pytest.raises(VerificationError, match="conv is 2 steps apart"):
        CrossCheck(20, 1.0, "conv", 2, "").check()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("missing.tflite", *TENSORFLOW), 3, "missing.tflite does not exist: give an artifact that qexport wrote"),
        ((__file__, *TENSORFLOW), 3, "is not a .tflite file with metadata"),
        ((__file__, "--data", DATA, "--runtime", "caffe"), 2, "--runtime caffe is out of range: give tensorflow"),
        ((__file__, "--runtime", "tensorflow"), 2, "--runtime tensorflow needs images: add --data DATA.yaml"),
    ],
)
def test_what_cannot_be_verified_is_one_line(words: tuple[str, ...], code: int, message: str) -> None:
    done = verify(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("qexport: error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_tensorflow_is_named(integer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qexport.backends.tflite import reference_kernels
    from qexport.errors import MissingExtraError

    monkeypatch.setattr(reference_kernels, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"tensorflow is not installed: pip install 'qexport\[tensorflow\]'"):
        module.cross_check(integer, demo_images("val", 1), 1)


def test_detections_scored_against_others_by_hand() -> None:
    """One of two objects found exactly, at the better score than a false one: precision 1 up to recall one half."""
    truth = {"a": (torch.tensor([[0.0, 0, 10, 10], [50, 50, 70, 70]]), torch.tensor([1.0, 1]))}
    rows = torch.tensor([[0.0, 0, 10, 10, 0.9, 1], [200, 200, 210, 210, 0.5, 1]])
    assert score_against({"a": rows}, truth) == pytest.approx(0.5, abs=0.01)
    assert score_against({"a": torch.cat((rows, torch.tensor([[50.0, 50, 70, 70, 0.8, 1]])))}, truth) == pytest.approx(
        1, abs=0.01
    )
    assert score_against({"a": rows}, {"a": (torch.zeros(0, 4), torch.zeros(0))}) is None
