"""Intervals that people are shown: none that reads as certainty and is none; the report keeps them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_terminal import printed
from test_verdict import INT8, REPORT

from qexport.reporting.page.render import render
from qexport.reporting.report import AccuracyInfo, Report, to_json
from qexport.reporting.summary import to_markdown

SCORED = AccuracyInfo(
    map=0.39, map_float=0.4, drop=0.01, retention=0.975, fidelity=0.995, fidelity50=0.996, images=100, resamples=1000
)


def scored(images: int, interval: tuple[float, float]) -> Report:
    accuracy = replace(SCORED, images=images, fidelity_interval=interval, drop_interval=interval)
    return replace(REPORT, artifacts=(replace(INT8, accuracy=accuracy),))


@pytest.mark.parametrize(
    ("images", "interval", "there"),
    [(7, (0.991, 0.997), False), (100, (0.995, 0.995), False), (8, (0.991, 0.997), True)],
)
def test_intervals_are_shown_where_they_say_something(images: int, interval: tuple[float, float], there: bool) -> None:
    report = scored(images, interval)
    low = f"{interval[0]:.3f}"
    told = " ".join(" ".join(printed(report)).split())
    assert "at IoU 0.50 0.996" in told
    assert (f"[{low}, {interval[1]:.3f}]" in told) == there
    assert (f"{low}–" in to_markdown(report) or f"[{low}" in to_markdown(report)) == there
    assert ("fidelity_interval" in render(report)) == there
    assert ("drop_interval" in render(report)) == there
    assert str(interval[0]) in to_json(report).split('"fidelity_interval"')[1][:60]
