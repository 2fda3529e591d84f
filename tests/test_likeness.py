"""Artifacts that are far from FP32 are warned of wherever their figures are, and fail with --strict."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO, demo_images
from reports import accuracy, artifact, report

from qexport.backends.artifact import Artifact
from qexport.backends.registry import find_backend
from qexport.calibration.calibrate import calibrate
from qexport.calibration.calibration_table import CalibrationTable
from qexport.cli.app import main
from qexport.detections.thresholds import Thresholds
from qexport.inspection.recheck import recheck
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.measure import Figures
from qexport.optimisation.candidate import Candidate
from qexport.planning.plan import QuantPlan, save_plan
from qexport.programs.program import Program
from qexport.reporting.junit import to_junit
from qexport.reporting.likeness import likeness_warnings, strict_outcomes
from qexport.reporting.load import load_report, report_of
from qexport.reporting.page.render import render
from qexport.reporting.report import to_json
from qexport.reporting.summary import MARK, to_markdown
from qexport.reporting.thresholds import advice, furthest
from qexport.steps.plan import make_target, plan
from qexport.verification.against_float import likeness
from qexport.verification.likeness import Likeness
from qexport.verification.outcome import OutputFidelity
from qexport.verification.result import ArtifactResult

IMAGES = demo_images("train", 6)
FOUND = Thresholds(0.25, 0.21, {"0": 0.3, "2": 0.22, "1": 0.21}, -0.031, 32, {"0": 40, "2": 10, "1": 9})
FAR = "far from FP32: fidelity 0.412, 0.85 is the least"


def candidate(program: Program, table: CalibrationTable) -> Candidate:
    made = plan(program, table, make_target("onnx", "int8", "avx2"))
    assert made is not None
    return Candidate(program, made, program)


def item(likeness: Likeness | None) -> ArtifactResult:
    return ArtifactResult(
        Artifact(Path("a_int8.onnx"), "onnx", "int8", "0" * 64, 1), find_backend("onnx"), likeness=likeness
    )


def warned(likeness: Likeness | None, figures: Figures | None = None) -> list[str]:
    found = likeness_warnings(item(likeness), figures or Figures())
    assert {each.about for each in found} <= {"likeness"}
    return [each.text.removeprefix("far from FP32: ") for each in found]


@pytest.fixture(scope="module")
def good(demo_program: Program) -> Candidate:
    return candidate(demo_program, calibrate(demo_program, IMAGES, lambda: None))


def coarse(plan: QuantPlan, names: tuple[str, ...]) -> QuantPlan:
    """Logits with the step of boxes in pixels."""
    changed = {name: replace(plan.tensors[name], scale=(8.0,), zero_point=(128,)) for name in names}
    return replace(plan, tensors={**plan.tensors, **changed})


def test_a_good_plan_is_not_warned_of(good: Candidate) -> None:
    like = likeness(good, IMAGES)
    assert like is not None
    assert like.images == len(IMAGES)
    assert set(like.sqnr) == set(good.program.raw.all)
    assert like.found_float > 0
    assert like.thresholds is not None
    assert like.thresholds.everything == pytest.approx(0.25, abs=0.1)
    assert warned(like) == []


def test_scores_and_boxes_under_one_scale_are_warned_of(good: Candidate) -> None:
    like = likeness(replace(good, plan=coarse(good.plan, good.program.raw.scores)), IMAGES)
    assert like is not None
    (text,) = warned(like)
    assert text == f"{like.found} objects are found in 6 calibration images, FP32 finds {like.found_float}"
    assert like.found > 2 * like.found_float


def test_one_huge_channel_is_warned_of(demo_program: Program) -> None:
    value = demo_program.values["model_16_cv1_conv"]
    changed = {path: demo_program.graph.parameter(path).clone() for path in (value.weight, value.bias)}
    for parameter in changed.values():
        parameter[0] *= 1000
    program = demo_program.with_parameters(changed)
    like = likeness(candidate(program, calibrate(program, IMAGES, lambda: None)), IMAGES)
    assert any("SQNR of model_" in text and text.endswith("10 dB is the least") for text in warned(like))


def test_without_a_readable_image_nothing_is_said(good: Candidate, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    assert likeness(good, [tmp_path / "a.jpg"]) is None


@pytest.mark.parametrize(
    ("like", "told"),
    [
        (Likeness(8, {"box": 10.0, "score": None}, 0.8, 20, 11), []),
        (Likeness(8, {"a": 9.9, "b": 3.0}), ["SQNR of a 9.9 dB, b 3.0 dB on 8 calibration images, 10 dB is the least"]),
        (Likeness(8, {}, 0.79, 20, 20), ["79% of what is found in 8 calibration images agrees, 80% is the least"]),
        (Likeness(8, {}, 0.0, 3, 0), ["no objects are found in 8 calibration images, FP32 finds 3"]),
        (Likeness(8, {}, 1.0, 20, 10), ["10 objects are found in 8 calibration images, FP32 finds 20"]),
        (Likeness(8, {}, 1.0, 0, 10), ["10 objects are found in 8 calibration images, FP32 finds none"]),
        (Likeness(8, {}, 1.0, 4, 9), []),
        (Likeness(8, {}, None, 0, 0), []),
        (None, []),
    ],
)  # fmt: skip
def test_limits_on_calibration_images(like: Likeness | None, told: list[str]) -> None:
    assert warned(like) == told


@pytest.mark.parametrize(
    ("fidelity", "sqnr", "told"),
    [
        (0.85, 10.0, []),
        (0.412, None, [FAR.removeprefix("far from FP32: ")]),
        (None, 9.0, ["SQNR of out 9.0 dB on 7 evaluation images, 10 dB is the least"]),
    ],
)
def test_limits_on_evaluation_images(fidelity: float | None, sqnr: float | None, told: list[str]) -> None:
    outputs = (OutputFidelity("out", sqnr, 0.9, 0.9, 7),)
    assert warned(None, Figures(Accuracy(0.4, 0.5, fidelity, 60, (), {}), None, outputs)) == told


def far_report(**changes: Any) -> Any:
    entry = artifact(warnings=[FAR], **changes)
    return report({**entry, "warnings_about": ["likeness"]}, artifact("fp32"))


def test_a_warning_is_wherever_the_figures_are() -> None:
    made = far_report()
    far = made.artifacts[0]
    assert [far.warned(about)[0].text for about in ("accuracy", "latency", "artifact", "size")] == [FAR] * 4
    (row,) = (line for line in to_markdown(made).splitlines() if line.startswith("| `yolo26n_int8"))
    assert row.count(MARK) == 7  # every figure of accuracy and latency
    assert f"- {MARK} `yolo26n_int8.onnx`: {FAR}" in to_markdown(made)
    assert f"warning: {FAR}" in to_junit(made)
    assert render(made).count(FAR) > 7
    assert report_of(json.loads(to_json(made))).artifacts[0].warnings == far.warnings


def test_strict_is_a_rule_of_the_gate() -> None:
    (failed,) = strict_outcomes(far_report(), "int8")
    assert (failed.rule, failed.artifact, failed.passed, failed.figure) == ("strict", "yolo26n_int8.onnx", False, 1.0)
    assert failed.text == f"yolo26n_int8.onnx is {FAR}"
    (passed,) = strict_outcomes(report(artifact(warnings=["another"]), artifact("fp32")), "int8")
    assert passed.passed


def test_a_reader_is_told_which_threshold_to_use() -> None:
    told = report(artifact(accuracy={**accuracy(), "thresholds": vars(FOUND)}))
    (each,) = told.artifacts
    line = "scores are lower than FP32's: use a threshold of 0.21 where you used 0.25"
    assert advice(each) == line
    assert f"`yolo26n_int8.onnx`: {line}" in to_markdown(told)
    assert furthest(FOUND) == ["0", "2"]  # 0.05 and 0.03 off; class 1 was found too seldom to have its own
    page = render(told)
    assert 'data-figure="artifacts.0.accuracy.thresholds.everything" value="0.21">0.21<' in page
    assert page.index("thresholds.classes.0") < page.index("thresholds.classes.2")
    assert "thresholds.classes.1" not in page
    same = replace(FOUND, everything=0.2504)
    assert advice(replace(each, accuracy=None, likeness=Likeness(8, {}, thresholds=same))) == ""
    calibrated = replace(each, accuracy=None, likeness=Likeness(32, {}, thresholds=FOUND))
    assert advice(calibrated) == f"{line}; qexport snippet does"
    both = replace(each, likeness=Likeness(32, {}, thresholds=replace(FOUND, everything=0.272, images=24)))
    own = "scores are higher than FP32's: use a threshold of 0.27 where you used 0.25; qexport snippet does"
    assert advice(both) == own, "one figure, which the file has"
    assert advice(replace(both, likeness=Likeness(32, {}, thresholds=same))) == "", "the file counts as FP32 does"


def test_a_plan_by_hand_fails_a_strict_run_and_everything_is_kept(
    good: Candidate, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its exit code is the gate's, and the file says what to make of its scores."""
    save_plan(coarse(good.plan, good.program.raw.scores), tmp_path / "edited.json")
    words = [str(DEMO / "shapes26.pt"), "--data", str(DEMO / "shapes" / "shapes.yaml"), "--format", "onnx", "--int8"]
    words += ["--imgsz", "96", "--cpu", "avx2", "--calib-images", "12", "--no-eval", "--no-latency", "--strict"]
    words += ["--effort", "none"]
    out = tmp_path / "out"
    assert main([*words, "--quiet", "--plan", str(tmp_path / "edited.json"), "--out", str(out)]) == 9
    assert "qexport: error: strict: shapes26_int8.onnx is far from FP32: " in capfd.readouterr().err
    saved = load_report(out / "report.json")
    assert saved.gate is not None
    assert [(rule.rule, rule.passed) for rule in saved.gate.rules] == [("strict", False)]
    assert [warning.about for warning in saved.artifacts[0].warnings] == ["likeness"]
    like = saved.artifacts[0].likeness
    assert like is not None
    assert like.images == 12
    assert like.thresholds is not None
    stored = find_backend("onnx").read(out / "shapes26_int8.onnx").metadata["thresholds"]
    assert ast.literal_eval(stored) == vars(like.thresholds)
    assert all(check.passed is not False for check in recheck(out / "shapes26_int8.onnx", saved, None, 1))
