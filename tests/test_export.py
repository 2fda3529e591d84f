"""The walk over several formats: one that fails does not lose the others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qexport import export
from qexport.backends import Artifact, find_backend
from qexport.clock import Clock
from qexport.errors import ConversionError, EngineNotBuiltError, QexportError, VerificationError
from qexport.inputs import RunImages
from qexport.job import ExportJob
from qexport.lower import Source, Written
from qexport.measure import measure
from qexport.program import Program
from qexport.progress import Silent

REFUSED = ConversionError("no such kernel", "try another")
WRONG = VerificationError("another plan")
NO_ENGINE = EngineNotBuiltError("no TensorRT")


def outcomes(monkeypatch: pytest.MonkeyPatch, **found: list[str | Exception]) -> tuple[list[str], list[Any]]:
    """Walk over formats that each yield names, and may raise an error after them."""

    def write(source: Source, table: None, backend: Any, clock: Clock) -> Iterator[str]:
        for item in found[backend.name]:
            if isinstance(item, Exception):
                raise item
            yield item

    monkeypatch.setattr(export, "find_backend", lambda name: SimpleNamespace(name=name))
    monkeypatch.setattr(export, "_write_format", write)
    source: Any = SimpleNamespace(job=SimpleNamespace(format=tuple(found)))
    written: Any
    written, failures = export._write_all(source, None, Clock(Silent()))
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


class Counted:
    """A runner that counts its runs."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.runs += 1
        return batch


def test_only_what_runs_on_its_own_runtime_is_timed(tiny: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    runners: dict[str, Counted] = {}

    def runner(path: Path, threads: int) -> Counted:
        return runners.setdefault(path.name, Counted())

    written = []
    for name, file in {"onnx": "a.onnx", "tensorrt": "a_tensorrt.onnx"}.items():
        backend = find_backend(name)
        monkeypatch.setattr(backend, "runner", runner, raising=False)
        written.append(Written(Artifact(Path(file), name, "fp32", "", 0), backend))
    engine = Artifact(Path("a.engine"), "tensorrt", "fp32", "", 0)
    written.append(Written(engine, written[1].backend))
    job = ExportJob(model="m.pt", no_eval=True)
    figures = measure(job, tiny, RunImages(), written, Clock(Silent()))
    assert set(runners) == {"a.onnx", "a.engine"}
    assert all(counted.runs > 0 for counted in runners.values())
    assert figures[Path("a_tensorrt.onnx")].latency is None
    assert figures[Path("a.onnx")].latency is not None
