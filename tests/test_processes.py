"""Several processes train as one does with the same steps; one that dies ends the others, and nothing is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import captured, demo_images
from small_models import saved, small_model
from test_sensitivity import seeded_chain
from test_training import planned
from torch import Tensor

from qexport.cli.app import main
from qexport.cli.console import fail
from qexport.errors import UsageError
from qexport.job.train_job import make_train_job
from qexport.planning.runtime_profiles import TENSORRT
from qexport.programs.program import Program
from qexport.system.launch import ALONE, TORCHRUN, Launch, launched
from qexport.system.signals import Ending
from qexport.training.container import unpack
from qexport.training.images import Batch
from qexport.training.losses import loss
from qexport.training.recipe import Recipe
from qexport.training.student import Student

SECOND = {TORCHRUN: "none", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
LAUNCHES = Path(__file__).with_name("two_processes.py")
STATE = "train_tensorrt.state"


def kept(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and arrays of the state that a training has left."""
    head, arrays = unpack((folder / STATE).read_bytes())
    return dict(head), dict(arrays)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")
def test_two_processes_train_as_one_and_a_death_ends_both(tmp_path: Path) -> None:
    """The second one dies in the second epoch, which both then train again: all as in one that was never stopped."""
    model, images = saved(small_model(nc=6), tmp_path / "small.pt"), tmp_path / "images.txt"
    images.write_text("".join(f"{path}\n" for path in demo_images("train", 24)), encoding="utf-8")
    quick = ("--imgsz", "64", "--effort", "none", "--batch", "2", "--epochs", "2", "--patience", "0")
    words = ["qat", str(model), "--data", str(images), "--format", "tensorrt", *quick]
    command = [sys.executable, str(LAUNCHES), str(tmp_path), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[1, -9], [0, 0]]
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main([*words, "--out", str(alone), "--quiet"]) == 0
    (head, found), (_, expected) = kept(out), kept(alone)
    assert head["epoch"] == 2
    assert found.keys() == expected.keys()
    for name in expected:  # but for the order in which floats were added
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}
    reports = (json.loads((folder / "train.json").read_text(encoding="utf-8")) for folder in (alone, out))
    one, both = (report["profiles"][0]["record"] for report in reports)
    assert (one["processes"], both["processes"]) == (1, 2)
    assert [one[key] for key in ("images", "held_out", "best")] == [both[key] for key in ("images", "held_out", "best")]
    losses = [[epoch["loss"] for epoch in each["epochs"]] for each in (one, both)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    said = {path.stem: path.read_text(encoding="utf-8") for path in tmp_path.glob("*.?.txt")}
    assert (said["killed.1"], said["resumed.1"]) == ("", "")
    assert "wrote small_qat.pt" in said["resumed.0"]
    (error,) = [line for line in said["killed.0"].splitlines() if "error" in line]
    ended = "qexport: error: another of the 2 processes has ended, or cannot be reached: --resume goes on"
    assert error.startswith(ended)


def test_what_a_batch_is_cut_into_does_not_matter() -> None:
    """The loss, and what is learned by, is the mean over images: of four at once, or of one after the other."""

    def by_first_score(program: Program, raw: Sequence[Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        """As Ultralytics' losses, in shares of what all images together have: here of their labels."""
        score = raw[program.raw.all.index(program.raw.scores[0])]
        return score.square().sum() / len(targets["cls"])

    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = {"batch_idx": torch.tensor([0.0, 0, 0, 1, 2, 3]), "cls": torch.zeros(6, 1)}
    rows = [targets["batch_idx"] == number for number in range(4)]
    singly = [
        Batch(pixels[[number]], {"batch_idx": torch.zeros(int(row.sum())), "cls": targets["cls"][row]})
        for number, row in enumerate(rows)
    ]
    found = []
    for size, batches in ((4, [Batch(pixels, targets)]), (1, singly)):
        student = Student(planned(captured(seeded_chain(), batch=size), TENSORRT), Recipe())
        lost = torch.stack([loss(student, each, 0.5, by_first_score) for each in batches]).mean()
        slopes = torch.autograd.grad(lost, list(student.parameters.values()), materialize_grads=True)
        found.append((lost.detach(), *slopes))
    assert any(bool(each.any()) for each in found[0][1:])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)  # kernels of CPUs round differently


def test_what_torchrun_says_of_a_process() -> None:
    assert launched(SECOND) == Launch(1, 2, 1)
    assert launched({name: value for name, value in SECOND.items() if name != TORCHRUN}) == ALONE
    assert launched({TORCHRUN: "left over"}) == ALONE
    assert (Launch(3, 4, 1).device("cuda"), Launch(3, 4, 1).device("cpu")) == ("cuda:1", "cpu")
    assert (ALONE.device("cuda"), ALONE.device("cuda:1")) == ("cuda", "cuda:1")


def test_steps_that_cannot_be_shared_are_refused() -> None:
    given = {"model": "a.pt", "data": "b.yaml"}
    job = make_train_job({**given, "batch": 8, "device": "cuda"}, launch=Launch(1, 4, 1))
    assert (job.export.batch, job.recipe.device) == (2, "cuda")
    with pytest.raises(UsageError, match="3 processes cannot share --batch 8 equally: give a multiple of 3"):
        make_train_job(given, launch=Launch(0, 3, 0))
    with pytest.raises(UsageError, match="--device cuda:1 is one GPU, and there are 2 processes: give --device cuda"):
        make_train_job({**given, "device": "1"}, launch=Launch(0, 2, 0))


def test_the_first_process_says_what_concerns_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in SECOND.items():
        monkeypatch.setenv(name, value)
    with (tmp_path / "terminal").open("wb") as terminal:
        Ending(terminal.fileno())._write("error: interrupted")
        assert fail("no such option", 2) == 2
        assert capsys.readouterr().err == ""
        assert fail("the model is not here", 3) == 3
        assert capsys.readouterr().err == "qexport: error: the model is not here\n"
        assert os.fstat(terminal.fileno()).st_size == 0
        monkeypatch.setenv("RANK", "0")
        Ending(terminal.fileno())._write("error: interrupted")
        assert os.fstat(terminal.fileno()).st_size > 0
        assert fail("no such option", 2) == 2
        assert capsys.readouterr().err == "qexport: error: no such option\n"
