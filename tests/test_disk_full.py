"""A disk that is full at some moment: one line that names the place, whatever the writer says of it."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import lowering

from qexport.backends.registry import find_backend
from qexport.cli.console import library_output
from qexport.errors import ConversionError, InputError, NoRoomError
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.programs.program import Program
from qexport.system.files import write_text, write_whole
from qexport.training.state import FileStore, TrainingState

resource = pytest.importorskip("resource", reason="limits the size of files")
FULL = r"out cannot be written \(File too large\): make room there, or choose another --out"


@contextmanager
def full(most: int = 1000) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the one limit of a disk that needs no disk."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["onnx", "openvino", "tflite"])
def test_every_format(name: str, tiny: Program, out: Path) -> None:
    backend = find_backend(name)
    with pytest.raises(NoRoomError, match=FULL), full(), write_whole(out / "a") as path:
        backend.lower(lowering(tiny, "fp32", None), path)
    assert list(out.iterdir()) == []


def test_what_a_library_says_of_it_is_not_believed(out: Path) -> None:
    """OpenVINO's writer: its own advice was to try another --opset."""
    said = ConversionError("OpenVINO cannot read the graph (Can't open bin file)", "try another --opset")
    with pytest.raises(NoRoomError, match=FULL), full(), write_whole(out / "a"):
        raise said
    with pytest.raises(ConversionError, match="try another --opset"), write_whole(out / "a"):
        raise said
    assert list(out.iterdir()) == []


def test_what_was_there_stays(out: Path) -> None:
    write_text(out / "report.json", "whole")
    with pytest.raises(NoRoomError, match=FULL), full():
        write_text(out / "report.json", "x" * 2000)
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("report.json", "whole")]


def test_the_state_of_a_training(out: Path) -> None:
    store = FileStore(out / "train_x.state", {})
    store.save(TrainingState(1, 2, {"weight": torch.zeros(3)}))
    with pytest.raises(NoRoomError, match=FULL), full():
        store.save(TrainingState(2, 4, {"weight": torch.zeros(3000)}))
    kept = store.load()
    assert kept is not None
    assert kept.epoch == 1


def test_a_checkpoint_that_torch_writes(out: Path) -> None:
    with pytest.raises(NoRoomError, match=FULL), full(), write_whole(out / "a.pt") as path, path.open("wb") as stream:
        torch.save({"weight": torch.zeros(3000)}, stream)
    assert list(out.iterdir()) == []


def test_temporary_files() -> None:
    """Where a step that writes nothing else runs out of room, and a library says something else."""
    place = tempfile.gettempdir()
    with (
        pytest.raises(NoRoomError, match=rf"{place}/qexport-run-\w+ cannot be written \(File"),
        full(),
        library_output(),
    ):
        raise RuntimeError("cannot serialise")


def test_a_figure_that_it_costs() -> None:
    missing: list[Unmeasured] = []
    with full(), attempt(missing, "latency"):
        raise RuntimeError("Model file not found")
    (row,) = missing
    assert row.exit_code == 7
    assert "cannot be written (File too large): make room there, or set TMPDIR" in row.reason


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS])
def test_an_error_that_names_it(number: int, out: Path) -> None:
    """Also where there is room again when it is looked at."""
    with pytest.raises(NoRoomError, match=r"out cannot be written \(.+\): make room there"), write_whole(out / "a"):
        raise OSError(number, "no room")
    with pytest.raises(InputError, match=r"out/a cannot be written \(no\)") as found, write_whole(out / "a"):
        raise OSError(errno.EACCES, "no")
    assert not isinstance(found.value, NoRoomError)
