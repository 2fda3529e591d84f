"""Which profile a run plans for, and that each runtime is timed by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import demo_checkpoint
from numpy.typing import NDArray

from qexport import pipeline
from qexport.backends.protocol import Runner
from qexport.backends.registry import find_class
from qexport.clock import Clock
from qexport.data.input_form import InputSpec
from qexport.data.selection import RunImages
from qexport.detections.layout import HeadLayout
from qexport.errors import ConversionError
from qexport.execution.executor import Inline, Task
from qexport.job.options import ExportJob
from qexport.measurement import measure
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.latency import Latency
from qexport.opening import Run
from qexport.planning.plan import QuantPlan
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.steps.build import build
from qexport.steps.plan import make_target
from qexport.system import machine as cpu_kinds


@pytest.mark.parametrize("name", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("asked", "machine", "pairs"),
    [
        ("auto", "avx2", True),
        ("auto", "vnni", False),
        ("vnni", "avx2", False),
        ("avx2", "vnni", True),
        ("arm", "avx2", False),
    ],
)
def test_weights_are_made_for_the_cpu_that_is_asked_for(
    name: str, asked: str, machine: str, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_kinds, "cpu_kind", lambda: machine)
    target = make_target(name, "int8", asked)
    assert target.profile is not None
    assert target.cpu == (machine if asked == "auto" else asked)
    assert (target.profile.name, target.profile.saturating_pair_accumulation) == (name, pairs)


@pytest.mark.parametrize(
    ("model", "name", "precision", "remedy", "expected"),
    [
        (
            "a.pt",
            "tflite",
            "int8",
            "report it",
            "report it; other formats may take it: --format onnx,openvino,tensorrt",
        ),
        (
            "a.pt",
            "onnx",
            "int8",
            "report it",
            "report it; other formats may take it: --format openvino,tensorrt,tflite",
        ),
        ("a.onnx", "onnx", "int8", "report it", "report it; other formats may take it: --format openvino,tensorrt"),
        ("a.pt", "onnx", "int8", "try --format tflite", "try --format tflite"),
        ("a.pt", "tflite", "w8a16", "report it", "report it"),
        ("a.pt", "edgetpu", "int8-full", "report it", "report it"),
    ],
)
def test_a_refusal_says_which_formats_may_take_the_model(
    model: str,
    name: str,
    precision: str,
    remedy: str,
    expected: str,
    tiny: Program,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any) -> None:
        raise ConversionError("there is no kernel for it", remedy)

    monkeypatch.setattr(find_class(name), "lower", refuse)
    source = Source(demo_checkpoint(), tiny)
    run = Run(
        ExportJob(model, format=(name,), out=tmp_path),
        source,
        RunImages(),
        Task(print),
        Clock(Silent()),
        Inline(),
    )
    profile = make_target(name, precision).profile
    assert profile is not None
    given = QuantPlan(profile.name, tiny.fingerprint, frozenset(), {})
    asked = replace(pipeline.request(run, name, precision), plan=given)
    with pytest.raises(ConversionError) as found:
        build(source, asked)
    assert (found.value.what, found.value.remedy) == ("there is no kernel for it", expected)


def test_each_runtime_is_timed_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[set[str]] = []

    def timed(runners: Mapping[str, Runner], batch: NDArray[np.float32], on_round: object) -> dict[str, Latency]:
        together.append({name.strip() for name in runners})
        return {path: Latency(2.0, 3.0, 1.0, 40) for path in runners}

    def written(backend: str, path: str) -> Any:
        runtime = SimpleNamespace(info=SimpleNamespace(name=backend), runner=lambda *_: None)
        artifact = SimpleNamespace(path=Path(path), precision="int8")
        return SimpleNamespace(backend=runtime, timed=backend != "tensorrt", artifact=artifact)

    monkeypatch.setattr(measure, "measure_latency", timed)
    items = [written(*pair) for pair in (("onnx", "a"), ("tensorrt", "b"), ("openvino", "c"), ("onnx", "d"))]
    program: Any = SimpleNamespace(
        values={"images": SimpleNamespace(shape=(1, 3, 32, 32))},
        input=InputSpec((32, 32)),
        layout=HeadLayout((8,), (32, 32), 1, head="end2end"),
    )
    missing: list[Unmeasured] = []
    found = measure.measure(
        program,
        "detect",
        RunImages(),
        items,
        threads=1,
        accuracy=False,
        latency=True,
        clock=Clock(Silent()),
        missing=missing,
    )
    assert missing == []
    assert together == [{"a", "d"}, {"c"}]
    assert {str(path) for path, figures in found.items() if figures.latency} == {"a", "c", "d"}
