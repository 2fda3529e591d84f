"""Markdown and JUnit XML from a report by hand: figures, warnings, gate, and structures that CI systems read."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from reports import FEW, RESTLESS, accuracy, artifact, content, report

from qexport.reporting.gate import check
from qexport.reporting.junit import to_junit
from qexport.reporting.load import report_of
from qexport.reporting.markdown import as_text
from qexport.reporting.page.render import render
from qexport.reporting.provenance import taken_lines
from qexport.reporting.renderings import STEP_SUMMARY, write_junit, write_summary
from qexport.reporting.report import Report
from qexport.reporting.summary import MARK, to_markdown

ALLOWED = {
    "testsuites": {"name", "time", "tests", "failures", "errors", "disabled"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
    "testcase": {"name", "classname", "time", "assertions", "status"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
    "property": {"name", "value"},
    "properties": set(),
    "system-out": set(),
}
"""Elements of Jenkins' junit-10.xsd that are used, and the attributes that it knows for each."""
CHILDREN = {
    "testsuites": ["testsuite"],
    "testsuite": ["properties", "testcase", "system-out", "system-err"],
    "testcase": ["skipped", "error", "failure", "system-out", "system-err"],
    "properties": ["property"],
}


def rule(name: str, passed: bool, text: str, artifact_: str = "yolo26n_int8.onnx") -> dict[str, Any]:
    return {
        "rule": name,
        "artifact": artifact_,
        "figure": 0.99,
        "interval": None,
        "bound": 0.98,
        "passed": passed,
        "text": text,
    }


def gated(*rules: dict[str, Any], **changes: Any) -> Report:
    return report(gate={"passed": all(each["passed"] for each in rules), "rules": list(rules)}, **changes)


HELD = rule("min-retention", True, "retention 99.00% of yolo26n_int8.onnx is at least 98.00%")
BROKEN = rule("max-size", False, "size 2.86 MB of yolo26n_int8.onnx is over 2.50 MB")


def cells(markdown: str, start: str) -> list[str]:
    """The cells of the row that starts with a word."""
    (line,) = (line for line in markdown.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_every_figure_has_a_cell_with_its_interval() -> None:
    assert cells(to_markdown(report()), "`yolo26n_int8.onnx`") == [
        "`yolo26n_int8.onnx`",
        "2.86",
        "0.4455 [0.4100, 0.4800]",
        "0.0045 [-0.0015, 0.0105]",
        "99.0% [97.7%, 100.3%]",
        "0.953",
        "40.0",
        "42.0",
        "1.50×",
        "96.1%",
    ]


def test_fidelity_has_its_interval_and_a_line_of_what_it_is_made_of() -> None:
    row = {"size": "all", "boxes": 83, "matched": 80, "mean_iou": 0.9421, "edge_error": 1.3, "edge_error_p95": 4.1}
    measured = accuracy(
        fidelity_interval=[0.93, 0.968],
        fidelity50=0.981,
        fidelity50_interval=[0.97, 0.99],
        matched_boxes=[row, {**row, "size": "small", "edge_error": 0.8}],
        resamples=1000,
    )
    markdown = to_markdown(report(artifact(accuracy=measured)))
    assert cells(markdown, "`yolo26n_int8.onnx`")[5] == "0.953 [0.930, 0.968]"
    line = (
        "- fidelity of `yolo26n_int8.onnx`: 0.953 [0.930, 0.968]; at IoU 0.50 0.981 [0.970, 0.990]; 80 of 83 boxes "
        "matched; mean IoU 0.942; edges 1.30 px off (95 % within 4.10; small 0.80)"
    )
    assert line in markdown.replace("\\", "").splitlines()


def test_the_table_is_one_that_github_renders() -> None:
    lines = [line for line in to_markdown(report(artifact(), artifact("fp32"))).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1
    assert set(lines[1]) <= set("|-: ")


def test_what_was_not_measured_is_a_dash() -> None:
    bare = artifact(accuracy=None, latency_ms=None, speedup=None, int8_mac_coverage=None)
    assert cells(to_markdown(report(bare)), "`")[2:] == ["–"] * 8


@pytest.mark.parametrize(
    ("warning", "marked"), [(FEW, {2, 3, 4, 5}), (RESTLESS, {6, 7, 8}), ("TFLite runs float faster", set())]
)
def test_a_warning_stands_beside_every_figure_that_it_concerns(warning: str, marked: set[int]) -> None:
    markdown = to_markdown(report(artifact(warnings=[warning])))
    row = cells(markdown, "`yolo26n_int8.onnx`")
    assert {index for index, cell in enumerate(row) if MARK in cell} == marked
    assert f"- {MARK} `yolo26n_int8.onnx`: {warning}" in markdown


def test_signs_are_explained_and_what_was_verified_is_said() -> None:
    markdown = to_markdown(report(artifact(warnings=[FEW])))
    (legend,) = (line for line in markdown.splitlines() if line.startswith("<sub>–: not measured"))
    assert "in brackets: 95 % interval over images" in legend
    assert "drop: FP32 minus the artifact, negative where the artifact scored higher" in legend
    assert f"{MARK}: a warning below is about the figure" in legend
    assert "- verified: `yolo26n_int8.onnx`: 447 tensors as planned, 97% of the detections on 4 images" in markdown
    assert "(at least 80% to pass)" in markdown
    bare = artifact(accuracy=None, verification=None, latency_ms=None, speedup=None)
    assert "<sub>–: not measured</sub>" in to_markdown(report(bare)).splitlines()


def test_a_warning_of_several_artifacts_names_them_once() -> None:
    entries = [artifact(warnings=[FEW]), artifact(format_="tflite", warnings=[FEW]), artifact("fp32")]
    lines = [line for line in to_markdown(report(*entries)).splitlines() if FEW in line]
    assert lines == [f"- {MARK} `yolo26n_int8.onnx`, `yolo26n_int8.tflite`: {FEW}"]


@pytest.mark.parametrize(
    ("entry", "runtime"),
    [
        ({"runtime": "ONNX Runtime, in place of TensorRT", "own_runtime": False}, "ONNX Runtime, in place of TensorRT"),
        ({"runtime": "ONNX Runtime, in place of TensorRT"}, "ONNX Runtime, in place of TensorRT"),  # an older report
        ({"runtime": "a simulator of Hexagon", "own_runtime": False}, "a simulator of Hexagon"),  # of another package
        ({"runtime": "ONNX Runtime", "own_runtime": True}, ""),
        ({"runtime": "ONNX Runtime"}, ""),
        ({"runtime": "", "own_runtime": False}, ""),  # an engine that nothing runs here
        ({}, ""),
    ],
)
def test_what_ran_a_file_is_said_wherever_its_figures_are(entry: dict[str, Any], runtime: str) -> None:
    made = report(artifact(format_="tensorrt", **entry))
    told = f"run by {runtime}" if runtime else "run by"
    markdown = to_markdown(made)
    assert (told in cells(markdown, "`")[0]) == bool(runtime)
    (verified,) = (line for line in markdown.splitlines() if line.startswith("- verified"))
    assert (told in verified) == (told in str(parsed(made).findtext(".//system-out"))) == bool(runtime)
    for name, ran in (("min-retention", True), ("min-fidelity", True), ("max-size", False)):
        (found,) = check(made, {name: 0.5}, "int8")
        assert (told in found.text) == (bool(runtime) and ran), name


def test_the_gate_has_a_line_for_each_rule_and_a_sign_in_the_title() -> None:
    markdown = to_markdown(gated(HELD, BROKEN))
    assert markdown.startswith(
        "### ❌ qexport: yolo26n.pt, end2end head, 640×640, calibrated on 128 images, scored on 100"
    )
    assert "**Gate: failed**, 2 rules, 1 broken" in markdown
    assert f"- ✅ min-retention: {HELD['text'].replace('_', chr(92) + '_')}" in markdown
    assert "- ❌ max-size: size 2.86 MB" in markdown
    assert to_markdown(gated(HELD)).startswith("### ✅ qexport")
    assert to_markdown(report()).startswith("### qexport")


@pytest.mark.parametrize(
    "changes",
    [
        {"failures": [{"format": "openvino", "reason": "no", "exit_code": 5}]},
        {"unmeasured": [{"artifact": "a.onnx", "what": "accuracy", "reason": "no", "exit_code": 7}]},
        {"unmeasured": [{"artifact": "", "what": "samples", "reason": "no", "exit_code": 7}]},
    ],
)
def test_a_run_that_does_not_end_with_zero_has_no_good_sign(changes: dict[str, Any]) -> None:
    assert to_markdown(gated(HELD, **changes)).startswith("### ❌ qexport")
    assert to_markdown(report(**changes)).startswith("### ❌ qexport")


def test_images_that_nothing_was_scored_on_are_not_in_the_title() -> None:
    lost = artifact(accuracy=None, speedup=None, warnings=["accuracy could not be scored: no"])
    markdown = to_markdown(report(lost))
    assert "scored on" not in markdown.splitlines()[0]
    assert "a warning below is about the figure" not in markdown


def test_failures_and_the_baseline_are_there() -> None:
    failures = [{"format": "openvino", "reason": "no <kernel> | here", "exit_code": 5}]
    markdown = to_markdown(report(failures=failures, baseline={"path": "old.json", "sha256": "a"}))
    assert cells(markdown, "openvino ❌")[1:] == ["–"] * 9
    assert "- ❌ openvino: no &lt;kernel&gt; \\| here" in markdown
    assert "compared with `old.json`" in markdown


def parsed(made: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(to_junit(made).encode())
    _check_structure(root)
    return root


def _check_structure(element: ElementTree.Element) -> None:
    """Names, attributes, their order and their counts, as Jenkins' schema wants them."""
    assert set(element.attrib) <= ALLOWED[element.tag]
    tags = [child.tag for child in element]
    order = CHILDREN.get(element.tag, [])
    assert tags == sorted(tags, key=order.index)
    if element.tag in ("testsuites", "testsuite"):
        for name, path in {"tests": ".//testcase", "failures": ".//failure", "errors": ".//error"}.items():
            assert int(element.attrib[name]) == len(element.findall(path))
        float(element.attrib["time"])
    if element.tag == "testcase":
        assert element.attrib["name"]
        assert element.attrib["classname"]
    for child in element:
        _check_structure(child)


def test_a_case_for_each_rule_and_each_verification() -> None:
    root = parsed(gated(HELD, BROKEN))
    assert root.tag == "testsuites"
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "time")} == {
        "tests": "3",
        "failures": "1",
        "errors": "0",
        "time": "3.75",  # of both steps
    }
    cases = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert cases == [("qexport.yolo26n_int8.onnx", name) for name in ("verification", "min-retention", "max-size")]
    (failure,) = root.iter("failure")
    assert failure.get("message") == failure.text == BROKEN["text"]
    assert failure.get("type") == "GateError"
    outputs = [case.findtext("system-out") for case in root.iter("testcase")]
    assert outputs[0] == "447 tensors as planned, 97% of the detections on 4 images as simulated (at least 80% to pass)"
    assert outputs[1] == HELD["text"]


def test_formats_that_failed_are_errors_and_unverified_ones_failures() -> None:
    failures = [
        {"format": "openvino", "reason": "no such kernel", "exit_code": 5},
        {"format": "tflite", "reason": "another plan", "exit_code": 6},
    ]
    root = parsed(report(failures=failures))
    assert [(e.get("type"), e.get("message")) for e in root.iter("error")] == [("exit code 5", "no such kernel")]
    assert [(e.get("type"), e.get("message")) for e in root.iter("failure")] == [("VerificationError", "another plan")]


def test_warnings_are_in_the_output_of_a_verification() -> None:
    root = parsed(report(artifact(warnings=[FEW])))
    assert f"warning: {FEW}" in str(root.findtext(".//system-out"))


def test_what_xml_cannot_hold_is_replaced() -> None:
    root = parsed(report(command="qexport \x1b[31m'<&>\".pt"))
    assert [p.get("value") for p in root.iter("property") if p.get("name") == "command"] == [
        "qexport \ufffd[31m'<&>\".pt"
    ]


def test_reports_of_older_versions_have_neither_intervals_nor_gate() -> None:
    written = content(artifact(accuracy=accuracy(map_interval=None, retention_interval=None)), schema=1)
    for name in ("gate", "baseline"):
        del written[name]
    old = report_of(written)
    assert "0.4455" in to_markdown(old)
    assert len(list(parsed(old).iter("testcase"))) == 1


def test_outputs_of_unknown_meaning_have_a_table_and_a_page() -> None:
    """Nobody knows the task of such a model, so that its evaluation names no metrics."""
    unknown = {**content()["model"], "task": None, "head": "unknown"}
    made = report(model=unknown, evaluation={**content()["evaluation"], "metrics": []})
    assert "| artifact | MB | mAP50-95 |" in to_markdown(made)
    assert "Outputs of unknown meaning" in render(made)


def test_steps_that_took_long_are_named_and_the_others_counted() -> None:
    """What took less than a hundredth of the time is no reason for it."""
    assert "; took 3.8 s: read 1.5, calibrate 2.2</sub>" in to_markdown(report())
    many = {"read": 10.0, "plan_onnx_int8": 80.0, "samples": 0.25, "bootstrap": 0.5}
    told = to_markdown(report(seconds=many)).replace("\\", "")
    assert "took 90.8 s: read 10.0, plan onnx int8 80.0, 2 others 0.8</sub>" in told
    assert "took" not in to_markdown(report(seconds={}))


def test_what_earlier_runs_have_left_is_said_with_its_time() -> None:
    entry = artifact(taken={"file": "2026-01-02T03:04:05+00:00", "latency": "2026-02-03T04:05:06+00:00"})
    made = report_of(content(entry, calibration={"images": 4, "taken": "2025-12-31T23:59:59+00:00"}))
    lines = [
        "calibration: of 2025-12-31 23:59 UTC",
        "yolo26n_int8.onnx: file of 2026-01-02 03:04 UTC, latency of 2026-02-03 04:05 UTC",
    ]
    assert taken_lines(made) == lines
    for line in lines:
        assert f"- taken from the cache: {as_text(line)}" in to_markdown(made).splitlines()
        assert f"<li>{line}</li>" in render(made)
    assert "cache" not in to_markdown(report())


def test_the_step_summary_is_added_to_and_another_file_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    junit = tmp_path / "junit.xml"
    monkeypatch.setenv(STEP_SUMMARY, str(summary))
    write_summary(report(), summary)
    write_junit(report(), junit)
    assert summary.read_text() == f"before\n{to_markdown(report())}"
    monkeypatch.setenv(STEP_SUMMARY, str(tmp_path / "another.md"))
    write_summary(report(), summary)
    write_junit(report(), junit)
    assert summary.read_text() == to_markdown(report())
    assert junit.read_text() == to_junit(report())
