"""The walk over several formats: one that fails does not lose the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qexport import pipeline
from qexport.backends.artifact import Artifact
from qexport.backends.device_fit import DeviceFit
from qexport.backends.registry import find_backend
from qexport.clock import Clock, elapsed
from qexport.data.selection import RunImages
from qexport.errors import ConversionError, EngineNotBuiltError, QexportError, VerificationError
from qexport.execution.executor import Executor, Task, WorkerDiedError
from qexport.job.options import ExportJob
from qexport.measurement.measure import measure
from qexport.opening import Run
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.steps.build import Built
from qexport.verification.result import ArtifactResult

REFUSED = ConversionError("no such kernel", "try another")
WRONG = VerificationError("another plan")
NO_ENGINE = EngineNotBuiltError("no TensorRT")


class Scripted:
    """An executor that builds nothing: every format's artifacts, or errors, are written down in advance."""

    def __init__(self, outcomes: Mapping[str, Sequence[Exception | None]]) -> None:
        self.left = {name: list(each) for name, each in outcomes.items()}
        self.done: list[str] = []

    def submit(self, task: Task) -> Future[Any]:
        """Give the next outcome of the format that is asked for."""
        asked, _, _ = task.arguments  # besides it the cache and a key
        target, future = asked.target, Future[Any]()
        self.done.append(f"{target.format} {target.precision}")
        error = self.left[target.format].pop(0)
        if error:
            future.set_exception(error)
        else:
            future.set_result(built(target.format, target.precision))
        return future


def built(name: str, precision: str) -> Built:
    artifact = Artifact(Path(f"{name}_{precision}"), name, precision, "", 0)
    return Built(ArtifactResult(artifact, find_backend(name)), {f"lower_{name}_{precision}": 2.0})


def run_of(executor: Executor, formats: Sequence[str], tmp_path: Path, **job: Any) -> Run:
    """A run that is ready to build, without a model."""
    source: Any = SimpleNamespace(checkpoint=SimpleNamespace(trained=False, fingerprint=""), program=None)
    options = {"no_eval": True, "no_latency": True, "no_build": True, **job}
    asked = ExportJob("a.pt", tuple(formats), "int8", out=tmp_path, **options)
    return Run(asked, source, RunImages(), Task(print), Clock(Silent()), executor)


def outcomes(
    tmp_path: Path,
    pending: pipeline.Pending | None = None,
    job: Mapping[str, Any] = {},
    **found: list[Exception | None],
) -> tuple[list[str], list[tuple[str, QexportError]]]:
    """Build formats of which every artifact is there (None), or an error."""
    run = run_of(Scripted(found), list(found), tmp_path, **job)
    written, failures = pipeline.write_all(run, None, {})
    return [f"{item.artifact.format} {item.artifact.precision}" for item in written], failures


def test_the_others_are_written_in_their_order(tmp_path: Path) -> None:
    written, failures = outcomes(tmp_path, openvino=[None], onnx=[REFUSED], tflite=[None], tensorrt=[WRONG])
    assert written == ["openvino int8", "tflite int8"]
    assert failures == [("onnx", REFUSED), ("tensorrt", WRONG)]


def test_a_file_is_kept_where_its_float_counterpart_fails(tmp_path: Path) -> None:
    written, failures = outcomes(tmp_path, job={"no_latency": False}, onnx=[None, WRONG])
    assert (written, failures) == (["onnx int8"], [("onnx", WRONG)])


def test_a_graph_is_kept_where_its_engine_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise NO_ENGINE

    monkeypatch.setattr(pipeline, "build_engine", fail)
    found = outcomes(tmp_path, job={"no_build": False}, tensorrt=[None])
    assert found == (["tensorrt int8"], [("tensorrt", NO_ENGINE)])


def test_where_all_fail_the_first_error_counts(tmp_path: Path) -> None:
    with pytest.raises(QexportError) as caught:
        outcomes(tmp_path, onnx=[REFUSED], openvino=[WRONG])
    assert caught.value is REFUSED


def test_a_fault_of_ours_is_not_taken_for_a_format_that_failed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        outcomes(tmp_path, onnx=[None], openvino=[ZeroDivisionError()])


def test_what_is_built_beside_is_waited_for_last_and_listed_in_its_place(tmp_path: Path) -> None:
    reply: Future[Built] = Future()
    here = Scripted({"onnx": [None], "openvino": [None]})
    here_submit = here.submit

    def submit(task: Task) -> Future[Any]:
        if not here.done:
            assert not reply.done()
        else:
            reply.set_result(built("tflite", "int8"))
        return here_submit(task)

    here.submit = submit  # type: ignore[method-assign]
    run = run_of(here, ["tflite", "onnx", "openvino"], tmp_path)
    written, _ = pipeline.write_all(run, None, {("tflite", "int8"): reply})
    assert here.done == ["onnx int8", "openvino int8"]
    assert [item.artifact.format for item in written] == ["tflite", "onnx", "openvino"]
    assert run.clock.seconds.keys() >= {"wait_tflite_int8", "lower_tflite_int8", "lower_onnx_int8"}
    # The other process was at work beside this one: its own two seconds are no part of the run's.
    assert elapsed(run.clock.seconds) == pytest.approx(4 + run.clock.seconds["wait_tflite_int8"])


@pytest.mark.parametrize("failure", [None, REFUSED, WorkerDiedError("killed")])
def test_a_file_is_built_here_where_the_second_process_is_gone(failure: Exception | None, tmp_path: Path) -> None:
    """A reply is taken as it is, an error too; only where there is none does this process do the work."""
    reply: Future[Built] = Future()
    if failure:
        reply.set_exception(failure)
    else:
        reply.set_result(built("tflite", "int8"))
    here = Scripted({"tflite": [None]})
    run = run_of(here, ["tflite"], tmp_path)
    if failure is REFUSED:
        with pytest.raises(ConversionError, match="no such kernel"):
            pipeline.write_all(run, None, {("tflite", "int8"): reply})
    else:
        written, _ = pipeline.write_all(run, None, {("tflite", "int8"): reply})
        assert len(written) == 1
    assert here.done == (["tflite int8"] if isinstance(failure, WorkerDiedError) else [])


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
