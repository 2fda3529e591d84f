"""What `qexport qat` refuses before torch is imported, and what it makes of its options."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO

from qexport.cli.app import main
from qexport.cli.qat import export_words, with_share
from qexport.errors import QexportError, UsageError
from qexport.job.train_job import make_train_job
from qexport.training.recipe import Recipe

MODEL, DATA = str(DEMO / "shapes26.pt"), str(DEMO / "shapes" / "shapes.yaml")
GIVEN = {"model": MODEL, "data": DATA}


def test_what_is_not_given_is_the_recipes_and_an_exports() -> None:
    job = make_train_job(GIVEN)
    assert job.recipe == Recipe()
    assert (job.export.precision, job.export.format, job.export.no_eval) == ("int8", ("tflite",), True)
    assert job.file == Path("qexport_out/shapes26_qat/shapes26_qat.pt")
    assert not job.resume


def test_options_reach_the_recipe_and_the_plan() -> None:
    more = {"epochs": 3, "rate_scales": 0.01, "weights": "free", "labels": 0.5, "format": "onnx,tflite", "imgsz": "64"}
    job = make_train_job({**GIVEN, **more, "effort": "none", "eval_data": DATA, "out": "here", "precision": "int8"})
    assert job.recipe == Recipe(epochs=3, rate_scales=0.01, weights="free", labels=0.5)
    assert (job.export.format, job.export.imgsz, job.export.passes) == (("onnx", "tflite"), (64, 64), ())
    assert not job.export.no_eval
    assert job.file == Path("here/shapes26_qat.pt")


def test_a_gpu_takes_whole_batches_and_devices_that_have_no_float_take_integers_only() -> None:
    assert make_train_job({**GIVEN, "batch": 8}).export.batch == 1  # workers share a batch image by image
    assert make_train_job({**GIVEN, "batch": 8, "device": "cuda:1"}).export.batch == 8
    assert make_train_job({**GIVEN, "device": "0"}).recipe.device == "cuda:0"
    assert make_train_job({**GIVEN, "format": "edgetpu"}).export.precision == "int8-full"


@pytest.mark.parametrize(
    ("more", "line", "code"),
    [
        ({"model": "a.onnx"}, "a.onnx is an ONNX file, and training is for checkpoints: give the .pt file", 2),
        ({"data": None}, "qat needs images to train on: add --data DATA.yaml", 2),
        ({"precision": "fp16"}, "--precision fp16 has no integer activations to train: give --precision int8", 2),
        ({"precision": "fp32"}, "--precision fp32 has no integer activations to train: give --precision int8", 2),
        ({"precision": "int8-dynamic"}, "--precision int8-dynamic has no integer activations", 2),
        ({"device": "gpu"}, "--device gpu is out of range: give cpu, cuda or cuda:NUMBER", 2),
        ({"labels": 1.5}, "--labels 1.5 is out of range: give a share, 0 to 1", 2),
        ({"epochs": 0}, "--epochs 0 is out of range: give 1 or more", 2),
        ({"damping": math.inf}, "--damping inf is out of range: give 0 or more", 2),
        ({"rate_weights": -1}, "--rate-weights -1.0 is out of range", 2),
        ({"rate_scales": math.nan}, "--rate-scales nan is out of range: give 0 or more and less than 1", 2),
        ({"rate_scales": 1}, "--rate-scales 1.0 is out of range: give 0 or more and less than 1", 2),
        (
            {"rate_weights": 0, "rate_scales": 0, "rate_biases": 0},
            "all rates are 0, and nothing would be learned: leave out one of --rate-weights, --rate-scales, --rate-",
            2,
        ),
        ({"weights": "all"}, "--weights all is out of range: give within-step or free", 2),
        ({"effort": "most"}, "--effort most is out of range", 2),
        ({"out": "nowhere", "resume": True}, "there is no training to resume in nowhere: leave out --resume", 3),
    ],
)
def test_what_cannot_be_is_one_line(more: dict[str, Any], line: str, code: int) -> None:
    with pytest.raises(QexportError, match=re.escape(line)) as caught:
        make_train_job({**GIVEN, **{k: v for k, v in more.items() if k != "resume"}}, bool(more.get("resume")))
    assert str(caught.value).startswith(line)
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    ("words", "share"),
    [
        (("--labels",), 1.0),
        (("--labels", "0.25"), 0.25),
        (("--labels", "--quiet"), 1.0),
        (("--labels", "1e-1", "--quiet"), 0.1),
    ],
)
def test_labels_without_a_share_are_all_of_it(words: tuple[str, ...], share: float) -> None:
    made = with_share(["qat", MODEL, *words])
    assert float(made[made.index("--labels") + 1]) == share
    assert [word for word in made if word != "1"] == ["qat", MODEL, *words]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "--format tflite --int8"),
        ({"format": "onnx,tflite", "imgsz": "64"}, "--format onnx,tflite --int8 --imgsz 64"),
        ({"imgsz": "64,96", "precision": "w8a16"}, "--format tflite --precision w8a16 --imgsz 64,96"),
        ({"format": "edgetpu", "head": "one2many"}, "--format edgetpu --int8 --head one2many"),
        ({"format": "onnx", "cpu": "avx2"}, "--format onnx --int8 --cpu avx2"),
    ],
)
def test_the_next_command_exports_what_was_trained(more: dict[str, Any], words: str) -> None:
    job = make_train_job({**GIVEN, **more}).export
    written = export_words(Path("a_qat.pt"), job)
    assert written == ["qexport", "a_qat.pt", "--data", DATA, *words.split()]


def test_refusals_load_no_torch() -> None:
    words = ["qat", MODEL, "--data", DATA, "--precision", "fp16"]
    code = f"import sys\nfrom qexport.cli.app import main\nassert main({words}) == 2\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert done.stderr.startswith("qexport: error: --precision fp16 has no integer activations")


def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from qexport.training.device import check_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_device("cpu")
    with pytest.raises(UsageError, match=r"--device cuda is not here: PyTorch .* finds no GPU: leave it out"):
        check_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_device("cuda:1")
    with pytest.raises(UsageError, match=r"--device cuda:2 is not here: PyTorch .* finds 2 GPUs"):
        check_device("cuda:2")


def test_help_has_an_example_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["qat", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(word in shown for word in ("--labels --epochs 20", "--resume", "yolo26n_qat.pt --format"))
