"""Charts of plans that were tried: what they lose against what they keep in float, or against what they take."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qexport.compat.plots import Axes, MaxNLocator, PercentFormatter
from qexport.optimisation.repair_record import CurvePoint
from qexport.optimisation.tune_record import Trial
from qexport.reporting.page.content import Entry
from qexport.reporting.page.svg import ASKED, INK, LINE, MUTED, PAPER, axes_in, drawing, svg_of, themed
from qexport.reporting.page.typeset import form_of, typeset

FIGURES = (
    ("distance", "distance from FP32, on held-out images"),
    ("lost_percent", "percent of FP32's accuracy lost"),
    ("latency_ms", "milliseconds, p50"),
)
"""Fields of a point that have a panel each where they were measured, and what they are called."""
WIDTH, HEIGHT = 280, 230
"""Pixels of a panel."""


@themed
def pareto(entry: Entry) -> Markup | None:
    """One panel for each figure that was measured: plans that no other beats are joined, what was written is filled."""
    points: Sequence[CurvePoint] = entry.data.repair.curve if entry.data.repair else ()
    shown = [(name, words) for name, words in FIGURES if sum(getattr(each, name) is not None for each in points) > 1]
    if not shown:
        return None
    figure = drawing(WIDTH * len(shown), HEIGHT)
    marks: dict[str, dict[str, str]] = {}
    for place, (name, words) in enumerate(shown):
        axes = axes_in(figure, 46 + place * WIDTH, 36, 10 + (len(shown) - 1 - place) * WIDTH, 24)
        axes.set_title(words, loc="left", fontsize=10, color=MUTED, pad=8)
        axes.set_xlabel("arithmetic in float", loc="right")
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        marks |= _panel(axes, [each for each in points if getattr(each, name) is not None], name)
    label = f"What {len(points)} plans lose against what they keep in float, {entry.title}"
    return svg_of(figure, f"pareto-{entry.number}", label, marks)


@themed
def tuning(entry: Entry) -> Markup | None:
    """Distance against latency of plans that were timed: those that no other beats are joined, what was written is
    filled.
    """
    every = entry.data.tuning.curve if entry.data.tuning else ()
    points = [each for each in every if each.latency_ms is not None and each.distance is not None]
    if len(points) < 2:
        return None
    figure = drawing(2 * WIDTH, HEIGHT)
    axes = axes_in(figure, 46, 36, 10, 24)
    axes.set_title(FIGURES[0][1], loc="left", fontsize=10, color=MUTED, pad=8)
    axes.set_xlabel("milliseconds", loc="right")
    marks = _panel(axes, points, "distance", "latency_ms")
    label = f"How far {len(points)} plans are from FP32 against what they take, {entry.title}"
    return svg_of(figure, f"tuning-{entry.number}", label, marks)


def _panel(
    axes: Axes, points: Sequence[CurvePoint], name: str, across: str = "float_macs"
) -> dict[str, dict[str, str]]:
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    front = unbeaten(points, name, across)
    axes.plot([getattr(each, across) for each in front], [getattr(each, name) for each in front], color=LINE, lw=1.4)
    marks = {}
    for place, each in enumerate(points):
        gid, face = f"{name}-{place}", ASKED if each.chosen else PAPER
        edge = ASKED if each in front else INK
        place_of = [getattr(each, across)], [getattr(each, name)]
        axes.plot(*place_of, "o", ms=6, mfc=face, mec=edge, gid=gid, clip_on=False)
        marks[gid] = {"data-card": _card(each)}
    axes.margins(0.06, 0.12)
    return marks


def unbeaten(points: Sequence[CurvePoint], name: str, across: str = "float_macs") -> list[CurvePoint]:
    """Points that have less of a figure than every point with as little of another, in order of that one."""
    front: list[CurvePoint] = []
    for each in sorted(points, key=lambda point: (getattr(point, across), getattr(point, name))):
        if not front or getattr(each, name) < getattr(front[-1], name):
            front.append(each)
    return front


def _card(point: CurvePoint) -> str:
    """Hover card of a point: all that was measured of a plan."""
    lines = [point.name] if isinstance(point, Trial) else []
    lines += [f"{typeset(point.float_macs, form_of('float_macs'))} of the arithmetic in float"]
    for name, words in (("distance", "distance"), ("lost_percent", "of FP32's accuracy lost"), ("latency_ms", "p50")):
        if getattr(point, name) is not None:
            lines.append(f"{typeset(getattr(point, name), form_of(name))} {words}")
    return "\n".join([*lines, *(["this one was written"] if point.chosen else [])])
