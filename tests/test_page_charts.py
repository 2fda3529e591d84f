"""What the page of a report draws: charts against the figures of report.json, thumbnails against its gallery."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from page_reader import Element, read_page, sections
from sample_report import bare, rendered, sample_report, value_at

from qexport.optimisation.repair_record import CurvePoint
from qexport.reporting.load import report_of
from qexport.reporting.page.content import Entry
from qexport.reporting.page.gallery import make_gallery
from qexport.reporting.page.pareto import unbeaten


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return sample_report()


@pytest.fixture(scope="module")
def text(report: dict[str, Any]) -> str:
    return rendered(copy.deepcopy(report))


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return read_page(text)


def test_points_stand_where_their_figures_are(page: Element, report: dict[str, Any]) -> None:
    places = []
    for group in page.all("g", data_point=""):
        (use,) = group.all("use")
        artifact = value_at(report, group.attributes["data-point"])
        x, y = float(use.attributes["x"]), float(use.attributes["y"])
        places.append((x, y, artifact["latency_ms"]["p50"], artifact["accuracy"]["map"]))
        assert f"{artifact['latency_ms']['p50']:.1f} ms p50" in group.attributes["data-card"]
    # The last format has no latency. The left end of the axis is zero, so x is proportional beyond its margin.
    (a, b) = places
    left = 42.0
    assert (a[0] - left) / (b[0] - left) == pytest.approx(a[2] / b[2], abs=2e-3)
    assert (a[1] - b[1]) * (a[3] - b[3]) < 0  # higher accuracy is further up


def test_the_waterfall_is_as_high_as_its_values(page: Element, report: dict[str, Any]) -> None:
    (chart,) = page.all("svg", data_layers="0")
    layers = report["artifacts"][0]["layers"]
    integers, floats = (
        [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", each.attributes["d"])]
        for each in chart.all("path")
        if re.search(r"fill:\s?var\(--asked", each.attributes.get("style", ""))
    )
    base = max(integers)
    # A stair has two corners for each value, between a point on the base line and another.
    heights = [base - y for y in integers[1:-1:2]]
    assert len(heights) == len(layers)
    scale = max(heights) / max(r["sqnr_db"] or 0 for r in layers if r["dtype"] != "float32")
    for height, row in zip(heights, layers, strict=True):
        wanted = 0 if row["dtype"] == "float32" else row["sqnr_db"] or 0
        assert height / scale == pytest.approx(wanted, abs=0.1)
    assert len(floats) == len(integers)


def test_the_confidence_histogram_has_a_bar_for_each_bin(page: Element, report: dict[str, Any]) -> None:
    (chart,) = (each for each in page.all("svg") if each.attributes.get("aria-label", "").endswith("shifts, ONNX INT8"))
    found = report["artifacts"][2]["accuracy"]["confidence"]
    cards = [each.attributes["data-card"].split("\n") for each in chart.all("g", data_card="")]
    assert [int(count.split()[0]) for _, count in cards] == found["counts"]
    assert [span.split(" to ")[0].replace("−", "-") for span, _ in cards] == [f"{e:+.2f}" for e in found["bins"][:-1]]


def test_each_thumbnail_is_stored_once_and_boxes_are_where_they_were_found(
    page: Element, text: str, report: dict[str, Any]
) -> None:
    stored = {each.attributes["href"] for each in page.all("image")}
    assert stored == {image["thumbnail"] for i in (0, 2) for image in report["artifacts"][i]["gallery"]}
    assert all(text.count(uri) == 1 for uri in stored)
    shots = page.all("section", id="gallery")[0].all("svg", viewbox="0 0 640 480")
    assert len(shots) == 4
    boxes = [{g.attributes["class"]: g.all("rect") for g in shot.all("g")} for shot in shots]
    assert [{kind: len(found) for kind, found in each.items()} for each in boxes] == [
        {"kept": 1, "lost": 1, "gained": 0},
        {"kept": 1, "lost": 1, "gained": 1},
    ] * 2
    kept = boxes[0]["kept"][0].attributes
    assert [float(kept[name]) for name in ("x", "y", "width", "height")] == [300, 200, 120.5, 130.2]
    names = [each.text for each in shots[1].all("text")]
    assert names == ["<b>stop & go</b> 0.31", "class 17 0.27"]
    assert kept["data-card"] == "person 0.91, kept"


def test_a_repair_has_a_chart_of_what_was_tried_and_says_why_values_are_float(report: dict[str, Any]) -> None:
    points = [
        {"float_macs": 0.01, "distance": 0.3, "lost_percent": 3.5},
        {"float_macs": 0.05, "distance": 0.4},
        {"float_macs": 0.125, "distance": 0.0875, "lost_percent": 0.5, "chosen": True},
    ]
    made = bare(report)
    made["artifacts"][0]["repair"] = {
        "budget": 0.1,
        "before": 0.3,
        "after": 0.0875,
        "noise": 0.01,
        "images": 12,
        "float_macs": 0.125,
        "float_macs_before": 0.01,
        "met": True,
        "reason": "0.5 % is lost, at most 1 %",
        "floats": {"model_3_conv": "alone <it> costs 40 %"},
        "curve": points,
    }
    (section,) = read_page(rendered(made)).all("section", id="repair")
    said = " ".join(section.text.split())
    assert "✓ Met: 0.5 % is lost, at most 1 %. 12.5 % of the arithmetic is in float" in said
    rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in section.all("tbody")[0].all("tr")]
    assert rows == [["model_3_conv", "alone <it> costs 40 %"]]
    (chart,) = section.all("svg")
    cards = [each.attributes["data-card"] for each in chart.all("g", data_card="")]
    assert len(cards) == 3 + 2  # distances of all, losses of two; no latency was measured
    assert [card.splitlines()[-1] for card in cards].count("this one was written") == 2
    assert "repair" not in sections(read_page(rendered(bare(report))))


def test_a_tuning_has_a_chart_and_a_table_of_what_was_tried(report: dict[str, Any]) -> None:
    made = bare(report)
    made["artifacts"][0]["tuning"] = {
        "speedup": 1.25,
        "reason": "1.25 times as fast as without, in 15 of 15 rounds, by stem",
        "images": 12,
        "seconds": 61.25,
        "limit": 120.0,
        "restless": True,
        "floats": {"model_0_conv": "float: <1.25x> faster here"},
        "curve": [
            {"name": "the plan without tuning", "float_macs": 0.01, "distance": 0.3, "latency_ms": 10.0},
            {"name": "sums", "float_macs": 0.01, "distance": 0.29, "speedup": 0.8, "latency_ms": 12.5, "outcome": "no"},
            {"name": "joins", "float_macs": 0.01, "speedup": 0.5, "latency_ms": 20.0, "outcome": "no"},
            {"name": "stem", "float_macs": 0.02, "distance": 0.25, "speedup": 1.25, "latency_ms": 8.0, "chosen": True},
        ],
    }
    (section,) = read_page(rendered(made)).all("section", id="tuning")
    said = " ".join(section.text.split())
    assert "in 15 of 15 rounds, by stem. The search took 61.2 of 120 seconds" in said
    assert "The machine was restless." in said
    tables = [
        [[cell.text for cell in row.all("th") + row.all("td")] for row in each.all("tr")]
        for each in section.all("tbody")
    ]
    assert [row[0] for row in tables[0]] == ["the plan without tuning", "sums", "joins", "stem"]
    assert tables[0][3][1:5] == ["2.0 %", "0.25", "1.25×", "8.0 ms"]
    assert tables[1] == [["model_0_conv", "float: <1.25x> faster here"]]
    (chart,) = section.all("svg")
    cards = [each.attributes["data-card"].splitlines() for each in chart.all("g", data_card="")]
    assert [card[0] for card in cards] == ["the plan without tuning", "sums", "stem"]  # of joins nobody knows how far
    assert [card[-1] for card in cards].count("this one was written") == 1
    assert "tuning" not in sections(read_page(rendered(bare(report))))


def test_a_front_is_what_no_other_point_beats() -> None:
    points = [CurvePoint(float_macs=x, distance=y) for x, y in ((0.3, 2), (0.1, 3), (0.2, 4), (0.1, 5), (0.4, 1))]
    assert [(each.float_macs, each.distance) for each in unbeaten(points, "distance")] == [(0.1, 3), (0.3, 2), (0.4, 1)]


def test_thumbnails_stop_before_the_page_gets_too_large(report: dict[str, Any]) -> None:
    artifacts = report_of(report).artifacts
    first, second = (Entry(f"artifacts.{i}", "", artifacts[i], "", {}) for i in (0, 2))
    images = [image.thumbnail for each in (first, second) for image in each.data.gallery or ()]
    # In turns: the first image of each, then the second of the first, for which there is no room.
    found = make_gallery((first, second), most=len(images[0]) + len(images[2]))
    assert [len(found.shots[each.at]) for each in (first, second)] == [1, 1]
    assert {each.uri for each in found.pictures} == {images[0], images[2]}
    assert len(make_gallery((first, first)).pictures) == 2
