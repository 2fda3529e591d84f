"""A real second process: the same files, the same errors, and nothing left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from far_tasks import fails, steps
from small_models import saved, small_model

from qexport.errors import InputError
from qexport.execution.executor import Inline, Task, WorkerDiedError
from qexport.execution.worker_process import worker_process
from qexport.job import offload as module
from qexport.job.offload import offloaded_formats
from qexport.job.options import ExportJob
from qexport.programs.build import read_source
from qexport.programs.options import CaptureOptions
from qexport.progress import Advance
from qexport.steps.build import BuildRequest, Built, build, ready
from qexport.steps.plan import make_target
from qexport.system import machine

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")


@pytest.fixture(scope="module")
def reading(tmp_path_factory: pytest.TempPathFactory) -> Task:
    """What reads a model of a few layers, whose head chooses boxes itself."""
    path = tmp_path_factory.mktemp("model") / "small.pt"
    saved(small_model("Detect", end2end=True, reg_max=1), path)
    return Task(read_source, (path, CaptureOptions(imgsz=(64, 64))))


def building(out: Path, reading: Task, model: str | None = None) -> Task:
    """The task of building the FP32 TFLite file of a model."""
    digest = hashlib.sha256(reading.arguments[0].read_bytes()).hexdigest() if model is None else model
    path = out / "small_fp32.tflite"
    return Task(build, (BuildRequest(make_target("tflite", "fp32"), path, out / "plan.json", (), digest),), reading)


@pytest.mark.slow
def test_it_writes_the_file_that_this_process_writes(reading: Task, tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    for folder in (theirs, ours):
        folder.mkdir()
    with worker_process() as worker:
        reply: Future[Built] = worker.submit(building(theirs, reading))
        here: Built = Inline().submit(building(ours, reading)).result()
        there = reply.result()
    assert there.result.artifact.path == theirs / "small_fp32.tflite"
    assert there.result.artifact.path.read_bytes() == here.result.artifact.path.read_bytes()
    assert there.result.artifact.sha256 == here.result.artifact.sha256
    assert there.seconds.keys() == {"plan_tflite_fp32", "lower_tflite_fp32", "verify_tflite_fp32"}


def test_errors_come_back_and_nothing_of_the_working_directory_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that came with a model may hold modules of any name."""
    for name in ("signal", "enum", "pickle", "torch", "qexport"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"not a checkpoint")
    reading = Task(read_source, (broken, CaptureOptions()))
    with worker_process() as worker:
        with pytest.raises(InputError, match=r"broken\.pt") as caught:
            worker.submit(Task(ready, (), reading)).result()
        assert caught.value.exit_code == 3
        assert caught.value.remedy
        # What nobody expected is a fault, which is not the user's.
        with pytest.raises(WorkerDiedError, match="failed"):
            worker.submit(Task(divmod, (1, 0))).result()
    assert not (tmp_path / "canary").exists()


class Noted:
    """Notes what steps do."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    @contextmanager
    def step(self, title: str, total: int | None = None) -> Iterator[Advance]:
        self.notes.append(f"{title} of {total}")
        try:
            yield lambda note="": self.notes.append(f"one more {note}".strip())
        finally:
            self.notes.append(f"{title} is over")


def test_steps_of_another_process_are_shown_here() -> None:
    there, here = Noted(), Noted()
    with worker_process(there) as worker:
        assert worker.submit(Task(steps, (2,), shown=True)).result() == 2
        with pytest.raises(InputError):
            worker.submit(Task(fails, shown=True)).result()
    assert Inline(progress=here).submit(Task(steps, (2,), shown=True)).result() == 2
    counted = [
        "counting of 2",
        "besides of None",
        "one more",
        "one more behind 1",
        "besides is over",
        "counting is over",
    ]
    assert here.notes == counted
    assert there.notes == [*counted, "trying of None", "trying is over"]


def test_a_process_that_was_killed_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Remembered(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Remembered)
    with worker_process() as worker:
        reply = worker.submit(Task(divmod, (7, 2)))
        os.kill(started[0].pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="ended"):
            reply.result(timeout=30)


@pytest.mark.slow
def test_one_that_is_stopped_at_work_leaves_no_file_behind(reading: Task, tmp_path: Path) -> None:
    with worker_process() as worker:
        worker.submit(Task(ready, (), reading)).result()
        worker.submit(building(tmp_path, reading))
        time.sleep(1)  # it is converting now; the block's end does not wait for it
    assert list(tmp_path.iterdir()) == []


def test_a_setup_is_done_once_and_its_result_need_not_be_picklable() -> None:
    made: list[object] = []

    def make() -> Iterator[int]:
        made.append(None)
        return iter(range(3))

    setup = Task(make)
    executor = Inline()
    assert [executor.submit(Task(next, (), setup)).result() for _ in range(3)] == [0, 1, 2]
    assert len(made) == 1
    known = Inline({setup: iter("ab")})
    assert known.submit(Task(next, (), setup)).result() == "a"
    with pytest.raises(ZeroDivisionError):
        executor.submit(Task(divmod, (1, 0))).result()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("tflite",)),
        ({"no_latency": True, "no_eval": True}, ()),
        ({"no_latency": True, "data": "d.yaml"}, ("tflite",)),
        ({"no_latency": True}, ()),
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


def test_a_model_that_was_exchanged_in_between_is_not_written(reading: Task, tmp_path: Path) -> None:
    """The first process then writes the file itself, of the bytes whose hash the report has."""
    source: Any = SimpleNamespace(checkpoint=SimpleNamespace(fingerprint="of other bytes"))
    task = building(tmp_path, reading, model="of these bytes")
    with pytest.raises(WorkerDiedError, match="another one"):
        Inline({reading: source}).submit(task).result()
