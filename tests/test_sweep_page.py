"""The order of a sweep's artifacts, which of them are best, and the page that shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from page_reader import Element, read_page
from reports import FEW, artifact, report

from qexport.reporting.page.sweep_page import write_sweep_page
from qexport.reporting.sweep_ranking import ranked
from qexport.reporting.sweep_report import SweepReport, SweptArtifact, SweptRun, swept

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m"


def run(label: str, map_: float | None, ms: float | None, size: int = 1_000_000, **changes: object) -> SweptRun:
    fidelity = changes.pop("fidelity", 0.9)
    made = SweptArtifact("onnx int8", size, map_, fidelity, 0.99, ms, 1.5, 0.96)  # type: ignore[arg-type]
    known = SweptRun(
        label, label, "done", report=f"{label}/report.json", page=f"{label}/report.html", artifacts=(made,)
    )
    return replace(known, **{"metric": "mAP50-95", "processor": "A", **changes})  # type: ignore[arg-type]


RUNS = (
    run("slow", 0.5, 30.0),
    run("best", 0.6, 40.0),
    run("beaten", 0.5, 45.0),
    run("fast", 0.2, 10.0),
    run("equal", 0.2, 10.0),
    run("untimed", 0.55, None),
    run("elsewhere", 0.3, 1.0, processor="B"),
    run("classes", 0.95, 11.0, metric="top-1"),
    run("unlabelled", None, 50.0, fidelity=0.97),
    run("unscored", None, 5.0, fidelity=None),
)


def test_the_order_and_the_best_of_what_can_be_compared() -> None:
    rows = ranked(SweepReport("a.yaml", "", RUNS))
    assert [row.run.label for row in rows] == [
        *("best", "untimed", "slow", "beaten", "elsewhere", "fast", "equal"),
        *("classes", "unlabelled", "unscored"),
    ]
    assert {row.run.label: row.best for row in rows if row.best} == {"best": ("accuracy",), "unscored": ("latency",)}
    front = {"slow", "best", "fast", "equal", "elsewhere", "classes", "unlabelled"}
    assert {row.run.label for row in rows if row.unbeaten} == front


def test_figures_are_those_of_the_report_and_of_what_was_asked_for() -> None:
    found = report(artifact("fp32"), artifact("int8", warnings=[FEW]), artifact("int8", "tflite", accuracy=None))
    assert swept(found, "int8") == (
        SweptArtifact("onnx int8", 2_860_000, 0.4455, 0.953, 0.99, 40.0, 1.5, 0.961, ("accuracy",)),
        SweptArtifact("tflite int8", 2_860_000, None, None, None, 40.0, 1.5, 0.961),
    )


@pytest.fixture
def page(tmp_path: Path) -> Element:
    failed = SweptRun(HOSTILE, HOSTILE, "failed", 5, f"no operator {HOSTILE}: leave it out")
    absent = SweptRun("x", "m edgetpu fp16", "not available", line="format edgetpu cannot be written as fp16")
    beside = run("a b&c", 0.1, 60.0, alone=False, page="a b&c/report.html")
    warned = replace(beside.artifacts[0], warned=("latency",))
    runs = (*RUNS, replace(beside, artifacts=(warned,)), failed, absent)
    write_sweep_page(SweepReport(f"{HOSTILE}.yaml", f"qexport sweep '{HOSTILE}'", runs), tmp_path / "sweep.html")
    return read_page((tmp_path / "sweep.html").read_text(encoding="utf-8"))


def test_every_artifact_is_in_the_table_with_its_own_page(page: Element) -> None:
    table, others = page.all("table")
    rows = [[cell.text for cell in row.all() if cell.tag in ("th", "td")] for row in table.all("tbody")[0].all("tr")]
    cells = {row[0]: row[1:] for row in rows}
    assert cells["best"] == [
        *("onnx int8", "mAP50-95", "0.6000", "99.0 %", "0.900"),
        *("40.0", "1.50×", "1.00", "96.0 %", "most accurate"),
    ]
    assert cells["unlabelled"][1:3] == ["fidelity", "–"]
    assert cells["a b&c"][5] == "60.0*†"
    links = {each.text: each.attributes["href"] for each in table.all("a")}
    assert links["best"] == "./best/report.html"
    assert links["a b&c"] == "./a%20b%26c/report.html"
    assert len(table.all("thead")[0].all("button")) == 11
    assert [row.all()[0].text for row in others.all("tbody")[0].all("tr")][1] == "m edgetpu fp16"
    assert "10 of 13 runs" not in page.text
    assert "11 of 13 runs are done" in page.text


def test_the_plot_has_a_dot_for_what_has_both_figures(page: Element) -> None:
    (chart,) = page.all("svg", role="img")  # of one measure alone there are two artifacts or more
    cards = {each.attributes["data-card"].splitlines()[0]: each for each in chart.all("g", data_card="")}
    assert set(cards) == {
        f"{label}: onnx int8" for label in ("slow", "best", "beaten", "fast", "equal", "elsewhere", "a b&c")
    }
    best = cards["best: onnx int8"].attributes["data-card"].splitlines()
    assert best[1:] == ["mAP50-95 0.6000", "40.0\N{NARROW NO-BREAK SPACE}ms", "1.00 MB", "most accurate"]


def test_what_comes_from_files_is_text(page: Element) -> None:
    assert not page.all("img")
    assert HOSTILE.replace("\x1b", "\\x1b") in page.text
    assert "\x1b" not in page.text
