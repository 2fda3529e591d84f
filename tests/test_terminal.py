"""The table on a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qexport.cli.terminal import _notes, print_report
from qexport.measurement.attempt import Unmeasured
from qexport.optimisation.pass_record import NO_INTEGERS, PassRecord, gained_text, not_run
from qexport.reporting.pass_lines import pass_lines
from qexport.reporting.report import (
    AccuracyInfo,
    ArtifactReport,
    CalibrationInfo,
    EvaluationInfo,
    Failure,
    Gate,
    LatencyInfo,
    ModelInfo,
    Outcome,
    Report,
    Warning,
)
from qexport.reporting.summary import to_markdown
from qexport.reporting.warnings import missing_warning
from qexport.system.machine import Environment
from qexport.verification.outcome import Verification

FEW = Warning("accuracy", "accuracy is of 9 images only")
ACCURACY = AccuracyInfo(map=0.4012, map50=0.5634, map_float=0.41, retention=0.97854, fidelity=0.91234, images=9)
INT8 = ArtifactReport(
    path="some/where/yolo26n_int8.tflite",
    format="tflite",
    precision="int8",
    sha256="a" * 64,
    bytes=2_914_000,
    accuracy=ACCURACY,
    latency_ms=LatencyInfo(12.54, 13.0, 12.0),
    latency_float_ms=LatencyInfo(40.0, 41.0, 39.0),
    speedup=3.19,
    int8_mac_coverage=0.9876,
    verification=Verification(321, 5, 0.9712, 4, 0.9876, min_agreement=0.65),
    warnings=(FEW,),
)
FP32 = ArtifactReport("some/where/yolo26n_fp32.tflite", "tflite", "fp32", "b" * 64, 9_814_000)
MODEL = ModelInfo(path="/models/yolo26n.pt", sha256="c" * 64, head="end2end", imgsz=(480, 640), batch=1)
REPORT = Report("qexport", MODEL, CalibrationInfo(images=128), EvaluationInfo(images=9), (INT8, FP32), {}, 2)


def printed(report: Report, width: int = 80) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=True)
    print_report(report, Path("out/report.json"), console)
    return stream.getvalue().splitlines()


def test_sentences_are_not_broken_in_a_pipe() -> None:
    stream = io.StringIO()
    warning = f"{'so it is, and ' * 20}it is said in one line"
    print_report(
        replace(REPORT, warnings=(Warning("run", warning),)), Path("out/report.json"), Console(file=stream, width=80)
    )
    assert f"warning: {warning}" in stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_nothing_is_wider_than_the_terminal_or_cut_off(width: int) -> None:
    lines = printed(REPORT, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_the_artifacts_name_and_figures_are_visible_at_80_columns() -> None:
    lines = printed(REPORT)
    text = "\n".join(lines)
    for figure in ("2.91", "0.4012*", "0.5634", "97.9%", "0.912", "12.5", "3.19×", "98.8%"):
        assert re.search(rf"(?<!\S){re.escape(figure)}(?!\S)", text), figure
    row = next(line for line in lines if "2.91" in line)
    assert row.startswith(" tflite int8 ")
    assert next(line for line in lines if "9.81" in line).startswith(" tflite fp32 ")


def test_a_narrow_terminal_has_every_figure_whole_in_a_line_of_its_artifact() -> None:
    text = " ".join(" ".join(printed(REPORT, 50)).split())
    assert "tflite int8: MB 2.91, mAP50-95 0.4012*, mAP50 0.5634, retention 97.9%, fidelity 0.912, ms p50 12.5" in text
    assert "speed-up 3.19×, INT8 MACs 98.8% tflite fp32: MB 9.81" in text


def test_what_could_not_be_scored_has_no_images_in_the_title_and_no_mark_in_the_legend() -> None:
    told = missing_warning(Unmeasured("yolo26n_int8.tflite", "accuracy", "no", 7))
    assert told == Warning("accuracy", "accuracy could not be scored: no")
    lost = replace(INT8, accuracy=None, warnings=(told,))
    lines = printed(replace(REPORT, artifacts=(lost, FP32)), 200)
    assert any("calibrated on 128 images" in line for line in lines)
    assert not any("scored on" in line or "*" in line for line in lines)


DROPS = [
    # The interval is not centred on its figure: half its width on both sides of it would cross zero in the first row.
    (0.0089, (0.0002, 0.0234), "0.0089 [0.0002, 0.0234]"),
    (-0.0088, (-0.0101, -0.0007), "−0.0088 [−0.0101, −0.0007]"),
    (0.0004, (-0.0310, 0.0005), "0.0004 [−0.0310, 0.0005]"),
    (0.0, (-0.0012, 0.0012), "0.0000 [−0.0012, 0.0012]"),
]


@pytest.mark.parametrize(("drop", "interval", "shown"), DROPS)
@pytest.mark.parametrize("width", [80, 140])
def test_a_drop_is_shown_with_both_bounds_at_every_width(
    drop: float, interval: tuple[float, float], shown: str, width: int
) -> None:
    known = replace(INT8, accuracy=replace(ACCURACY, drop=drop, drop_interval=interval))
    lines = printed(replace(REPORT, artifacts=(known, FP32)), width)
    assert max(map(len, lines)) <= width
    row = next(line for line in lines if "2.91" in line)
    assert (f" {shown} " in row) == (width == 140)
    assert (f"drop of tflite int8: {shown}" in lines) == (width == 80)
    assert f" {shown.split()[0]} " in row  # the figure itself stands in the table at both
    assert "drop: FP32 minus the artifact, negative where the artifact scored higher" in " ".join(lines)
    assert not any("±" in line for line in lines)


def test_a_table_without_room_leaves_the_drop_to_the_lines_below() -> None:
    known = replace(ACCURACY, drop=0.0089, drop_interval=(0.0002, 0.0234))
    wide = replace(INT8, format="openvino", precision="int8-dynamic", bytes=102_914_000, accuracy=known, speedup=10.25)
    lines = printed(replace(REPORT, artifacts=(wide, FP32)))
    assert max(map(len, lines)) <= 80
    assert "drop of openvino int8-dynamic: 0.0089 [0.0002, 0.0234]" in lines
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [64, 80])
def test_fidelity_has_its_interval_at_every_width(width: int) -> None:
    """In the table where there is room; what it is made of stands below in any case."""
    known = replace(ACCURACY, map=None, map50=None, map_float=None, retention=None, fidelity_interval=(0.87, 0.943))
    unlabelled = EvaluationInfo(images=9, labelled=False)
    lines = printed(replace(REPORT, artifacts=(replace(INT8, accuracy=known), FP32), evaluation=unlabelled), width)
    assert "compared on 9 images (no labels: fidelity only)" in " ".join(" ".join(lines).split())
    row = next(line for line in lines if "2.91" in line)
    assert (" 0.912 [0.870, 0.943] " in row) == (width == 80)
    assert " 0.912 " in row
    assert "fidelity of tflite int8: 0.912 [0.870, 0.943]" in lines
    assert not any("drop" in line for line in lines)


def test_an_engine_is_told_from_its_graph() -> None:
    graph = replace(INT8, path="x/a_int8_tensorrt.onnx", format="tensorrt", bytes=1_110_000)
    engine = replace(graph, path="x/a_int8.engine", engine=True, bytes=2_220_000)
    lines = printed(replace(REPORT, artifacts=(graph, engine)))
    assert next(line for line in lines if "1.11" in line).split()[:3] == ["tensorrt", "int8", "1.11"]
    assert next(line for line in lines if "2.22" in line).split()[:3] == ["engine", "int8", "2.22"]
    assert max(map(len, lines)) <= 80


def test_a_format_that_failed_has_a_row_and_leaves_its_reason_to_the_error_line() -> None:
    failures = (Failure("openvino", "no such kernel: try another", 5), Failure("tensorrt", "no TensorRT here", 8))
    lines = printed(replace(REPORT, failures=failures))
    rows = [index for index, line in enumerate(lines) if line.startswith(" openvino ✗")]
    assert len(rows) == 1
    assert lines[rows[0]].split() == ["openvino", "✗", *["–"] * 8]
    assert lines[rows[0] - 1].startswith(" tflite fp32 ")
    assert lines[rows[0] + 1].startswith(" tensorrt ✗")
    assert not any("no such kernel" in line or "no TensorRT" in line for line in lines)  # error lines, whole
    assert not any("✗" in line for line in printed(REPORT))


@pytest.mark.parametrize(
    ("cpu", "here", "words"),
    [
        ("any", "vnni", "planned: yolo26n_int8.tflite for any CPU (TFLite has one plan for all)"),
        ("vnni", "vnni", "planned: yolo26n_int8.tflite for vnni, as this machine is"),
        ("arm", "vnni", "planned: yolo26n_int8.tflite for arm, which this machine (vnni) is not"),
        ("avx2", "arm", "planned: yolo26n_int8.tflite for avx2, which this machine (arm) is not"),
    ],
)
def test_for_which_cpu_each_file_was_planned(cpu: str, here: str, words: str) -> None:
    planned = replace(INT8, quantisation={"activations": "int8", "weights": "int8", "cpu": cpu})
    lines = printed(replace(REPORT, artifacts=(planned, FP32), environment=Environment(cpu_kind=here)), width=120)
    assert words in lines
    assert not any("planned:" in line for line in printed(REPORT))


def test_where_everything_was_written_is_said_with_whole_names() -> None:
    name = "a_model_with_a_name_that_somebody_took_their_time_to_think_of_int8.tflite"
    text = " ".join(printed(replace(REPORT, artifacts=(replace(INT8, path=f"x/{name}", verification=None), FP32))))
    assert f"wrote {name}, yolo26n_fp32.tflite to x" in " ".join(text.split())


def test_the_title_says_what_the_figures_are_of() -> None:
    text = " ".join(" ".join(printed(REPORT)).split())
    title = "yolo26n.pt, end2end head, 480×640, calibrated on 128 images, scored on 9"
    assert title in text


def test_what_was_not_measured_is_a_dash() -> None:
    line = next(line for line in printed(REPORT) if "9.81" in line)
    assert line.split()[-7:] == ["–"] * 7


def test_figures_that_a_warning_concerns_are_marked() -> None:
    """The widest row that there is: it fits 80 columns with both marks, too."""
    restless = "latency varied: the 95th percentile is 31% above the median"
    wide = replace(
        INT8,
        format="openvino",
        precision="int8-dynamic",
        bytes=102_914_000,
        latency_ms=LatencyInfo(112.54, 163.0, 12.0),
        speedup=0.97,
        int8_mac_coverage=1.0,
        accuracy=replace(ACCURACY, retention=1.001),
        warnings=(*INT8.warnings, Warning("latency", restless)),
    )
    row = next(line for line in printed(replace(REPORT, artifacts=(wide, FP32))) if "102.91" in line)
    words = "openvino int8-dynamic 102.91 0.4012* 0.5634 100.1% 0.912 112.5* 0.97× 100.0%"
    assert row.split() == words.split()


def test_the_gate_has_a_line_for_each_rule_that_passed() -> None:
    rules = (
        Outcome("max-size", "a.onnx", 2.0, None, 3.0, True, "size 2.00 MB of a.onnx is at most 3.00 MB"),
        Outcome("min-speedup", "a.onnx", 1.0, None, 2.0, False, "speed-up 1.00× of a.onnx is under 2.00×"),
    )
    lines = printed(replace(REPORT, gate=Gate(False, rules)), width=120)
    assert "passed: max-size: size 2.00 MB of a.onnx is at most 3.00 MB" in lines
    assert not any("under 2.00×" in line for line in lines)  # an error line says it


def test_warnings_are_printed_once_each_with_the_names_of_their_artifacts() -> None:
    artifacts = (INT8, replace(FP32, warnings=(Warning("artifact", "too large"),)), replace(INT8, format="onnx"))
    lines = printed(replace(REPORT, artifacts=artifacts, warnings=(Warning("run", "one was skipped"),)))
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: one was skipped",
        "warning: tflite int8, onnx int8: accuracy is of 9 images only",
        "warning: tflite fp32: too large",
    ]
    everywhere = replace(REPORT, artifacts=(INT8, replace(FP32, warnings=INT8.warnings)))
    assert "warning: All artifacts: accuracy is of 9 images only" in printed(everywhere)


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({}, "*"),
        ({"failures": (Failure("onnx", "no", 5),)}, "✗"),
        ({"artifacts": (FP32,)}, "–"),
        ({"artifacts": (replace(INT8, runtime="LiteRT in place of an NPU", own_runtime=False),)}, "†"),
    ],
)
def test_every_sign_of_the_table_is_explained(changes: dict[str, Any], sign: str) -> None:
    lines = printed(replace(REPORT, **changes), 200)
    end = next(index for index, line in enumerate(lines) if line.startswith(("drop: ", "*: ", "–: ")))
    assert any(sign in line for line in lines[1:end])
    explained = [part.split()[0].rstrip(":") for line in lines[end : end + 2] for part in line.split("; ")]
    assert sign in explained


STAND_INS = [
    ("tensorrt", "int8", "ONNX Runtime without fusion, in place of TensorRT"),
    ("edgetpu", "int8-full", "LiteRT interpreter on the CPU, in place of the Edge TPU"),
    ("tflite", "int8-full", "LiteRT interpreter, in place of TensorFlow Lite Micro"),
]


@pytest.mark.parametrize(("name", "precision", "runtime"), STAND_INS)
def test_what_another_runtime_ran_says_so_where_its_figures_stand(name: str, precision: str, runtime: str) -> None:
    away = replace(INT8, format=name, precision=precision, runtime=runtime, own_runtime=False)
    other = replace(FP32, runtime=runtime, own_runtime=False)
    lines = printed(replace(REPORT, artifacts=(away, other)), 200)
    assert next(line for line in lines if "2.91" in line).startswith(f" {name} {precision}† ")
    assert f"† {name} {precision}, tflite fp32: run by {runtime}" in lines
    (verified,) = (line for line in lines if line.startswith("verified: "))
    assert verified.endswith(f"; run by {runtime}")
    assert "run by" not in "\n".join(printed(REPORT, 200))


def test_what_the_run_took_is_said_step_by_step() -> None:
    seconds = {"read": 4.0, "plan_onnx_int8": 1.0, "optimise_onnx_int8": 94.5, "samples": 0.5}
    lines = printed(replace(REPORT, seconds=seconds), 120)
    assert "took 100.0 s: read 4.0, plan onnx int8 1.0, optimise onnx int8 94.5, 1 other 0.5" in lines
    assert not any(line.startswith("took") for line in printed(REPORT))


def test_what_was_verified_and_where_the_evidence_lies() -> None:
    text = " ".join(" ".join(printed(REPORT)).split())
    words = "321 tensors as planned, 97% of the detections on 4 images as simulated (at least 65% to pass)"
    assert f"verified: yolo26n_int8.tflite: {words}" in text
    assert "report: out/report.json" in printed(REPORT)


def test_a_page_does_not_hide_the_report_behind_it() -> None:
    lines = [sentence.plain for sentence in _notes(replace(REPORT, saved="out/report.json"), Path("page.html"))]
    assert "report: page.html and out/report.json" in lines
    lines = [sentence.plain for sentence in _notes(replace(REPORT, saved="out/report.json"), Path("out/report.json"))]
    assert "report: out/report.json" in lines


def test_passes_that_were_not_run_for_one_reason_share_a_line_and_floats_have_none() -> None:
    skipped = [PassRecord(name, False, reason=f"not run: {why}") for name, why in (("a", "x"), ("b", "y"), ("c", "x"))]
    assert list(pass_lines(skipped)) == ["a and c not run: x", "b not run: y"]
    assert list(pass_lines([*not_run(("a", "b"), NO_INTEGERS), PassRecord("d", True)])) == ["d kept"]


@pytest.mark.parametrize(
    ("gain", "text"), [(0.056, "5.6 % nearer, give or take 3.3"), (-0.056, "5.6 % farther, give or take 3.3")]
)
def test_which_way_a_pass_has_gone_is_a_word(gain: float, text: str) -> None:
    assert gained_text(gain, 0.033) == text


def test_what_became_of_passes_is_said() -> None:
    kept = PassRecord("one", True, 0.2, 0.1, 8, 1.0, "the distance is 0.1", 0.01)
    others = PassRecord("two", False, reason="reverted: it is 0.3"), PassRecord("three", False, reason="not run: why")
    lines = printed(replace(REPORT, artifacts=(replace(INT8, passes=(kept, *others)),)), 120)
    said = [line.removeprefix(f"{INT8.file_name}: ") for line in lines if line.startswith(f"{INT8.file_name}: ")]
    assert said[:3] == ["one kept: the distance is 0.1", "two reverted: it is 0.3", "three not run: why"]
    text = to_markdown(replace(REPORT, artifacts=(replace(INT8, passes=(kept,)),)))
    assert f"- `{INT8.file_name}`: one kept: the distance is 0.1" in text.splitlines()
