"""The page of a report: each figure is compared with report.json, by rules of its own for units and digits."""

from __future__ import annotations

import base64
import copy
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from markupsafe import Markup
from page_reader import Element, read_page, sections, shown_number
from sample_report import FEW, RESTLESS, bare, rendered, sample_report, value_at

from qexport.reporting.page.svg import axes_in, drawing, svg_of, themed

PERCENT = ("retention", "retention_interval", "int8_mac_coverage", "agreement", "min_agreement")
UNITS = {"bytes": 1e-6, "tensor arena": 1e-6, **dict.fromkeys(PERCENT, 100.0)}
"""What a reader multiplies a figure of report.json by to get what the page shows; 1 for all others."""
SCORES = ("map", "map50", "drop", "retention", "fidelity", "map_interval.0", "drop_interval.1", "retention_interval.0")
FIDELITY = ("fidelity_interval.0", "fidelity_interval.1", "fidelity50", "fidelity50_interval.1")
BOXES = ("boxes", "matched", "mean_iou", "edge_error", "edge_error_p95")
LATENCY = ("latency_ms.p50", "latency_ms.p95", "speedup")
OF_INT8 = (
    "bytes",
    *(f"accuracy.{name}" for name in (*SCORES, *FIDELITY)),
    *(f"accuracy.matched_boxes.{row}.{name}" for row in range(2) for name in BOXES),
    *(f"accuracy.matched_boxes.2.{name}" for name in BOXES[:2]),
    *(f"accuracy.confidence.{name}" for name in ("matched", "mean_float", "mean", "shift", "p05", "p50", "p95")),
    "int8_mac_coverage",
    *(f"verification.{name}" for name in ("tensors", "unnamed", "agreement", "min_agreement", "images")),
    *(f"histograms.{n}.{name}" for n in range(2) for name in ("low", "high", "sqnr_db")),
)
OF_FP32 = ("bytes", "accuracy.map", "accuracy.map50", "accuracy.map_interval.1")
OF_RUN = (
    *("artifacts.0.device.operators", "artifacts.0.device.memory.tensor arena", "artifacts.0.device.lacking.0.count"),
    *("model.batch", "model.classes", "calibration.images", "evaluation.images", "threads", "environment.cores"),
    *("seconds.read", "seconds.calibrate", "seconds.lower_onnx_int8", "artifacts.0.accuracy.resamples"),
)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_report()


@pytest.fixture(scope="module")
def text(report: dict[str, Any]) -> str:
    return rendered(copy.deepcopy(report))


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return read_page(text)


def agrees(text: str, value: float, name: str) -> bool:
    """Whether a reader sees the figure, rounded to the digits that are shown."""
    digits = len(text.partition(".")[2].strip("%×\u202f "))
    return bool(abs(shown_number(text) - value * UNITS.get(name, 1.0)) <= 0.5000001 * 10.0**-digits)


def test_every_figure_is_that_of_the_report(page: Element, report: dict[str, Any]) -> None:
    figures = page.all("data", data_figure="")
    assert len(figures) > 90
    for each in figures:
        path = each.attributes["data-figure"]
        name = next(part for part in reversed(path.split(".")) if not part.isdigit())
        assert agrees(each.text, value_at(report, path), name), (path, each.text)


def test_every_figure_of_the_report_is_shown(page: Element) -> None:
    shown = {each.attributes["data-figure"] for each in page.all("data", data_figure="")}
    wanted = {f"artifacts.{i}.{path}" for i in (0, 2) for path in OF_INT8}
    wanted |= {f"artifacts.{i}.{path}" for i in (1, 3) for path in OF_FP32}
    wanted |= {f"artifacts.0.{path}" for path in LATENCY} | {"artifacts.1.latency_ms.p50"} | set(OF_RUN)
    assert wanted <= shown


@pytest.mark.parametrize(("part", "least"), [("accuracy.per_class", 4), ("layers", 12)])
def test_every_cell_of_the_tables_is_that_of_the_report(
    page: Element, report: dict[str, Any], part: str, least: int
) -> None:
    for at in ("artifacts.0", "artifacts.2"):
        (table,) = page.all("table", data_rows=f"{at}.{part}")
        names = [each.attributes.get("data-key", "") for each in table.all("thead")[0].all("th")]
        rows = table.all("tr", data_row="")
        source = value_at(report, f"{at}.{part}")
        assert len(rows) == len(source) >= least
        for row in rows:
            origin = source[int(row.attributes["data-row"])]
            if part != "layers":
                origin = {**origin, "drop": origin["map_float"] - origin["map"]}
            for name, cell in zip(names, (c for c in row.children if isinstance(c, Element)), strict=True):
                value = origin.get(name, "")
                if value is None:
                    assert cell.text == "–"
                elif isinstance(value, str):
                    assert cell.text == value
                elif name == "scale":
                    assert shown_number(cell.text) == pytest.approx(value, rel=5e-4)
                else:
                    assert agrees(cell.text, value, name), (at, name, cell.text)


def test_classes_start_with_the_greatest_loss_and_bars_are_as_long_as_differences(page: Element) -> None:
    rows = page.all("table", data_rows="artifacts.0.accuracy.per_class")[0].all("tr", data_row="")
    assert [row.attributes["data-row"] for row in rows] == ["2", "0", "3", "1"]  # 0.0601, 0.01, 0, −0.024
    bars = [row.all("td")[-1].all("i") for row in rows]
    assert [bar[0].attributes["class"] if bar else "" for bar in bars] == ["lost", "lost", "", "gained"]
    widths = [float(bar[0].attributes["style"].removeprefix("width:").removesuffix("%")) for bar in bars if bar]
    assert widths == pytest.approx([50, 50 * 0.01 / 0.0601, 50 * 0.024 / 0.0601], abs=0.01)


def test_warnings_come_first_and_stand_beside_each_figure_that_they_concern(page: Element) -> None:
    header = page.all("header")[0]
    assert [each.text for each in header.all("li") if "warning-" in each.attributes.get("id", "")] == [
        "⚠ 1 calibration images were skipped: broken.jpg (image broken.jpg is empty)",
        f"⚠ All artifacts: {FEW}",
        f"⚠ TFLite INT8: {RESTLESS}",
    ]
    checked = 0
    for cell in (*page.all("td"), *page.all("dd"), *page.all("p", class_="big")):
        paths = [each.attributes["data-figure"] for each in cell.all("data", data_figure="")]
        flags = {each.attributes["title"] for each in cell.all("a", class_="flag")}
        if cell.parent and cell.parent.parent and cell.parent.parent.attributes.get("class") == "facts":
            continue
        wanted = {FEW} if any(".accuracy." in path for path in paths) else set()
        restless = ("artifacts.0.latency_ms", "artifacts.0.speedup")
        wanted |= {RESTLESS} if any(path.startswith(restless) for path in paths) else set()
        assert flags == wanted, paths
        checked += bool(paths)
    assert checked > 30
    for name in ("fidelity", "classes", "confidence", "gallery"):
        (section,) = page.all("section", id=name)
        assert [each.text for each in section.all("p", class_="caution")] == [f"⚠ {FEW}"] * 2
    (drawn,) = page.all("section", id="summary")[0].all("p", class_="caution")
    led = [(each.attributes["href"], each.attributes["title"]) for each in drawn.all("a")]
    at = {each.attributes["id"]: each.text for each in header.all("li") if "id" in each.attributes}
    assert [title for _, title in led] == [FEW, RESTLESS], "the plot's, by links: their text is on the same screen"
    assert all(at[href.removeprefix("#")].endswith(title) for href, title in led)


def test_the_header_says_what_came_out_and_which_rules_do_not_hold(page: Element) -> None:
    header = page.all("header")[0]
    assert header.all("h1")[0].text == "a <model>.pt"
    assert header.all("p", class_="lead")[0].text == "TFLite and ONNX in INT8, each verified against its plan."
    gate, failed = header.all("div", class_="verdict bad")
    assert gate.text == "✗ Gate failed 1.7 > 1.0"
    assert failed.text.endswith("OpenVINO: no such kernel: try another (exit code 5)")
    rules = page.all("section", id="gate")[0].all("tbody")[0].all("tr")
    assert [row.all("th")[0].text for row in rules] == ["✗ max-drop", "✓ min-speedup"]


STAND_IN = "ONNX Runtime without fusion, in place of TensorRT"


def test_what_another_runtime_ran_says_so_in_tile_table_headline_and_point(report: dict[str, Any]) -> None:
    away = bare(report)
    for artifact in away["artifacts"][2:]:
        artifact |= {
            "format": "tensorrt",
            "runtime": STAND_IN,
            "own_runtime": False,
            "latency_ms": {"p50": 1, "p95": 2, "min": 1},
        }
    page, told = read_page(rendered(away)), f"run by {STAND_IN}"
    assert page.all("p", class_="lead")[0].text == (
        f"TFLite and TensorRT in INT8, each verified against its plan; TensorRT {told}."
    )
    tiles = [each.text for each in page.all("article")]
    assert [told in each for each in tiles] == [False, True]
    rows = [each.text for each in page.all("table", class_="summary")[0].all("th", scope="row")]
    assert [told in each for each in rows] == [False, False, True, True]
    assert [told in each.attributes["data-card"] for each in page.all("g", data_point="")] == [False, False, True, True]
    for name in ("classes", "gallery"):
        panels = page.all("section", id=name)[0].all("div", class_="panel")
        assert [told in each.text for each in panels] == [False, True], name
    facts = page.all("section", id="verification")[0].all("dd")
    assert sum(each.text == told for each in facts) == 1  # of the two, one was verified
    alone = read_page(rendered({**away, "artifacts": away["artifacts"][2:]}))
    assert alone.all("p", class_="lead")[0].text == f"TensorRT in INT8, verified against its plan, {told}."


def test_drops_have_one_sign_wherever_they_are(page: Element, report: dict[str, Any]) -> None:
    """FP32 minus INT8: in the table of artifacts, its interval, and the table of classes."""
    classes = page.all("table", data_rows="artifacts.0.accuracy.per_class")[0]
    drops = [row.all("td")[3].text for row in classes.all("tr", data_row="")]
    assert drops == ["0.0601", "0.0100", "0.0000", "−0.0240"]
    (cell,) = (td for td in page.all("td") if td.all("data", data_figure="artifacts.0.accuracy.drop"))
    assert cell.text.startswith("0.0069")
    assert cell.text.endswith("−0.0021 to 0.0163")


def test_outputs_of_unknown_meaning_are_verified_by_their_cosine(report: dict[str, Any]) -> None:
    checked = {"tensors": 3, "unnamed": 0, "agreement": None, "images": 4, "coverage": 1, "cosine": 0.9987}
    for least, words in ((0.9, "0.9000"), (None, "")):
        made = bare(report, artifacts=report["artifacts"][:1])
        made["artifacts"][0]["verification"] = {**checked, "min_agreement": least}
        text = read_page(rendered(made)).all("section", id="verification")[0].text
        assert "Cosine of outputs and simulation0.9987" in text
        assert ("Least that passes" in text, f"Least that passes{words}" in text) == (bool(words), bool(words))


def test_what_went_in_and_where_it_ran_is_there_word_for_word(page: Element, report: dict[str, Any]) -> None:
    words = [report["command"], *report["model"].values(), *report["calibration"].values(), report["qexport"]]
    words += [report["evaluation"]["fingerprint"], "val.yaml", "broken.jpg: image broken.jpg is empty"]
    words += [report["environment"][name] for name in ("python", "system", "processor")]
    words += [word for pair in report["environment"]["packages"].items() for word in pair]
    words += [each["sha256"] for each in report["artifacts"]] + ["a_int8.onnx.manifest.json", "480 × 640"]
    words += [row["why"] for row in report["artifacts"][0]["layers"]]
    shown = {each.text for each in page if each.children}
    assert "detect" not in shown
    for word in words:
        if isinstance(word, str) and word != "detect":
            assert word in shown, word


def test_nothing_is_loaded_from_elsewhere(text: str, page: Element) -> None:
    links = [each.attributes[name] for each in page for name in ("href", "src") if name in each.attributes]
    assert links
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert "@import" not in text
    assert "http:" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, which the script makes elements with
    assert "https:" not in text
    (policy,) = page.all("meta", http_equiv="Content-Security-Policy")
    assert policy.attributes["content"].startswith("default-src 'none'")
    identifiers = [each.attributes["id"] for each in page if "id" in each.attributes]
    assert len(identifiers) == len(set(identifiers))


def test_text_of_the_report_is_never_markup(page: Element, report: dict[str, Any]) -> None:
    assert not page.all("model")
    assert not page.all("here")
    uri = "data:image/svg+xml;base64,PHN2Zy8+"
    hostile = bare(report, command="</pre><script>alert(1)</script>")
    for artifact in hostile["artifacts"]:
        for image in artifact["gallery"] or ():
            image["thumbnail"] = uri
    made = rendered(hostile)
    assert uri not in made
    assert len(read_page(made).all("script")) == 1


HOSTILE = "\"'><script>alert(1)</script></style>\0\x1b[31m\ufffe\u202e\u2028 $x^2$ \\frac{ {{7*7}}"


def test_text_that_no_run_writes_breaks_nothing() -> None:
    def said(content: Any) -> Any:
        if isinstance(content, dict):
            return {name: said(each) for name, each in content.items()}
        if isinstance(content, list):
            return [said(each) for each in content]
        return HOSTILE if isinstance(content, str) else content

    made = rendered(said(sample_report(layers=1, images=1, histograms=1)))
    assert not re.search("[\0\x1b\ufffe\u202e\u2028]", made)
    page = read_page(made)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not [name for each in page for name in each.attributes if name.startswith("on")]
    assert "49" not in page.all("h1")[0].text


def test_a_browser_runs_the_pages_own_script_alone(page: Element) -> None:
    (script,) = page.all("script")
    (text,) = script.children
    assert isinstance(text, str)
    policy = page.all("meta", http_equiv="Content-Security-Policy")[0].attributes["content"].split("; ")
    known = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert [rule for rule in policy if rule.startswith("script-src")] == [f"script-src 'sha256-{known}'"]
    assert {"base-uri 'none'", "form-action 'none'"} <= set(policy)


def test_settings_of_matplotlib_change_no_chart() -> None:
    @themed
    def chart() -> Markup | None:
        figure = drawing(60, 60)
        axes_in(figure, 4, 4, 4, 4).plot([0, 1], [0, 1], label="x")
        return svg_of(figure, "chart", "a line")

    usual = chart()
    with matplotlib.rc_context({"text.usetex": True, "lines.linewidth": 40, "font.size": 30, "axes.grid": False}):
        assert chart() == usual


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_settings_of_the_working_directory_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "matplotlibrc")
    subprocess.run([sys.executable, "-c", "import qexport.compat.plots"], cwd=tmp_path, check=True, timeout=60)


def test_a_report_of_schema_1_has_no_empty_sections(report: dict[str, Any]) -> None:
    old = bare(report, schema=1)
    del old["gate"], old["baseline"]
    known = ("map", "map50", "map_float", "map50_float", "retention", "fidelity", "images")
    for artifact in old["artifacts"]:
        for name in ("gallery", "layers", "histograms", "manifest"):
            artifact.pop(name, None)
        artifact["accuracy"] = {name: artifact["accuracy"][name] for name in known}
        artifact["device"] = None
    page = read_page(rendered(old))
    assert sections(page) == {"summary", "data", "verification", "run"}
    assert len(page.all("g", data_point="")) == 2
    assert "interval" not in page.all("div", class_="beside")[0].text


def test_passes_over_the_weights_have_a_table_with_what_each_changed(report: dict[str, Any]) -> None:
    kept = {"name": "bias correction", "kept": True, "before": 0.25, "after": 0.125, "images": 8, "seconds": 3.5}
    kept["noise"] = 0.015625
    lost = {"name": "another", "kept": False, "before": 0.125, "after": None, "images": 8, "seconds": 1.0}
    made = bare(report)
    idle = {"name": "idle", "kept": False, "before": None, "after": None, "images": 0, "seconds": 0.0}
    reasons = "less noise", "it <failed>", "not run: why"
    passes = [{**each, "reason": reason} for each, reason in zip((kept, lost, idle), reasons, strict=True)]
    made["artifacts"][0]["passes"] = passes
    (section,) = read_page(rendered(made)).all("section", id="passes")
    rows = [[cell.text for cell in row if cell.tag in ("th", "td")] for row in section.all("tbody")[0].all("tr")]
    assert rows == [
        ["✓ kept: bias correction", "0.25", "0.125", "0.016", "8", "3.5", "less noise"],
        ["reverted: another", "0.125", "–", "–", "8", "1.0", "it <failed>"],
        ["not run: idle", "–", "–", "–", "0", "0.0", "not run: why"],
    ]
    shown = {each.attributes["data-figure"] for each in section.all("data", data_figure="")}
    assert {"artifacts.0.passes.0.before", "artifacts.0.passes.1.seconds"} <= shown
    assert "passes" not in sections(read_page(rendered(bare(report))))


def test_what_was_not_measured_is_left_out(report: dict[str, Any]) -> None:
    unmeasured = bare(report, evaluation=None, calibration=None, gate=None, failures=[], warnings=[])
    for artifact in unmeasured["artifacts"]:
        artifact |= {"accuracy": None, "latency_ms": None, "speedup": None, "gallery": None, "warnings": []}
    page = read_page(rendered(unmeasured))
    headings = [each.text for each in page.all("table", class_="summary")[0].all("th", scope="col")]
    assert headings == ["Artifact", "MB", "INT8 MACs"]
    assert sections(page) == {"summary", "data", "verification", "run"}
    assert not page.all("ul", class_="warnings")
    assert not page.all("div", class_="verdict bad")
    assert not page.all("svg")


def test_a_float_export_and_an_engine_have_pages(report: dict[str, Any]) -> None:
    alone = bare(report, artifacts=report["artifacts"][1:2])
    page = read_page(rendered(alone))
    assert page.all("p", class_="lead")[0].text == "TFLite in FP32."
    assert sections(page) == {"summary", "gate", "data", "verification", "run"}
    engine = {**report["artifacts"][2], "engine": True, "format": "tensorrt", "precision": "int8"}
    page = read_page(rendered(bare(report, artifacts=[engine])))
    assert page.all("article")[0].all("h3")[0].text == "TensorRT engine INT8"


def test_tasks_name_their_metrics(report: dict[str, Any]) -> None:
    evaluation = {**report["evaluation"], "metrics": ["top-1", "top-5"]}
    alone = report["artifacts"][:1]
    made = bare(report, evaluation=evaluation, model={**report["model"], "task": "classify"}, artifacts=alone)
    page = read_page(rendered(made))
    headings = [each.text for each in page.all("table", class_="summary")[0].all("th", scope="col")]
    assert headings[2:4] == ["top-1", "top-5"]
    assert "mAP" not in page.all("main")[0].text
    assert page.all("p", class_="of")[0].text.startswith("Classification · ")
