"""Whole runs of `qexport qat` on a small model: what it leaves, what is exported from it, kills and interrupts."""

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

import numpy as np
import pytest
import torch
from conftest import DEMO, demo_images
from refusals import DATA
from small_models import saved, small_model

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.cli.app import main
from qexport.system import signals
from qexport.training.container import unpack
from qexport.training.qat_file import Learned, read_learned

for runtime in ("onnxruntime", "litert_torch"):
    pytest.importorskip(runtime, reason="exports to it")

psutil: Any = pytest.importorskip("psutil", reason="tells how far another process is")
COMMAND = str(Path(sys.executable).with_name("qexport"))
STATE = "train_tflite.state"
EPOCHS = 2
IN_AN_EPOCH = 0.2
"""Processor seconds behind the beginning of an epoch of eight steps: some of them."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved(small_model(nc=6), tmp_path_factory.mktemp("model") / "small.pt"))


@pytest.fixture(scope="module")
def words(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A command on 24 images, of which 16 are trained on."""
    images = tmp_path_factory.mktemp("data") / "images.txt"
    images.write_text("".join(f"{path}\n" for path in demo_images("train", 24)), encoding="utf-8")
    quick = ("--imgsz", "64", "--effort", "none", "--batch", "2", "--epochs", str(EPOCHS), "--patience", "0")
    return ("qat", model, "--data", str(images), "--format", "tflite", *quick)


@pytest.fixture(scope="module")
def whole(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    assert main([*words, "--out", str(folder), "--quiet"]) == 0
    return folder


def learned(folder: Path) -> Learned:
    path = folder / "small_qat.pt"
    return read_learned(load_checkpoint(path).learned, path)


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "train.json").read_text(encoding="utf-8"))
    return content


def kept(folder: Path) -> tuple[Any, Any]:
    """Head and arrays of the state that a training has left."""
    return unpack((folder / STATE).read_bytes())


def test_a_run_leaves_a_checkpoint_with_its_origin_a_record_and_a_page(whole: Path, model: str) -> None:
    assert {path.name for path in whole.iterdir()} >= {"small_qat.pt", "train.json", "train.html"}
    (profile,) = record(whole)["profiles"]
    assert profile["formats"] == ["tflite"]
    assert [each["number"] for each in profile["record"]["epochs"]] == list(range(1, EPOCHS + 1))
    assert (profile["record"]["images"], profile["record"]["held_out"]) == (16, 8)
    found = learned(whole)
    assert found.provenance.model == "small.pt"
    assert found.provenance.fingerprint == load_checkpoint(Path(model)).fingerprint
    assert [each.plan.profile for each in found.profiles] == ["tflite"]
    assert "distance-1-1" not in (whole / "train.html").read_text(encoding="utf-8")  # identifiers nobody refers to


def test_other_formats_are_exported_from_it(whole: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    file, data = str(whole / "small_qat.pt"), words[words.index("--data") + 1]
    options = ("--format", "onnx,tflite", "--int8", "--imgsz", "64", "--no-eval", "--no-latency", "--quiet")
    quick = ("--effort", "none", "--calib-images", "2")
    assert main([file, "--data", data, *options, *quick, "--out", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert {each["format"] for each in report["artifacts"] if each["verification"]} == {"onnx", "tflite"}


def test_a_trained_checkpoint_is_trained_on_and_keeps_what_it_has(
    whole: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    quick = ("--format", "onnx", "--calib-images", "4", "--epochs", "1", "--quiet", "--out", str(tmp_path))
    assert main(["qat", str(whole / "small_qat.pt"), *words[2:], *quick]) == 0
    path = tmp_path / "small_qat_qat.pt"
    new, old = read_learned(load_checkpoint(path).learned, path).profiles
    assert (new.plan.profile, old.plan.profile) == ("onnx", "tflite")
    assert old.plan == learned(whole).profiles[0].plan
    first, second = record(tmp_path)["notes"]
    assert first.endswith("weights and ranges were learned in training for tflite")
    assert second == "tflite is kept as an earlier run has learned it"


def test_a_run_that_is_killed_goes_on_to_the_same_weights(whole: Path, words: tuple[str, ...], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen([COMMAND, *words, "--out", str(folder), "--quiet"], env=environment)
    watched, end = psutil.Process(process.pid), time.monotonic() + 600

    def computed() -> float:
        times = watched.cpu_times()
        return float(times.user + times.system)

    while not (folder / STATE).exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    begun = computed()
    while computed() < begun + IN_AN_EPOCH and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "small_qat.pt").exists()
    assert kept(folder)[0]["epoch"] == 1  # the second had begun, and had not ended
    assert main([*words, "--out", str(folder), "--quiet", "--resume"]) == 0
    (_, expected), (head, found) = kept(whole), kept(folder)
    assert head["epoch"] == EPOCHS
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    (one,), (other,) = (learned(each).profiles for each in (whole, folder))
    assert all(torch.equal(other.parameters[name], each) for name, each in one.parameters.items())
    assert other.plan == one.plan
    losses = ([each.loss for each in profile.record.epochs] for profile in (one, other))
    assert next(losses) == next(losses)


def test_what_cannot_be_written_leaves_nothing_half_and_the_next_run_writes_it(
    whole: Path, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STATE).write_bytes((whole / STATE).read_bytes())
    (tmp_path / "train.json").mkdir()
    resumed = [*words, "--out", str(tmp_path), "--quiet", "--resume"]
    assert main(resumed) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qexport: error: {tmp_path / 'train.json'} cannot be written (")
    found = {path.name for path in tmp_path.iterdir()}
    assert found - {"calibration.npz"} == {STATE, "small_qat.pt", "train.json"}
    (tmp_path / "train.json").rmdir()
    assert main(resumed) == 0
    assert record(tmp_path)["profiles"] == record(whole)["profiles"]
    (one,), (other,) = (learned(each).profiles for each in (whole, tmp_path))
    assert all(torch.equal(other.parameters[name], each) for name, each in one.parameters.items())


def test_an_interrupt_leaves_a_checkpoint_and_says_so(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, folder = tmp_path / "out" / STATE, tmp_path / "out"

    def interrupt() -> None:
        end = time.monotonic() + 600
        while not state.exists() and time.monotonic() < end:
            time.sleep(0.005)
        signals.stop_requests[-1].made = True  # as the first Ctrl-C does

    waiting = threading.Thread(target=interrupt)
    waiting.start()
    long = [*words, "--out", str(folder), "--quiet", "--epochs", "500"]
    assert main(long) == 130
    waiting.join()
    file = folder / "small_qat.pt"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"qexport: error: interrupted: {file} has what ")
    assert line.endswith("--resume goes on")
    assert record(folder)["interrupted"] is True
    assert [each.plan.profile for each in learned(folder).profiles] == ["tflite"]


def test_another_training_is_not_resumed(
    whole: Path, words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / STATE).write_bytes((whole / STATE).read_bytes())
    assert main([*words, "--out", str(tmp_path), "--quiet", "--resume", "--seed", "7"]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "is of a training with --seed 0: give what it was begun with" in line
    assert not list(tmp_path.glob("*.pt"))
    for more in (("--out", str(tmp_path / "none")), ("--out", str(tmp_path), "--format", "onnx")):
        assert main([*words, *more, "--quiet", "--resume"]) == 3
        assert "there is no training to resume" in capsys.readouterr().err


def test_labels_train_the_demo_model(tmp_path: Path) -> None:
    """With Ultralytics' data set and loss: everything is learned from eight images, half of the loss from labels."""
    quick = ("--imgsz", "64", "--effort", "none", "--calib-images", "12", "--batch", "4", "--epochs", "1", "--quiet")
    words = ("qat", str(DEMO / "shapes26.pt"), "--data", DATA, "--labels", "0.5", *quick)
    assert main([*words, "--out", str(tmp_path)]) == 0
    (profile,) = record(tmp_path)["profiles"]
    (epoch,) = profile["record"]["epochs"]
    assert 0 < epoch["loss"] < 100
    assert profile["record"]["recipe"]["labels"] == 0.5
    assert record(tmp_path)["notes"] == []
    _, arrays = kept(tmp_path)
    moved = [name for name, each in arrays.items() if name.startswith("exp_avg_sq/") and each.any()]
    assert len(moved) > 200
    file = tmp_path / "shapes26_qat.pt"
    assert read_learned(load_checkpoint(file).learned, file).profiles[0].record.recipe.labels == 0.5


def test_labels_that_are_not_there_are_missed_at_once(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in demo_images("train", 4):
        (images / path.name).write_bytes(path.read_bytes())
    out = ("--imgsz", "64", "--quiet", "--out", str(tmp_path / "out"))
    assert main(["qat", model, "--data", str(images), "--labels", *out]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qexport: error: --labels needs labels")
    assert not (tmp_path / "out").exists()
