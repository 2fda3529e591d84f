"""Whole runs of `qexport qat` on the demo model: what it leaves, what is exported from it, kills and interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DEMO, demo_images

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.cli.app import main
from qexport.system import signals
from qexport.training.qat_file import Learned, read_learned

for runtime in ("onnxruntime", "litert_torch"):
    pytest.importorskip(runtime, reason="exports to it")

COMMAND = str(Path(sys.executable).with_name("qexport"))
MODEL = str(DEMO / "shapes26.pt")
EPOCHS = 3


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A command on eight images, of which four are trained on."""
    images = tmp_path_factory.mktemp("data") / "images.txt"
    images.write_text("".join(f"{path}\n" for path in demo_images("train", 8)), encoding="utf-8")
    quick = ("--imgsz", "64", "--effort", "none", "--batch", "2", "--epochs", str(EPOCHS), "--patience", "0")
    return ("qat", MODEL, "--data", str(images), "--format", "tflite", *quick)


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main([*words, "--out", str(folder), "--quiet"]) == 0
    return folder


def learned(folder: Path) -> Learned:
    path = folder / "shapes26_qat.pt"
    return read_learned(load_checkpoint(path).learned, path)


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    return content


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (profile,) = learned(folder).profiles
    return dict(profile.parameters)


def test_a_run_leaves_a_checkpoint_with_its_origin_a_record_and_a_page(whole: Path) -> None:
    assert {path.name for path in whole.iterdir()} >= {"shapes26_qat.pt", "train.json", "train.html"}
    (profile,) = record(whole)["profiles"]
    assert profile["formats"] == ["tflite"]
    assert [each["number"] for each in profile["record"]["epochs"]] == list(range(1, EPOCHS + 1))
    assert (profile["record"]["images"], profile["record"]["held_out"]) == (4, 4)
    found = learned(whole)
    assert found.provenance.model == "shapes26.pt"
    assert found.provenance.fingerprint == load_checkpoint(Path(MODEL)).fingerprint
    assert [each.plan.profile for each in found.profiles] == ["tflite"]
    assert "distance-1-1" not in (whole / "train.html").read_text(encoding="utf-8")  # identifiers nobody refers to


def test_other_formats_are_exported_from_it(whole: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    file, data = str(whole / "shapes26_qat.pt"), words[words.index("--data") + 1]
    options = ("--format", "onnx,tflite", "--int8", "--imgsz", "64", "--no-eval", "--no-latency", "--quiet")
    quick = ("--effort", "none", "--calib-images", "2")
    assert main([file, "--data", data, *options, *quick, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {each["format"] for each in report["artifacts"] if each["verification"]} == {"onnx", "tflite"}


def test_a_run_that_is_killed_goes_on_to_the_same_weights(whole: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([COMMAND, *words, "--out", str(folder), "--quiet"], env=environment)
    state, end = folder / "train_tflite.state", time.monotonic() + 120
    while not state.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "shapes26_qat.pt").exists()
    assert main([*words, "--out", str(folder), "--quiet", "--resume"]) == 0
    expected, found = weights(whole), weights(folder)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    own, other = (record(each)["profiles"][0]["record"]["epochs"] for each in (whole, folder))
    assert [each["loss"] for each in own] == [each["loss"] for each in other]


def test_an_interrupt_leaves_a_checkpoint_and_says_so(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, folder = tmp_path / "out" / "train_tflite.state", tmp_path / "out"

    def interrupt() -> None:
        end = time.monotonic() + 120
        while not state.exists() and time.monotonic() < end:
            time.sleep(0.005)
        signals.stop_requests[-1].made = True  # as the first Ctrl-C does

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    long = [*words, "--out", str(folder), "--quiet", "--epochs", "500"]
    assert main(long) == 130
    waiting.join()
    file = folder / "shapes26_qat.pt"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qexport: error: interrupted: {file} has what ")
    assert line.endswith("--resume goes on")
    assert record(folder)["interrupted"] is True
    assert [each.plan.profile for each in learned(folder).profiles] == ["tflite"]


def test_another_training_is_not_resumed(
    whole: Path, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train_tflite.state").write_bytes((whole / "train_tflite.state").read_bytes())
    assert main([*words, "--out", str(tmp_path), "--quiet", "--resume", "--seed", "7"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "is of a training with another model, other images, settings or plan" in line
    assert not list(tmp_path.glob("*.pt"))
    assert main([*words, "--out", str(tmp_path / "none"), "--quiet", "--resume"]) == 3
    assert "there is no training to resume" in capsys.readouterr().err


def test_labels_that_are_not_there_are_missed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in demo_images("train", 4):
        (images / path.name).write_bytes(path.read_bytes())
    out = ("--imgsz", "64", "--quiet", "--out", str(tmp_path / "out"))
    assert main(["qat", MODEL, "--data", str(images), "--labels", *out]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qexport: error: --labels needs labels")
    assert not (tmp_path / "out").exists()
