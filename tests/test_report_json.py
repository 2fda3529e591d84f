"""report.json both ways: what a run writes is what it always wrote, and what is read back is what was written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import whole_run as run
from test_cli import imported_by

from qexport.errors import InputError
from qexport.job.options import ExportJob
from qexport.optimisation.pass_record import PassRecord
from qexport.optimisation.repair_record import CurvePoint, RepairRecord
from qexport.optimisation.tune_record import Trial, TuneRecord
from qexport.publish import judged, run_options
from qexport.reporting import assemble
from qexport.reporting.assemble import Inputs, Measured, make_report, with_artifacts
from qexport.reporting.load import Baseline, load_report, report_of
from qexport.reporting.report import BaselineInfo, Report, Warning, to_json

GOLDEN = Path(__file__).parent / "golden" / "report.json"
"""What the last version before reports were typed wrote of the same run."""
FIDELITY = {"fidelity_ceiling", "fidelity_interval", "fidelity50", "fidelity50_interval", "matched_boxes"}
ADDED = {
    "warnings_about",
    "training",
    "passes",
    "labelled",
    "likeness",
    "repair",
    "tuning",
    "min_images",
    "skipped",
    "taken",
    *FIDELITY,
}
REPAIR = RepairRecord(
    before=0.3,
    after=0.09,
    noise=0.02,
    images=12,
    float_macs=0.125,
    float_macs_before=0.0625,
    met=True,
    reason="0.5 % of FP32's accuracy is lost, at most 1 %",
    floats={"conv": "float to meet --max-drop 1"},
    curve=(
        CurvePoint(float_macs=0.0625, distance=0.3, lost_percent=2.5),
        CurvePoint(float_macs=0.125, distance=0.09, lost_percent=0.5, latency_ms=20.0, chosen=True),
    ),
)
TUNING = TuneRecord(
    speedup=1.25,
    wins=15,
    rounds=15,
    reason="1.25 times as fast as without, in 15 of 15 rounds, by first convolution",
    images=12,
    seconds=20.5,
    limit=120.0,
    floats={"conv": "float: 1.25x faster here"},
    changes=("signed activations",),
    curve=(
        Trial(name="the plan without tuning", float_macs=0.0, distance=0.3, latency_ms=10.0),
        Trial(name="attention", float_macs=0.1, outcome="could not be tried: no"),
        Trial(name="first convolution", float_macs=0.125, distance=0.09, speedup=1.25, latency_ms=8.0, chosen=True),
    ),
)
JOB = ExportJob(
    "models/m.pt",
    ("tflite", "onnx", "openvino", "tensorrt"),
    "int8",
    data="train.yaml",
    eval_data="val.yaml",
    threads=3,
    effort="none",
    out=Path("out"),
    max_size=3.0,
    min_retention=0.99,
    max_latency_ms=50.0,
)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Report:
    """The report of a made-up run with a gate, compared with one of other weights."""
    monkeypatch.setattr(assemble, "cpu_kind", lambda: "avx2")
    options = run_options(JOB, "qexport m.pt --int8")
    inputs = Inputs(options, run.CHECKPOINT, run.PROGRAM, run.TABLE, run.images(tmp_path))
    begun = make_report(inputs, run.MACHINE, run.FAILURES)
    measured = Measured(run.results(), run.figures(), run.evidence(), missing=run.MISSING)
    report = replace(with_artifacts(begun, measured, inputs, run.SECONDS), qexport="0.0.0")
    earlier = replace(report, warnings=(), model=replace(report.model, sha256="00" * 32))
    return judged(report, JOB, Baseline(BaselineInfo("old.json", "ab" * 32), earlier))


def kept(now: Any, before: Any, at: str = "") -> set[str]:
    """Compare JSON with what it was, order of keys included; return the keys that were added."""
    if isinstance(before, dict):
        assert [key for key in now if key in before] == list(before), at
        new = set(now) - set(before)
        return new.union(*(kept(now[key], before[key], f"{at}.{key}") for key in before))
    if isinstance(before, list):
        assert len(now) == len(before), at
        return set().union(*(kept(*pair, f"{at}.{i}") for i, pair in enumerate(zip(now, before, strict=True))))
    assert (now, type(now)) == (before, type(before)), at
    return set()


def test_nothing_that_was_written_has_changed(made: Report) -> None:
    before = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert kept(json.loads(to_json(made)), before) == ADDED


def test_what_is_read_is_what_was_written(made: Report, tmp_path: Path) -> None:
    passes = (PassRecord("bias correction", True, 0.25, 0.125, 8, 3.5, "less noise"), PassRecord("another", False))
    first, *others = made.artifacts
    first = replace(first, passes=passes, repair=REPAIR, tuning=TUNING, taken={"latency": "2026-01-02T03:04:05+00:00"})
    report = replace(made, artifacts=(first, *others))
    path = tmp_path / "report.json"
    path.write_text(to_json(report), encoding="utf-8")
    assert load_report(path) == report
    assert to_json(load_report(path)) == to_json(report)


def test_warnings_say_what_they_are_about(made: Report) -> None:
    about = {artifact.file_name: [warning.about for warning in artifact.warnings] for artifact in made.artifacts}
    # How it was written; unread images, few images, an overlap; restless, another CPU; the device, few kernels.
    wanted = ["artifact", *["accuracy"] * 3, *["latency"] * 2, *["artifact"] * 2]
    assert about["m_int8.tflite"] == wanted
    # An overlap, no accuracy in FP32; outputs; slower than FP32, and than what the runtime takes.
    assert about["m_int8.onnx"] == ["accuracy", "accuracy", "artifact", "latency", "latency"]
    assert made.artifacts[-1].warned("accuracy") == (Warning("accuracy", run.MISSING[0].text),)
    assert [warning.about for warning in made.warnings] == ["run", "run", "run", "accuracy", "run"]


def test_an_earlier_report_is_brought_to_this_schema(made: Report) -> None:
    """Warnings of those are about the whole artifact, or the run; a stand-in is known by its words alone."""
    old = {**json.loads(GOLDEN.read_text(encoding="utf-8")), "schema": 1}
    for name in ("qexport", "gate", "baseline", "unmeasured", "saved", "calibration"):
        del old[name]
    for entry in old["artifacts"]:
        for name in ("own_runtime", "needs", "arithmetic", "outputs", "by_default", "speedup_by_default", "gallery"):
            del entry[name]
    report = report_of(old)
    assert (report.schema, report.qexport, report.gate, report.unmeasured) == (2, "", None, ())
    assert {warning.about for warning in report.warnings} == {"run"}
    assert {warning.about for artifact in report.artifacts for warning in artifact.warnings} == {"artifact"}
    assert [artifact.own_runtime for artifact in report.artifacts] == [False, *[True] * 4]
    now = made.artifacts[0].accuracy
    assert now is not None
    assert report.artifacts[0].accuracy == replace(now, fidelity_ceiling=None)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"path": "a"}}, "model.sha256"),
        ({"threads": "two"}, "threads"),
        ({"threads": True}, "threads"),
        ({"seconds": {"read": "long"}}, "seconds.read"),
        ({"artifacts": {}}, "artifacts"),
        ({"artifacts": ["a"]}, "artifacts.0"),
        ({"warnings": [3]}, "warnings.0.text"),
        ({"evaluation": {"metrics": "mAP"}}, "evaluation.metrics"),
    ],
)
def test_a_field_of_another_type_is_named_in_one_line(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({**json.loads(GOLDEN.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(InputError) as refused:
        load_report(path)
    assert str(refused.value) == (
        f"{path} is not a report of qexport (its {named}): give a report.json that qexport wrote"
    )


def test_a_report_is_read_and_rendered_without_a_runtime() -> None:
    loaded = imported_by(
        "from pathlib import Path\n"
        "from qexport.reporting.load import load_report\n"
        "from qexport.reporting.summary import to_markdown\n"
        f"assert to_markdown(load_report(Path({str(GOLDEN)!r})))"
    )
    assert loaded.isdisjoint({"torch", "numpy", "onnx", "matplotlib"})
