"""A report as people are shown it: without intervals that look like certainty and are none."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from qexport.reporting.limits import MIN_INTERVAL_IMAGES
from qexport.reporting.report import AccuracyInfo, Report


def shown(report: Report) -> Report:
    """The report without intervals of accuracy over too few images, or over images that are all equal.

    Drawn again and again from a few images, a figure hardly moves; others may move it far. `report.json` has them all.
    """
    artifacts = [
        replace(each, accuracy=_with_telling_intervals(each.accuracy)) if each.accuracy else each
        for each in report.artifacts
    ]
    return replace(report, artifacts=tuple(artifacts))


def _with_telling_intervals(found: AccuracyInfo) -> AccuracyInfo:
    spans = {name: getattr(found, name) for name in INTERVALS}
    few = found.images < MIN_INTERVAL_IMAGES
    silent: dict[str, Any] = {name: None for name, span in spans.items() if span and (few or span[0] == span[1])}
    return replace(found, **silent)


INTERVALS = tuple(each.name for each in fields(AccuracyInfo) if each.name.endswith("_interval"))
