"""What fails after artifacts were written loses nothing else: the report says what is missing and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import gettempdir
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from refusals import MODEL, PREFIX, SHAPES
from torch import zeros

from qexport import publish
from qexport.backends.artifact import Artifact
from qexport.backends.protocol import Runner
from qexport.backends.registry import find_backend
from qexport.cli.app import main
from qexport.clock import Clock
from qexport.data.selection import RunImages
from qexport.errors import InputError, MeasurementError
from qexport.inspection.run_folder import report_beside
from qexport.job.options import ExportJob
from qexport.measurement import accuracy, measure
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.evidence import gather as evidence
from qexport.measurement.measure import Figures
from qexport.programs.onnx.session import OnnxRunner
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.reporting.load import Baseline
from qexport.reporting.report import BaselineInfo, ModelInfo, Report, Warning
from qexport.verification.result import ArtifactResult

MODEL_INFO = ModelInfo(path="a.pt", sha256="", head="end2end", imgsz=(64, 64), batch=1)
FAULTS: dict[str, Exception] = {
    "of a library": RuntimeError("no such kernel\nand a second line"),
    "of memory": MemoryError(),
    "of a decoder": AssertionError(),
    "of the disk": OSError(28, "No space left on device"),
    "of a file": InputError("image a.jpg is empty", "restore it"),
    "of an index": KeyError("000001-a.jpg"),
}
REASONS = {
    "of a library": ("RuntimeError: no such kernel", 7),
    "of memory": ("out of memory: use a smaller --imgsz or --batch", 7),
    "of a decoder": ("AssertionError", 7),
    "of the disk": (f"{gettempdir()} cannot be written (No space left on device): make room, or set TMPDIR", 7),
    "of a file": ("image a.jpg is empty: restore it", 3),
    "of an index": ("KeyError: '000001-a.jpg'", 7),
}


def failing(error: Exception, of: str = "") -> Callable[..., Any]:
    """Raises where one of its arguments names the artifact `of`; without a name always."""

    def fail(*arguments: Any, **_: Any) -> Any:
        if of in str(getattr(arguments[0], "runner", arguments[0])):
            raise error
        return Accuracy(0.5, 0.6, None, 4, (), {})

    return fail


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_reason_is_one_line_with_the_exit_code_of_its_kind(fault: str) -> None:
    missing: list[Unmeasured] = []
    with attempt(missing, "accuracy", Path("x/a.onnx"), Path("x/b.onnx")):
        raise FAULTS[fault]
    reason, code = REASONS[fault]
    assert [(each.artifact, each.reason, each.exit_code) for each in missing] == [
        ("a.onnx", reason, code),
        ("b.onnx", reason, code),
    ]
    assert missing[0].text == f"accuracy could not be scored: {reason}"
    assert ("Traceback" in missing[0].details) == (fault not in ("of a file", "of memory", "of the disk"))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_is_no_failure_of_a_step(interrupt: type[BaseException]) -> None:
    missing: list[Unmeasured] = []
    with pytest.raises(interrupt), attempt(missing, "accuracy"):
        raise interrupt
    assert missing == []


class Runs:
    """A runner that fails, or does not."""

    def __init__(self, name: str, error: Exception | None) -> None:
        self.name, self.error = name, error

    def __str__(self) -> str:
        return self.name

    def __call__(self, batch: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.error:
            raise self.error
        return (batch,)


def written(name: str, error: Exception | None = None, loads: Exception | None = None, precision: str = "int8") -> Any:
    def runner(*_: Any) -> Runs:
        if loads:
            raise loads
        return Runs(name, error)

    backend = SimpleNamespace(info=SimpleNamespace(name="onnx"), runner=runner)
    artifact = SimpleNamespace(path=Path(name), precision=precision)
    return SimpleNamespace(backend=backend, timed=True, runs_here=True, artifact=artifact, engine=False)


def measured(
    program: Program,
    images: RunImages,
    items: list[Any],
    missing: list[Unmeasured],
    accuracy: bool = False,
    latency: bool = False,
) -> dict[Path, Figures]:
    return measure.measure(
        program,
        "detect",
        images,
        items,
        threads=2,
        accuracy=accuracy,
        latency=latency,
        clock=Clock(Silent()),
        missing=missing,
    )


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("when", ["loading", "running"])
def test_a_file_that_does_not_run_does_not_stop_the_others_timing(
    fault: str, when: str, tiny: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qexport.measurement.latency.PAUSE", 0)
    bad = written("bad", FAULTS[fault] if when == "running" else None, FAULTS[fault] if when == "loading" else None)
    missing: list[Unmeasured] = []
    items = [written("good"), bad, written("fine")]
    found = measured(tiny, RunImages(), items, missing, latency=True)
    assert {path.name for path, each in found.items() if each.latency} == {"good", "fine"}
    assert [(each.artifact, each.what, each.reason) for each in missing] == [("bad", "latency", REASONS[fault][0])]


@pytest.mark.parametrize("fault", list(FAULTS))
@pytest.mark.parametrize("bad", ["a_int8", "a_fp32", "evaluation set"])
def test_a_failing_evaluation_is_that_of_one_file(
    fault: str, bad: str, tiny: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "evaluate_shards", lambda load, *_, **__: failing(FAULTS[fault], bad)(load()))
    made = failing(FAULTS[fault]) if bad == "evaluation set" else lambda *_, **__: (SimpleNamespace(links={}),)
    monkeypatch.setattr(measure, "make_shards", made)
    images: Any = SimpleNamespace(evaluation_data="set", evaluation=(), classes={}, labelled=True)
    items = [written("a_int8.onnx"), written("a_fp32.onnx", precision="fp32"), written("a_fp16.onnx", precision="fp16")]
    missing: list[Unmeasured] = []
    found = measured(tiny, images, items, missing, accuracy=True)
    lost = {path.name for path, each in found.items() if each.accuracy is None}
    names = {item.artifact.path.name for item in items}
    assert lost == (names if bad == "evaluation set" else {f"{bad}.onnx"})
    assert {each.artifact for each in missing} == lost
    assert {each.reason for each in missing} == {REASONS[fault][0]}


@pytest.mark.parametrize(
    ("step", "what", "lost"),
    [
        ("resampled", "intervals of accuracy", "intervals"),
        ("class_figures", "accuracy of classes", "per_class"),
        ("confidence_shift", "shift of confidence", "confidence"),
        ("fidelity_parts", "parts of fidelity", "fidelity"),
        ("evaluated_thresholds", "thresholds", "thresholds"),
        ("gallery", "gallery", "gallery"),
        ("_noise", "noise of layers", "layers"),
    ],
)
def test_a_part_of_the_evidence_that_fails_leaves_the_others(
    step: str, what: str, lost: str, tiny: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_image: Any = {"a": None}
    figures = Figures(Accuracy(0.5, 0.6, None, 4, (), {}, scores=by_image, found=by_image))
    parts: Mapping[str, Any] = {
        "resampled": lambda *_: zeros(3),
        "intervals": lambda *_: "intervals",
        "class_figures": lambda *_: "per_class",
        "confidence_shift": lambda *_: "confidence",
        "fidelity_parts": lambda *_: "fidelity",
        "evaluated_thresholds": lambda *_: "thresholds",
        "gallery": lambda *_: "gallery",
        "_noise": lambda *_: ("layers", None),
    }
    for name, part in parts.items():
        monkeypatch.setattr(evidence, name, part)
    monkeypatch.setattr(evidence, step, failing(ValueError("of no use")))
    backend = find_backend("onnx")
    items = [ArtifactResult(Artifact(Path(p), "onnx", p, "", 0), backend) for p in ("int8", "fp32")]
    missing: list[Unmeasured] = []
    measured = {Path("int8"): figures, Path("fp32"): figures}
    found = evidence.gather(tiny, "detect", None, items, measured, Clock(Silent()), missing)[Path("int8")]
    every = {"intervals", "per_class", "confidence", "fidelity", "thresholds", "gallery", "layers"}
    assert {name for name in every if getattr(found, name)} == every - {lost}
    assert {each.what for each in missing} == {what}


@pytest.fixture
def few(tmp_path: Path) -> str:
    """The demo's data set with two images to score on."""
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text(encoding="utf-8"))
    listing = tmp_path / "few.txt"
    listing.write_text("\n".join(str(path) for path in sorted((SHAPES / "images" / "val").iterdir())[:2]))
    place = tmp_path / "few.yaml"
    place.write_text(yaml.safe_dump({**content, "path": str(SHAPES), "val": str(listing)}), encoding="utf-8")
    return str(place)


@pytest.mark.slow
def test_a_run_with_failing_steps_leaves_everything_else(
    few: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One file's evaluation, the page and the samples fail; the other file is scored, and all is on disk."""

    def scored(load: Callable[[], Runner], *given: Any, **named: Any) -> Accuracy:
        if not isinstance(getattr(load(), "runner", None), OnnxRunner):
            raise RuntimeError("the validator has a fault")
        return accuracy.evaluate_shards(load, *given, **named)

    monkeypatch.setattr(measure, "evaluate_shards", scored)
    monkeypatch.setattr(publish, "keep_samples", failing(ValueError("no samples today")))
    monkeypatch.setattr(publish, "write_page", failing(TypeError("no page today")))
    out, names = tmp_path / "out", ("shapes26_fp32.onnx", "shapes26_fp32_openvino_model")
    words = [str(MODEL), "--imgsz", "64", "--format", "onnx,openvino", "--data", few, "--no-latency", "--out", str(out)]
    words += ["--max-size", "9", "--report", str(tmp_path / "page.html"), "--junit", str(tmp_path / "j.xml")]
    assert main([*words, "--summary", str(tmp_path / "s.md")]) == MeasurementError.exit_code == 7
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    scores = [entry["accuracy"] and entry["accuracy"]["images"] for entry in report["artifacts"]]
    assert scores == [2, None]
    reason = "accuracy could not be scored: RuntimeError: the validator has a fault"
    assert reason in report["artifacts"][1]["warnings"]
    assert not any("could not be scored" in text for text in report["artifacts"][0]["warnings"])
    assert {each["what"] for each in report["unmeasured"]} == {"accuracy", "samples", "page"}
    assert report["gate"]["passed"] is True
    assert not any("ended before" in warning for warning in report["warnings"])
    for name in names:
        manifest = json.loads((out / f"{name}.manifest.json").read_text(encoding="utf-8"))
        assert manifest["samples"] is None
    shown, errors = capfd.readouterr()
    assert reason in " ".join(shown.split())
    lines = errors.splitlines()
    assert f"{PREFIX}{names[1]}: {reason}" in lines
    assert f"{PREFIX}run: page could not be made: TypeError: no page today" in lines
    assert reason in (tmp_path / "s.md").read_text(encoding="utf-8")
    cases = ElementTree.parse(tmp_path / "j.xml").getroot().iter("error")
    assert "RuntimeError: the validator has a fault" in {case.get("message") for case in cases}


@pytest.mark.parametrize("fault", ["of a library", "of an index", "of a decoder"])
@pytest.mark.parametrize("step", ["check", "compare", "save_report", "write_page", "write_summary", "write_junit"])
def test_every_step_after_measuring_may_fail_alone(
    step: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = Report("qexport", MODEL_INFO, None, None, (), {}, 2)
    done: list[str] = []

    def noting(name: str, answer: Any = None) -> Callable[..., Any]:
        def note(*_: Any) -> Any:
            done.append(name)
            return answer

        return note

    answers = {"check": (), "compare": ((), ())}
    for name in ("save_report", "write_page", "write_summary", "write_junit", "check", "compare"):
        monkeypatch.setattr(publish, name, noting(name, answers.get(name)))
    monkeypatch.setattr(publish, step, failing(FAULTS[fault]))
    baseline = Baseline(BaselineInfo("b.json"), report)
    page, summary, junit = (tmp_path / name for name in ("page.html", "s.md", "j.xml"))
    job = ExportJob("a.pt", out=tmp_path, report=page, summary=summary, junit=junit, no_eval=True)
    made = publish.publish(replace(report, unmeasured=()), job, baseline)
    expected = {"check", "compare", "save_report", "write_page", "write_summary", "write_junit"} - {step}
    assert set(done) == expected - ({"write_page"} if step == "save_report" else set())
    assert [each.reason for each in made.unmeasured] == [REASONS[fault][0]]
    assert Warning("run", made.unmeasured[0].text) in made.warnings


def test_a_run_that_is_ended_leaves_a_report_of_what_it_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the user, or by the system for want of memory: manifests and report are there before anything is measured."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "measure", interrupted)
    monkeypatch.setattr(publish, "make_manifest", lambda *_: {"artifact": "a.onnx"})
    source: Any = SimpleNamespace(checkpoint=SimpleNamespace(task="detect"), program=None)
    begun = Report("qexport", MODEL_INFO, None, None, (), {}, 2)
    inputs: Any = None
    with pytest.raises(KeyboardInterrupt):
        publish.measure_run(
            source,
            ExportJob("a.pt", out=tmp_path),
            RunImages(),
            None,
            [written(str(tmp_path / "a.onnx"))],
            begun,
            Clock(Silent()),
            publish.Standing(source, ExportJob("a.pt", out=tmp_path), None, inputs),
        )
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert content["warnings"] == ["the run ended before everything was measured"]
    assert json.loads((tmp_path / "a.onnx.manifest.json").read_text(encoding="utf-8")) == {"artifact": "a.onnx"}


@dataclass(frozen=True)
class Said:
    """What a report says of artifacts, as little as its readers need."""

    artifacts: tuple[Mapping[str, str], ...]
    warnings: tuple[Warning, ...] = ()
    environment: None = None
    command: str = ""


def said(items: Iterable[ArtifactResult]) -> Any:
    entries = [(each.artifact.path.name, each.artifact.sha256, each.artifact.format) for each in items]
    return Said(tuple({"path": a, "sha256": b, "format": c, "precision": "int8"} for a, b, c in entries))


def lies_there(path: Path, content: str) -> ArtifactResult:
    """An artifact that was written; what is in it stands for its hash."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    name = path.suffix.removeprefix(".")
    return ArtifactResult(Artifact(path, name, "int8", content, 3), find_backend(name))


def reports_in(folder: Path) -> dict[str, dict[str, str]]:
    """What each report of a folder says: name of an artifact → its hash."""
    contents = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("report*.json")}
    return {name: {each["path"]: each["sha256"] for each in said["artifacts"]} for name, said in contents.items()}


def test_what_is_there_is_told_before_the_next_one_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is ended between two formats leaves no file that another run's report is of."""
    monkeypatch.setattr(publish, "begin_report", lambda _, items, *__: said(items))
    monkeypatch.setattr(publish, "make_manifest", lambda _, item, *__: {"sha256": item.artifact.sha256})
    monkeypatch.setattr(publish, "save_report", lambda report, path: path.write_text(json.dumps(asdict(report))))
    out, old, new = tmp_path / "out", {"a.onnx": "old", "a.tflite": "old"}, {"a.onnx": "new", "a.tflite": "new"}
    source: Any = None
    inputs: Any = None
    standing = publish.Standing(source, ExportJob("a.pt", out=out), None, inputs)
    first = [lies_there(out / name, "old") for name in old]
    standing.describe(first, said(first))
    assert reports_in(out) == {"report.json": old}

    standing, kept = publish.Standing(source, ExportJob("a.pt", out=out), None, inputs), "report_onnx-tflite_int8.json"
    standing.add(lies_there(tmp_path / "a.onnx", "a trial"))
    assert reports_in(out) == {"report.json": old}
    standing.add(lies_there(out / "a.onnx", "new"))
    assert reports_in(out) == {"report.json": {"a.onnx": "new"}, kept: old}
    assert report_beside(out / "a.onnx").name == "report.json"
    assert report_beside(out / "a.tflite").name == kept
    standing.tidy()
    assert (out / kept).is_file()  # the figures of a.tflite
    standing.add(lies_there(out / "a.tflite", "new"))
    standing.tidy()
    assert reports_in(out) == {"report.json": new}
    again = publish.Standing(source, ExportJob("a.pt", out=out), None, inputs)
    for name in new:
        again.add(lies_there(out / name, "new"))
    again.tidy()
    assert reports_in(out) == {"report.json": new}, "the same bytes, written anew"
    standing.describe(first, said(first))  # as when measuring begins
    standing.add(lies_there(out / "b.onnx", "too late"))
    assert reports_in(out) == {"report.json": old}
    assert not (out / "b.onnx.manifest.json").exists()
