"""The charts of the page; what they show is in tables or hover cards, too."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from qexport.compat.plots import Axes, MaxNLocator
from qexport.measurement.evidence.parts import Layer
from qexport.reporting.page.content import Entry
from qexport.reporting.page.svg import ASKED, FLOAT, INK, LINE, MUTED, PAPER, SOFT, axes_in, drawing, svg_of, themed
from qexport.reporting.page.typeset import form_of, lookup, typeset

MARKERS = ("o", "s", "D", "^", "v", "P")
"""One for each format, in the order of the report."""
MAX_DB = 60.0
"""Height of the waterfall: pixels that are exactly integers have far more, and would flatten the rest."""
LABEL_HEIGHT, LABEL_WIDTH = 13.0, 70.0
"""Pixels that the name beside a point takes."""


@themed
def scatter(entries: Sequence[Entry], metric: str) -> Markup | None:
    """Accuracy against latency: FP32 hollow, what was asked for filled, joined for each format.

    The bar on a filled point is the paired interval of its difference from FP32.
    """
    shown = [each for each in entries if lookup(each.data, "accuracy.map") is not None and each.data.latency_ms]
    if len(shown) < 2:
        return None
    figure = drawing(360, 270)
    axes = axes_in(figure, 42, 36, 8, 22)
    formats = list(dict.fromkeys(each.format for each in shown))
    for name in formats:
        _format_points(axes, [each for each in shown if each.format == name], MARKERS[formats.index(name) % 6])
    axes.set_xlim(0, max(x_of(each) for each in shown) * 1.18)
    axes.margins(y=0.12)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.set_xlabel("milliseconds, p50", loc="right")
    axes.set_title(metric, loc="left", fontsize=10, color=MUTED, pad=8)
    _name_points(axes, [each for each in shown if each.kind == "asked"] or shown)
    marks = {each.at.replace(".", "-"): _point_card(each) for each in shown}
    return svg_of(figure, "scatter", f"{metric} against latency of {len(shown)} artifacts", marks)


def x_of(entry: Entry) -> float:
    """Where a point stands: milliseconds."""
    return float(lookup(entry.data, "latency_ms.p50"))


def y_of(entry: Entry) -> float:
    """How high a point stands: mAP, or a classifier's accuracy."""
    return float(lookup(entry.data, "accuracy.map"))


def _format_points(axes: Axes, pair: Sequence[Entry], marker: str) -> None:
    axes.plot([x_of(each) for each in pair], [y_of(each) for each in pair], color=LINE, lw=1.2, zorder=1)
    for each in pair:
        colour = ASKED if each.kind == "asked" else FLOAT
        face = colour if each.kind == "asked" else PAPER
        drop, reach = each.scored("drop_interval"), each.scored("map_float")
        if drop and reach is not None:
            axes.vlines(x_of(each), reach - drop[1], reach - drop[0], color=SOFT, lw=2, zorder=2, clip_on=False)
        gid = each.at.replace(".", "-")
        axes.plot([x_of(each)], [y_of(each)], marker, ms=8, mfc=face, mec=colour, mew=1.6, gid=gid, clip_on=False)


def _point_card(entry: Entry) -> dict[str, str]:
    """Hover card of a point: the same figures as in the table."""
    lines = [entry.title]
    for path, name in (("accuracy.map", ""), ("latency_ms.p50", " ms p50"), ("latency_ms.p95", " ms p95")):
        lines.append(typeset(lookup(entry.data, path), form_of(path)) + name)
    lines += [entry.origin] if entry.origin else []
    noted = [w.text for kind in ("accuracy", "latency") for w in entry.warnings[kind]]
    text = "\n".join([*lines, *(f"⚠ {each}" for each in noted)])
    return {"data-card": text, "data-point": entry.at, "tabindex": "0", "role": "img", "aria-label": text}


def _name_points(axes: Axes, entries: Sequence[Entry]) -> None:
    """Write names beside points, moved apart where they would overlap."""
    axes.set_ylim(*axes.get_ylim())
    to_pixels = axes.transData.transform
    placed: list[tuple[float, float]] = []
    for each in sorted(entries, key=y_of, reverse=True):
        x, y = to_pixels((x_of(each), y_of(each)))
        while clash := [at for at in placed if abs(at[0] - x) < LABEL_WIDTH and abs(at[1] - y) < LABEL_HEIGHT]:
            y = min(at[1] for at in clash) - LABEL_HEIGHT
        placed.append((x, y))
        right, height = axes.transData.inverted().transform((x + 9, y))
        axes.text(right, height, each.format, va="center", color=INK, fontsize=10)


@themed
def confidence(entry: Entry) -> Markup | None:
    """How far scores moved: INT8 − FP32 of detections that pair up."""
    found = entry.data.accuracy.confidence if entry.data.accuracy else None
    if found is None or not found.counts:
        return None
    edges, counts = np.asarray(found.bins, float), np.asarray(found.counts, float)
    figure = drawing(360, 200)
    axes = axes_in(figure, 34, 36, 8, 10)
    marks: dict[str, Mapping[str, str]] = {}
    for i, count in enumerate(counts):
        axes.bar(edges[i], count, 0.93 * (edges[i + 1] - edges[i]), align="edge", color=ASKED, lw=0, gid=f"bin{i}")
        span = " to ".join(typeset(float(edge), form_of("bins")) for edge in edges[i : i + 2])
        marks[f"bin{i}"] = {"data-card": f"{span}\n{typeset(float(count), form_of('counts'))} detections"}
    axes.axvline(0, color=MUTED, lw=1, ls=(0, (3, 3)))
    axes.set_xlim(*_around(edges, counts))
    axes.set_xlabel(f"confidence, {entry.precision} − FP32", loc="right")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return svg_of(figure, f"confidence-{entry.number}", f"Histogram of confidence shifts, {entry.title}", marks)


def _around(edges: NDArray[np.floating], counts: NDArray[np.floating]) -> tuple[float, float]:
    """Limits as far to the left as to the right, just wide enough for all that was counted."""
    filled = np.flatnonzero(counts)
    if not len(filled):
        return float(edges[0]), float(edges[-1])
    reach = max(abs(edges[filled[0]]), abs(edges[filled[-1] + 1]))
    return -float(reach), float(reach)


@themed
def waterfall(entry: Entry) -> Markup | None:
    """Signal to quantisation noise of every value in order of computation; values left float are pale."""
    layers = entry.data.layers or ()
    levels = np.array([_level(layer) for layer in layers])
    if not levels.any():
        return None
    figure = drawing(860, 220)
    axes = axes_in(figure, 26, 36, 4, 22)
    places = np.arange(len(levels) + 1) - 0.5
    floating = np.array([layer.dtype.startswith("float") for layer in layers])
    axes.stairs(np.where(floating, 0, levels), places, fill=True, color=ASKED, lw=0)
    axes.stairs(np.where(floating, levels, 0), places, fill=True, color=SOFT, lw=0)
    axes.set_xlim(places[0], places[-1])
    axes.set_ylim(min(0.0, float(levels.min())), min(MAX_DB, float(levels.max())) * 1.03)
    starts = module_starts([layer.name for layer in layers])
    axes.set_xticks(list(starts), list(starts.values()))
    axes.set_xlabel("module, in order of computation", loc="right")
    axes.set_title("dB", loc="left", fontsize=10, color=MUTED, pad=8)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    left, right = 26 / 860, 1 - 4 / 860
    marks = {"": {"data-layers": str(entry.number), "data-span": f"{left:.5f} {right:.5f}", "tabindex": "0"}}
    label = f"Signal to quantisation noise of {len(layers)} values, {entry.title}; arrow keys go through them"
    return svg_of(figure, f"waterfall-{entry.number}", label, marks)


def _level(layer: Layer) -> float:
    return 0.0 if layer.sqnr_db is None else layer.sqnr_db


def module_starts(names: Sequence[str], most: int = 24) -> dict[int, str]:
    """Place of the first value of each module → its number, where names tell; otherwise every so many values."""
    found: dict[int, str] = {}
    seen = ""
    for i, name in enumerate(names):
        module = re.match(r"model[._](\d+)", name)
        if module and module.group(1) != seen and (not found or i - max(found) >= len(names) / 60):
            found[i] = seen = module.group(1)
    step = max(1, -(-len(names) // most))
    return found or {i: str(i) for i in range(0, len(names), step)}


@themed
def activations(entry: Entry, index: int) -> Markup | None:
    """Histogram of one value over the calibration images; what the chosen range cuts off is of the other colour.

    Heights are logarithms: the tails that decide a range are a millionth of the bulk.
    """
    found = (entry.data.histograms or ())[index]
    edges, counts = np.asarray(found.edges, float), np.asarray(found.counts, float)
    if not counts.any():
        return None
    heights = np.log10(1 + counts)
    middles = (edges[:-1] + edges[1:]) / 2
    inside = (middles >= found.low) & (middles <= found.high)
    figure = drawing(220, 112)
    axes = axes_in(figure, 4, 20, 4, 6)
    axes.stairs(np.where(inside, heights, 0), edges, fill=True, color=ASKED, lw=0)
    axes.stairs(np.where(inside, 0, heights), edges, fill=True, color=FLOAT, lw=0)
    for bound in (found.low, found.high):
        axes.axvline(bound, color=INK, lw=1)
    axes.set_yticks([])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    label = f"Histogram of {found.name} with the range that was chosen"
    return svg_of(figure, f"values-{entry.number}-{index}", label)
