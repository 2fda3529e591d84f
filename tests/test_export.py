"""The walk over several formats: one that fails does not lose the others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qexport import pipeline as export
from qexport.backends.artifact import Artifact
from qexport.backends.device_fit import DeviceFit
from qexport.backends.registry import find_backend
from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.errors import ConversionError, EngineNotBuiltError, QexportError, VerificationError
from qexport.execution.worker import WorkerDiedError
from qexport.measurement.measure import measure
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.verification.result import ArtifactResult

REFUSED = ConversionError("no such kernel", "try another")
WRONG = VerificationError("another plan")
NO_ENGINE = EngineNotBuiltError("no TensorRT")


def outcomes(
    monkeypatch: pytest.MonkeyPatch, pending: export.Pending | None = None, **found: list[str | Exception]
) -> tuple[list[str], list[Any]]:
    """Walk over formats that each yield names, and may raise an error after them."""

    def write(source: Source, table: None, backend: Any, pending: export.Pending, clock: Clock) -> Iterator[str]:
        for item in found[backend.info.name]:
            if isinstance(item, Exception):
                raise item
            yield item

    monkeypatch.setattr(export, "find_backend", lambda name: SimpleNamespace(info=SimpleNamespace(name=name)))
    monkeypatch.setattr(export, "_write_format", write)
    source: Any = SimpleNamespace(job=SimpleNamespace(format=tuple(found), precision="int8"))
    written: Any
    written, failures = export._write_all(source, None, pending or {}, Clock(Silent()))
    return written, failures


def test_the_others_are_written_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    written, failures = outcomes(monkeypatch, one=["a", "b"], two=[REFUSED], three=["c"], four=[WRONG])
    assert written == ["a", "b", "c"]
    assert failures == [("two", REFUSED), ("four", WRONG)]


def test_a_graph_is_kept_where_its_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcomes(monkeypatch, one=["graph", NO_ENGINE]) == (["graph"], [("one", NO_ENGINE)])


def test_where_all_fail_the_first_error_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QexportError) as caught:
        outcomes(monkeypatch, one=[REFUSED], two=[WRONG])
    assert caught.value is REFUSED


def test_a_fault_of_ours_is_not_taken_for_a_format_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        outcomes(monkeypatch, one=["a"], two=[ZeroDivisionError()])


def test_what_a_second_process_writes_is_waited_for_last_and_listed_in_its_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    def find(name: str) -> Any:
        order.append(name)
        return SimpleNamespace(info=SimpleNamespace(name=name))

    monkeypatch.setattr(export, "_write_format", lambda source, table, backend, *_: iter([backend.info.name.upper()]))
    monkeypatch.setattr(export, "find_backend", find)
    source: Any = SimpleNamespace(job=SimpleNamespace(format=("slow", "one", "two"), precision="int8"))
    pending: export.Pending = {("slow", "int8"): Future(), ("slow", "fp32"): Future()}
    written: Any
    written, _ = export._write_all(source, None, pending, Clock(Silent()))
    assert order == ["one", "two", "slow"]
    assert written == ["SLOW", "ONE", "TWO"]


@pytest.mark.parametrize("failure", [None, REFUSED, WorkerDiedError("killed")])
def test_a_file_is_written_here_where_the_second_process_is_gone(
    failure: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply is taken as it is, an error too; only where there is none does this process do the work."""
    theirs, ours = (
        ArtifactResult(Artifact(Path(name), "tflite", "fp32", "", 0), find_backend("tflite")) for name in "ab"
    )
    monkeypatch.setattr(export, "write_float", lambda *_: ours)
    reply: Future[ArtifactResult] = Future()
    if failure:
        reply.set_exception(failure)
    else:
        reply.set_result(theirs)
    source: Any = None

    def write() -> ArtifactResult:
        return export._write(source, None, find_backend("tflite"), "fp32", {("tflite", "fp32"): reply})

    if failure is REFUSED:
        with pytest.raises(ConversionError, match="no such kernel"):
            write()
    else:
        assert write() is (ours if failure else theirs)


class Counted:
    """A runner that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        self.runs += 1
        return (batch,)


def test_only_what_runs_on_its_own_runtime_is_timed(tiny: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    runners: dict[str, Counted] = {}

    def runner(path: Path, threads: int) -> Counted:
        return runners.setdefault(path.name, Counted())

    written = []
    for name, file in {"onnx": "a.onnx", "tensorrt": "a_tensorrt.onnx"}.items():
        backend = find_backend(name)
        monkeypatch.setattr(backend, "runner", runner, raising=False)
        written.append(ArtifactResult(Artifact(Path(file), name, "fp32", "", 0), backend))
    engine = Artifact(Path("a.engine"), "tensorrt", "fp32", "", 0)
    written.append(ArtifactResult(engine, written[1].backend, engine=True))
    figures = measure(
        tiny, "detect", RunImages(), written, threads=1, accuracy=False, latency=True, clock=Clock(Silent())
    )
    assert set(runners) == {"a.onnx", "a.engine"}
    assert all(counted.runs > 0 for counted in runners.values())
    assert figures[Path("a_tensorrt.onnx")].latency is None
    assert figures[Path("a.onnx")].latency is not None


@pytest.mark.parametrize(
    ("format_", "file", "device", "own", "runtime"),
    [
        ("onnx", "a.onnx", "", True, "ONNX Runtime, CPU execution provider"),
        ("tensorrt", "a_tensorrt.onnx", "", False, "ONNX Runtime without fusion, in place of TensorRT"),
        ("tensorrt", "a.engine", "", True, "TensorRT"),
        ("edgetpu", "a.tflite", "Edge TPU", False, "LiteRT interpreter on the CPU, in place of the Edge TPU"),
        ("edgetpu", "a_edgetpu.tflite", "", False, ""),
        ("tflite", "a.tflite", "a micro", False, "built-in kernels elsewhere, in place of a micro"),
        ("tflite", "a.tflite", "", True, "built-in kernels elsewhere"),
    ],
)
def test_what_ran_an_artifact_and_whether_it_is_for_that(
    format_: str, file: str, device: str, own: bool, runtime: str
) -> None:
    fit, engine = DeviceFit(device, 3, ()) if device else None, file in ("a.engine", "a_edgetpu.tflite")
    written = ArtifactResult(
        Artifact(Path(file), format_, "int8", "", 0), find_backend(format_), fit=fit, engine=engine
    )
    assert written.own_runtime == own
    assert written.runtime.endswith(runtime)
    assert bool(written.runtime) == bool(runtime)
