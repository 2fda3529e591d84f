"""A training's state between epochs: whole or not at all, and of one training alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trained import record

from qexport.errors import InputError
from qexport.training.state import Anew, FileStore, TrainingState

STATE = TrainingState(
    epoch=2,
    step=24,
    tensors={
        "student/a.weight": torch.tensor([[1.5, -2.25], [0.1, 3e-41]]),
        "adam step": torch.tensor(24),
        "none": torch.zeros(0, 3),
        "mask": torch.tensor([True, False]),
        "columns": torch.arange(6.0).reshape(2, 3).t(),
    },
    record=record("tflite"),
)


ONE = {"model": "a", "plan": "c", "--batch": "8"}
OTHER = {"model": "b", "plan": "c", "--batch": "4"}


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "state.npz", ONE)
    assert store.load() is None
    store.save(replace(STATE, epoch=1, record=None))
    store.save(STATE)
    found = store.load()
    assert found is not None
    assert replace(found, tensors={}) == replace(STATE, tensors={})
    assert list(found.tensors) == list(STATE.tensors)
    for name, tensor in STATE.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert [each.name for each in tmp_path.iterdir()] == ["state.npz"]
    found.tensors["student/a.weight"].add_(1)  # training goes on in them


def test_another_trainings_state_is_refused(tmp_path: Path) -> None:
    FileStore(tmp_path / "state.npz", ONE).save(STATE)
    with pytest.raises(InputError, match=r"is of a training with another model, --batch 8: give") as caught:
        FileStore(tmp_path / "state.npz", OTHER).load()
    assert "--resume" in caught.value.remedy


def test_a_training_that_begins_anew_loses_nothing_until_it_has_something(tmp_path: Path) -> None:
    kept = FileStore(tmp_path / "state.npz", ONE)
    kept.save(STATE)
    store = Anew(FileStore(kept.path, OTHER))
    assert store.load() is None
    assert kept.load() is not None
    store.save(replace(STATE, epoch=1))
    found = store.store.load()
    assert found is not None
    assert found.epoch == 1


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999], ids=str)
def test_a_damaged_file_is_refused_in_one_line(share: float, tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    FileStore(path, ONE).save(STATE)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="is no state of a training") as caught:
        FileStore(path, ONE).load()
    assert "\n" not in str(caught.value)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from qexport.training.state import FileStore, TrainingState
path = Path(sys.argv[1])
state = TrainingState(1, 12, {"a": torch.full((1000,), 1.0)})
FileStore(path, {"model": "a"}).save(state)
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # all is written, and nothing has its name
FileStore(path, {"model": "a"}).save(TrainingState(2, 24, {"a": torch.full((1000,), 2.0)}))
"""


@pytest.mark.skipif(os.name == "nt", reason="SIGKILL")
def test_a_save_that_is_killed_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, timeout=100)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(tmp_path.iterdir())) == 2  # the unfinished one was begun
    found = FileStore(path, {"model": "a"}).load()
    assert found is not None
    assert (found.epoch, found.step) == (1, 12)
    assert torch.equal(found.tensors["a"], torch.full((1000,), 1.0))
