"""The page in a real browser, from file://, without network: it opens, sorts, chooses, and fits a phone."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sample_report import sample_report
from test_training_page import REPORT as TRAINING

from qexport.reporting.load import load_report
from qexport.reporting.page import write_page
from qexport.reporting.page.training_page import write_training

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PHONE, DESKTOP = (390, 844), (1280, 900)
FORMATS = ("tflite", "onnx", "openvino", "tensorrt")
MAX_BYTES = 3_000_000
PATIENCE = 120_000
"""Milliseconds: a busy machine is no fault of the page."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")


@dataclass
class Visit:
    """An open page, and all that it asked for and complained about."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """Four formats with as many values as YOLO26n has, and thumbnails that nothing compresses."""
    return sample_report(FORMATS, layers=447, images=12, pixels=280, histograms=8)


@pytest.fixture(scope="module")
def file(report: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    write_page(load_report(folder / "report.json"), folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all tests of this file, with a new empty profile."""
    with sync_api.sync_playwright() as driver:
        profile = tmp_path_factory.mktemp("profile")
        opened = driver.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=QUIET, timeout=PATIENCE
        )
        opened.set_default_timeout(PATIENCE)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def visit(browser: Any, file: Path) -> Visit:
    """The page as it opens on a desktop in daylight."""
    found = Visit(browser.new_page())
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.on("console", lambda message: found.complaints.append(message.text))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    look(found.page, DESKTOP, "light")
    found.page.goto(file.as_uri())
    return found


@pytest.fixture
def page(visit: Visit) -> Any:
    """The same page for every test, which leaves it as it likes: only sizes and colours are set back."""
    look(visit.page, DESKTOP, "light")
    return visit.page


def look(page: Any, size: tuple[int, int], scheme: str) -> None:
    page.set_viewport_size({"width": size[0], "height": size[1]})
    page.emulate_media(color_scheme=scheme, media="screen")


def picture(page: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(height, width, 3) of what is in sight."""
    return np.asarray(Image.open(io.BytesIO(page.screenshot(timeout=PATIENCE))).convert("RGB"))


def column(page: Any, table: str, index: int) -> list[str]:
    return [text.strip() for text in page.locator(f"{table} tbody tr > :nth-child({index})").all_text_contents()]


def test_it_opens_without_network_and_without_complaints(visit: Visit, file: Path) -> None:
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []
    assert visit.page.locator("nav a").all_text_contents()[:4] == ["Summary", "Gate", "Fidelity", "Classes"]


def test_four_artifacts_stay_small(file: Path, report: dict[str, Any]) -> None:
    assert len(report["artifacts"]) == 8
    thumbnails = sum(len(image["thumbnail"]) for each in report["artifacts"] for image in each["gallery"] or ())
    assert thumbnails > 1_500_000  # so many that not all can be shown
    assert 1_000_000 < file.stat().st_size < MAX_BYTES


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_it_fits_the_screen_in_both_themes(page: Any, size: tuple[int, int]) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        look(page, size, scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
        for name in ("summary", "classes", "confidence", "layers", "ranges", "gallery", "data", "run"):
            box = page.locator(f"section#{name}").bounding_box()
            assert box["height"] > 100, name
            assert box["x"] >= 0, name
            assert box["x"] + box["width"] <= size[0], name
        page.evaluate("document.getElementById('summary').scrollIntoView()")
        seen = picture(page)
        assert seen.shape[:2] == (size[1], size[0])
        colours = seen[::3, ::3].astype(np.int32) @ [1 << 16, 1 << 8, 1]
        assert len(np.unique(colours)) > 50
        assert seen.std() > 10
        brightness[scheme] = float(np.median(seen))
    assert brightness["light"] > 200 > 60 > brightness["dark"]


def test_a_trainings_page_fits_a_phone_and_its_charts_stay_legible(browser: Any, tmp_path: Path) -> None:
    long = "/".join(["folder" * 20, "data.yaml"])
    write_training(replace(TRAINING, data=long, command=f"qexport qat {long}", notes=(long,)), tmp_path / "train.html")
    page = browser.new_page()
    look(page, PHONE, "light")
    page.goto((tmp_path / "train.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    ends = "e => Math.max(...[...e.querySelectorAll('text')].map(t => t.getBoundingClientRect().right))"
    assert page.locator("svg.chart").count() == 3
    for chart in page.locator("svg.chart").all():
        box = chart.bounding_box()
        assert box["width"] >= 860  # letters of ten pixels stay so high
        assert chart.evaluate(ends) <= box["x"] + box["width"]
    page.close()


def test_wide_tables_scroll_inside_their_box_on_a_phone(page: Any) -> None:
    look(page, PHONE, "light")
    wide = page.evaluate("[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length")
    assert wide >= 1
    assert page.locator(".summary th[scope=row]").first.evaluate("e => getComputedStyle(e).position") == "sticky"


@pytest.mark.parametrize("name", ["#summary .scroll", "#sections"])
def test_what_goes_on_to_the_right_fades_and_what_ends_does_not(name: str, page: Any) -> None:
    masked = "name => getComputedStyle(document.querySelector(name)).maskImage !== 'none'"
    look(page, PHONE, "light")
    for place, wanted in ((0, True), (9999, False), (0, True)):
        page.evaluate("([name, place]) => { document.querySelector(name).scrollLeft = place; }", [name, place])
        page.wait_for_function(f"([name, wanted]) => ({masked})(name) === wanted", arg=[name, wanted])
    page.emulate_media(media="print")
    assert not page.evaluate(masked, name)


def test_nothing_fades_that_is_whole(page: Any) -> None:
    page.wait_for_function("getComputedStyle(document.getElementById('sections')).maskImage === 'none'")


def test_a_click_on_a_heading_sorts(page: Any, report: dict[str, Any]) -> None:
    table = "[data-rows='artifacts.0.accuracy.per_class']"
    rows = report["artifacts"][0]["accuracy"]["per_class"]
    labels = [str(n) for n in sorted(row["labels"] for row in rows)]
    page.click(f"{table} [data-key=labels] button")
    assert column(page, table, 2) == labels
    page.click(f"{table} [data-key=labels] button")
    assert column(page, table, 2) == labels[::-1]
    assert page.get_attribute(f"{table} [data-key=labels]", "aria-sort") == "descending"
    page.click(f"{table} [data-key=drop] button")
    by_drop = sorted(rows, key=lambda row: row["map_float"] - row["map"])
    assert column(page, table, 1) == [row["name"] for row in by_drop]
    page.click(f"{table} [data-key=name] button")
    assert set(column(page, table, 1)[1:]) == {"bicycle", "person", "traffic light"}
    assert column(page, table, 1)[1:] == ["bicycle", "person", "traffic light"]


def test_what_was_not_measured_is_sorted_last(page: Any) -> None:
    table = "[data-rows='artifacts.0.layers']"
    page.evaluate("document.querySelector('#layers details').open = true")
    for direction in (1, -1):
        page.click(f"{table} [data-key=sqnr_db] button")
        levels = column(page, table, 4)
        measured = [float(text) for text in levels if text != "–"]
        assert 400 < len(measured) < len(levels) == 447
        assert measured == sorted(measured, reverse=direction < 0)
        assert set(levels[len(measured) :]) == {"–"}


def test_choosing_an_artifact_chooses_it_in_every_section(page: Any) -> None:
    page.click("#classes [data-choose='artifacts.4']")
    for section in ("classes", "confidence", "layers", "ranges", "gallery"):
        shown = page.evaluate(
            "s => [...document.querySelectorAll(`#${s} .panel`)].filter(e => e.offsetHeight).map(e => e.dataset.panel)",
            section,
        )
        assert shown == ["artifacts.4"]
    assert page.locator("#gallery [aria-pressed=true]").first.text_content() == "OpenVINO"
    page.click("#gallery [data-choose='artifacts.0']")


@pytest.mark.parametrize(
    ("button", "lost", "gained"), [("float", True, False), ("asked", False, True), ("both", True, True)]
)
def test_the_gallery_shows_either_side_or_both(page: Any, button: str, lost: bool, gained: bool) -> None:
    page.click(f"[data-overlay={button}]")
    shot = page.locator("#gallery .panel:not([hidden]) .shots svg").nth(1)
    assert shot.locator(".kept rect").is_visible()
    assert shot.locator(".lost rect").is_visible() is lost
    assert shot.locator(".gained rect").is_visible() is gained
    assert page.get_attribute(f"[data-overlay={button}]", "aria-pressed") == "true"


def test_thumbnails_are_drawn(page: Any) -> None:
    page.locator("#gallery .shots svg").first.scroll_into_view_if_needed()
    box = page.locator("#gallery .shots svg").first.bounding_box()
    top, left = int(box["y"]), int(box["x"])
    seen = picture(page)[max(top, 0) + 20 : top + 120, left + 120 : left + 200]
    assert seen.std() > 30  # noise


def test_the_theme_switches_by_hand(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.click("#theme")
    dark = page.evaluate(colour)
    assert sum(map(int, dark[4:-1].split(","))) < 150 < 700 < sum(map(int, light[4:-1].split(",")))
    page.click("#theme")
    assert page.evaluate(colour) == light
    page.evaluate("delete document.documentElement.dataset.theme")


def test_pointing_at_a_value_tells_why(page: Any, report: dict[str, Any]) -> None:
    chart = page.locator("[data-layers='0']")
    chart.scroll_into_view_if_needed()
    layers = report["artifacts"][0]["layers"]
    chart.hover()
    first = page.locator("#card").text_content()
    (found,) = (row for row in layers if first.startswith(f"{row['name']}\n"))
    assert found["why"] in first
    assert abs(layers.index(found) - len(layers) // 2) < 8  # the pointer is in the middle
    page.mouse.move(2, 2)
    assert page.locator("#card").is_hidden()


def test_arrow_keys_go_through_the_values(page: Any, report: dict[str, Any]) -> None:
    layers = report["artifacts"][0]["layers"]
    page.evaluate("document.querySelector(\"[data-layers='0']\").focus()")
    names = []
    for _ in range(3):
        page.keyboard.press("ArrowRight")
        names.append(page.locator("#card").text_content().split("\n")[0])
    at = [row["name"] for row in layers].index(names[0])
    assert names == [row["name"] for row in layers[at : at + 3]]
    page.keyboard.press("Escape")
    assert page.locator("#card").is_hidden()


def test_pointing_at_a_point_tells_its_figures_and_warnings(page: Any) -> None:
    page.locator("[data-point='artifacts.0'] use").hover()
    lines = (page.locator("#card").text_content() or "").split("\n")
    assert lines[:3] == ["TFLite INT8", "0.4426", "42.3 ms p50"]
    assert any(line.startswith("⚠ latency varied") for line in lines)
    page.mouse.move(2, 2)
    page.keyboard.press("Tab")
    page.evaluate("document.querySelector(\"[data-point='artifacts.2']\").focus()")
    assert (page.locator("#card").text_content() or "").startswith("ONNX INT8\n0.4395\n43.3 ms p50")
    page.keyboard.press("Escape")


def test_paper_shows_every_artifact_and_no_buttons(page: Any) -> None:
    page.emulate_media(media="print")
    assert page.locator("#classes .panel:visible").count() == 4
    assert page.locator("button:visible").filter(has_text="ONNX").count() == 0
    assert page.locator("nav").is_hidden()


def test_nothing_was_asked_for_or_complained_about_after_all_that(visit: Visit, file: Path) -> None:
    assert visit.requests == [file.as_uri()]
    assert visit.complaints == []
