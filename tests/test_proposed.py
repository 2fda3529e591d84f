"""Lines that a verdict proposes to type are taken by the command line, whatever the run was asked for."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest
import typer
from test_verdict import ACCURACY, FAR, FP32, INT8, LOST, REPORT, TRIED

from qexport.cli import app
from qexport.cli import demo as demos
from qexport.cli.demo import demo_job
from qexport.errors import MissingExtraError
from qexport.job.export_job import ExportJob
from qexport.reporting.report import ArtifactReport, Report
from qexport.reporting.verdict import verdicts

OUTCOMES: dict[str, dict[str, Any]] = {
    "slow": {"speedup": 0.8},
    "far": {"warnings": (FAR,)},
    "far, all tried": {"warnings": (FAR,), "passes": TRIED},
    "lost": {"accuracy": LOST},
    "few images": {"accuracy": replace(ACCURACY, images=4)},
    "not scored": {"accuracy": None},
}
EXPORTS = (
    ("tflite", "int8", "qexport m.pt --int8 --data d.yaml"),
    ("tflite", "int8", "qexport m.pt -f tflite --int8 --data=d.yaml --imgsz 480,640 --no-eval --effort none"),
    ("tflite", "int8", "qexport m.pt --int8 --data d.yaml --plan plan.json"),
    ("tflite", "int8", "qexport m.pt --int8 --data d.yaml --candidate candidate.npz"),
    ("tflite", "int8", "qexport m.pt --int8 --data d.yaml --layout nhwc"),
    ("tflite", "int8", "qexport m.pt --int8 --data d.yaml --normalised-boxes --max-drop 2"),
    ("tflite", "int8", "qexport m.pt --int8 --data d.yaml --max-drop=2 --repair"),
    ("tflite", "w8a16", "qexport m.pt --precision w8a16 --data d.yaml"),
    ("tflite", "int8-full", "qexport m.pt --precision int8-full --data d.yaml --io uint8"),
    ("tflite", "fp16", "qexport m.pt --half --data d.yaml"),
    ("tflite", "int8", "qexport --int8 --data d.yaml -- m.pt"),
    ("tflite", "int8", "qexport m.pt --target rpi5 --data d.yaml"),
    ("onnx", "int8", "qexport m.onnx --int8 --data d.yaml"),
    ("onnx", "int8", "qexport m.pt --format onnx --int8 --data d.yaml --cpu onnx=arm --opset 18"),
    ("tflite", "int8", "qexport export model=m.pt int8=True data=d.yaml"),
)
DEMOS = (
    ("tflite", "int8", "qexport demo"),
    ("onnx", "int8", "qexport demo --task pose --format onnx --out there"),
    ("tflite", "int8", "qexport demo --task=segment --quiet"),
)


def lines_for(report: Report, *artifacts: ArtifactReport) -> list[str]:
    found = verdicts(replace(report, artifacts=artifacts), lambda artifact: artifact.label)
    return [each.then for each in found if each.then]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[ExportJob]:
    """Of the command lines that are run, which end where a job would begin."""
    found: list[ExportJob] = []

    def begun(job: ExportJob, *_: Any) -> int:
        found.append(job)
        return 0

    monkeypatch.setattr(app, "_run", begun)
    return found


@pytest.mark.parametrize(("name", "precision", "command"), EXPORTS + DEMOS, ids=lambda each: str(each))
def test_what_is_proposed_can_be_typed(
    name: str, precision: str, command: str, jobs: list[ExportJob], capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("litert_torch", "onnxruntime", "openvino"):
        pytest.importorskip(module, reason="needs the extras of all formats")
    assert app.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err  # the run itself can be asked for
    source = "m.onnx" if "m.onnx" in command else "m.pt"
    artifact = replace(INT8, format=name, precision=precision)
    known = replace(REPORT, command=command, model=replace(REPORT.model, path=source))
    proposed = [line for each in OUTCOMES.values() for line in lines_for(known, replace(artifact, **each), FP32)]
    assert len(proposed) >= 2
    for line in proposed:
        words = shlex.split(line)
        assert words[0] == "qexport", line
        if words[1] == "sensitivity":
            command_of: Any = typer.main.get_command(app.verbs_app)
            command_of.commands["sensitivity"].make_context("sensitivity", words[2:])
        else:
            count = len(jobs)
            assert app.main(words[1:]) == 0, f"{line}: {capsys.readouterr().err}"
            assert len(jobs) == count + 1


def test_the_demo_takes_formats(jobs: list[ExportJob], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    assert app.main(["demo", "--format", "onnx", "--task", "obb"]) == 0
    assert [(job.format, job.precision, job.imgsz) for job in jobs] == [(("onnx",), "int8", (320, 320))]
    assert app.main(["demo", "--format", "onx"]) == 2
    assert "unknown format onx" in capsys.readouterr().err


@pytest.mark.parametrize(("task", "line"), [("detect", "qexport demo --format onnx"), ("pose", "--task pose --format")])
def test_the_demo_says_which_format_is_there(task: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def only(options: dict[str, Any]) -> None:
        raise MissingExtraError("format tflite needs litert_torch", "pip install 'qexport[tflite]'")

    def find(name: str) -> None:
        if name != "onnx":
            raise MissingExtraError(name, "nothing")

    monkeypatch.setattr(demos, "make_job", only)
    monkeypatch.setattr(demos, "find_backend", find)
    with pytest.raises(MissingExtraError, match=rf"pip install 'qexport\[tflite\]', or type .*{line}"):
        demo_job(task=task)
    with pytest.raises(MissingExtraError, match=r"pip install 'qexport\[tflite\]'$"):
        demo_job(task=task, formats="tflite")
