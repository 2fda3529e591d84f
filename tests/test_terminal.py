"""The table on a terminal of 80 columns."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from qexport.report import ArtifactReport, Report
from qexport.terminal import print_report
from qexport.verify import Verification

ACCURACY = {
    "map": 0.4012,
    "map50": 0.5634,
    "map_float": 0.41,
    "retention": 0.97854,
    "fidelity": 0.91234,
    "images": 9,
}
INT8 = ArtifactReport(
    path="some/where/yolo26n_int8.tflite",
    format="tflite",
    precision="int8",
    sha256="a" * 64,
    bytes=2_914_000,
    accuracy=dict(ACCURACY),
    latency_ms={"p50": 12.54, "p95": 13.0, "min": 12.0},
    latency_float_ms={"p50": 40.0, "p95": 41.0, "min": 39.0},
    speedup=3.19,
    int8_mac_coverage=0.9876,
    verification=Verification(321, 5, 0.9712, 4, 0.9876),
    warnings=("accuracy is of 9 images only",),
)
FP32 = ArtifactReport("some/where/yolo26n_fp32.tflite", "tflite", "fp32", "b" * 64, 9_814_000)
MODEL = {"path": "/models/yolo26n.pt", "head": "end2end", "imgsz": [480, 640], "nms": False}
REPORT = Report("qexport", MODEL, {"images": 128}, {"images": 9}, (INT8, FP32), {}, 2, environment={})


def printed(report: Report, width: int = 80) -> list[str]:
    stream = io.StringIO()
    print_report(report, Path("out/report.json"), Console(file=stream, width=width, color_system=None))
    return stream.getvalue().splitlines()


def column(lines: list[str], start: int, stop: int) -> str:
    return "".join(line[start:stop].strip() for line in lines)


@pytest.mark.parametrize("width", [80, 100, 200])
def test_nothing_is_wider_than_the_terminal_or_cut_off(width: int) -> None:
    lines = printed(REPORT, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


def test_the_artifacts_name_and_figures_are_visible_at_80_columns() -> None:
    lines = printed(REPORT)
    text = "\n".join(lines)
    for figure in ("2.91", "0.4012", "0.5634", "97.9%", "0.912", "12.5", "3.19×", "98.8%"):
        assert re.search(rf"(?<!\S){re.escape(figure)}(?!\S)", text), figure
    row = next(index for index, line in enumerate(lines) if "2.91" in line)
    # A long name may be folded, but all of it is there: from its row to the next artifact's.
    first = lines[row].index("2.91")
    end = next(index for index, line in enumerate(lines) if "9.81" in line)
    assert column(lines[row:end], 0, first) == "yolo26n_int8.tflite"


def test_a_very_long_name_is_folded_and_not_cut() -> None:
    name = "a_model_with_a_name_that_somebody_took_their_time_to_think_of_int8.tflite"
    lines = printed(replace(REPORT, artifacts=(replace(INT8, path=f"x/{name}", verification=None),)))
    row = next(index for index, line in enumerate(lines) if "2.91" in line)
    end = next(index for index, line in enumerate(lines) if line.startswith("warning"))
    assert column(lines[row:end], 0, lines[row].index("2.91")) == name


def test_the_title_says_what_the_figures_are_of() -> None:
    text = " ".join(" ".join(printed(REPORT)).split())
    title = "yolo26n.pt, end2end head, 480×640, calibrated on 128 images, scored on 9"
    assert title in text


def test_what_was_not_measured_is_a_dash() -> None:
    line = next(line for line in printed(REPORT) if "9.81" in line)
    assert line.split()[-7:] == ["–"] * 7


def test_warnings_are_printed_once_each() -> None:
    both = replace(REPORT, artifacts=(INT8, replace(FP32, warnings=INT8.warnings)), warnings=("one was skipped",))
    lines = printed(both)
    assert [line for line in lines if line.startswith("warning: ")] == [
        "warning: one was skipped",
        "warning: accuracy is of 9 images only",
    ]


def test_what_was_verified_and_where_the_evidence_lies() -> None:
    text = " ".join(" ".join(printed(REPORT)).split())
    assert "yolo26n_int8.tflite holds 321 tensors as planned" in text
    assert "97% of its detections on 4 images" in text
    assert printed(REPORT)[-1] == "report: out/report.json"
