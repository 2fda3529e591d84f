"""A real second process: the same files, the same errors, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import DEMO, SMALL

from qexport.backends.registry import find_backend
from qexport.errors import InputError
from qexport.execution import worker as module
from qexport.execution.worker import ReadSource, WorkerDiedError, WriteArtifact, offloaded_formats, worker_process
from qexport.job.options import ExportJob
from qexport.programs.build import read_source
from qexport.steps import write_float
from qexport.system import machine

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
MODEL = DEMO / "shapes26.pt"


def job(out: Path, **changes: Any) -> ExportJob:
    return ExportJob(model=str(MODEL), int8=True, imgsz=SMALL, out=out, **changes)


@pytest.mark.slow
def test_it_writes_the_file_that_this_process_writes(tmp_path: Path) -> None:
    theirs, ours = job(tmp_path / "theirs"), job(tmp_path / "ours")
    for each in (theirs, ours):
        each.folder.mkdir()
    with worker_process() as submit:
        submit(ReadSource(theirs, MODEL, ()))
        reply: Future[Any] = submit(WriteArtifact("tflite", "fp32"))
        here = write_float(read_source(ours, MODEL, ()), find_backend("tflite"), "fp32")
        there = reply.result()
    assert there.artifact.path == theirs.folder / "shapes26_fp32.tflite"
    assert there.artifact.path.read_bytes() == here.artifact.path.read_bytes()
    assert there.artifact.sha256 == here.artifact.sha256


def test_errors_come_back_as_what_they_are(tmp_path: Path) -> None:
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    with worker_process() as submit:
        with pytest.raises(InputError, match=r"broken\.pt") as caught:
            submit(ReadSource(job(tmp_path), broken, ())).result()
        assert caught.value.exit_code == 3
        assert caught.value.remedy
        # Nothing was read, so nothing can be written: a fault, which is not the user's.
        with pytest.raises(WorkerDiedError, match="failed"):
            submit(WriteArtifact("tflite", "fp32")).result()


def test_a_process_that_was_killed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Remembered(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    with worker_process() as submit:
        reply = submit(WriteArtifact("tflite", "fp32"))
        os.kill(started[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="ended"):
            reply.result(timeout=30)


@pytest.mark.slow
def test_one_that_is_stopped_at_work_leaves_no_file_behind(tmp_path: Path) -> None:
    with worker_process() as submit:
        submit(ReadSource(job(tmp_path), MODEL, ())).result()
        submit(WriteArtifact("tflite", "fp32"))
        time.sleep(1)  # it is converting now; the block's end does not wait for it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("tflite",)),
        ({"no_latency": True, "no_eval": True}, ()),
        ({"no_latency": True}, ("tflite",)),
        ({"no_latency": True, "no_eval": True, "format": ("onnx", "tflite")}, ("tflite",)),
        ({"format": ("onnx", "openvino")}, ()),
        ({"int8": False}, ()),
    ],
)
def test_what_is_worth_a_second_process(
    changes: dict[str, Any], expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "cores", lambda: 2)
    assert offloaded_formats(ExportJob(**{"model": "a.pt", "int8": True, **changes})) == expected
    monkeypatch.setattr(module, "cores", lambda: 1)
    assert offloaded_formats(ExportJob(**{"model": "a.pt", "int8": True, **changes})) == ()


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "os", SimpleNamespace(sched_getaffinity=lambda _: {3, 5, 7}))
    assert machine.cores() == 3
    monkeypatch.setattr(machine, "os", SimpleNamespace(cpu_count=lambda: None))
    assert machine.cores() == 1


def test_a_model_that_was_exchanged_in_between_is_not_written() -> None:
    """The first process then writes the file itself, of the bytes whose hash the report has."""
    source: Any = SimpleNamespace(checkpoint=SimpleNamespace(fingerprint="of other bytes"))
    with pytest.raises(WorkerDiedError, match="another one"):
        module._write(source, WriteArtifact("tflite", "fp32", model="of these bytes"))
