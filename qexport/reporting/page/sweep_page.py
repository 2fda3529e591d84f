"""A sweep as a page: accuracy against latency with the size as the dot, and all figures in one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from qexport.compat.plots import MaxNLocator
from qexport.reporting.page.environment import filled
from qexport.reporting.page.svg import ASKED, INK, LINE, MUTED, PAPER, axes_in, drawing, svg_of, themed
from qexport.reporting.page.typeset import form_of, typeset
from qexport.reporting.report import ACCURACY, LATENCY
from qexport.reporting.sweep_ranking import Ranked, ranked
from qexport.reporting.sweep_report import SweepReport
from qexport.system.files import write_text

MIN_DOT, MAX_DOT = 5.0, 22.0
"""Pixels across: areas are as file sizes, the largest file has the largest."""
MARKS = {ACCURACY: "most accurate", LATENCY: "fastest"}


def write_sweep_page(report: SweepReport, path: Path) -> None:
    """Render it into a page, which appears whole or not at all; links lead to the runs' own pages beside it.

    Raises:
        InputError: the page cannot be written.
    """
    rows = ranked(report)
    measures = dict.fromkeys(row.measure for row in rows if row.accuracy is not None)
    charts = {name: plot(rows, name, number) for number, name in enumerate(measures)}
    others = [run for run in report.runs if run.line or not run.artifacts]
    write_text(path, filled("sweep.html", report=report, rows=rows, charts=charts, marks=MARKS, others=others))


@themed
def plot(rows: Sequence[Ranked], measure: str, number: int) -> Markup | None:
    """Artifacts with one measure of accuracy; those that no other beats are joined, for each processor by itself."""
    shown = [row for row in rows if row.measure == measure and None not in (row.accuracy, row.latency)]
    if len(shown) < 2:
        return None
    figure = drawing(860, 360)
    axes = axes_in(figure, 52, 36, 30, 26)
    axes.set_title(measure, loc="left", fontsize=10, color=MUTED, pad=8)
    axes.set_xlabel("milliseconds, p50", loc="right")
    axes.xaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_locator(MaxNLocator(6))
    for processor in dict.fromkeys(row.run.processor for row in shown):
        front = sorted(_points([row for row in shown if row.unbeaten and row.run.processor == processor]))
        axes.plot([x for x, _ in front], [y for _, y in front], color=LINE, lw=1.4, zorder=1)
    largest, marks = max(row.artifact.bytes for row in shown), dict[str, dict[str, str]]()
    for place, (row, (x, y)) in enumerate(zip(shown, _points(shown), strict=True)):
        gid, size = f"sweep-{number}-{place}", max(MIN_DOT, MAX_DOT * (row.artifact.bytes / largest) ** 0.5)
        face, edge = (ASKED, PAPER) if row.unbeaten else ("none", INK)
        axes.plot([x], [y], "o", ms=size, mfc=face, mec=edge, mew=1.2, alpha=0.85, gid=gid, clip_on=False)
        marks[gid] = _card(row)
    axes.set_xlim(left=0)
    axes.margins(x=0.08, y=0.14)
    return svg_of(figure, f"sweep-{number}", f"{measure} against latency of {len(shown)} artifacts", marks)


def _points(rows: Sequence[Ranked]) -> list[tuple[float, float]]:
    return [(row.latency or 0.0, row.accuracy or 0.0) for row in rows]


def _card(row: Ranked) -> dict[str, str]:
    """Hover card of a point: the same figures as in the table."""
    kind = "fidelity" if row.artifact.map is None else "map"
    figures = (
        f"{row.measure} {typeset(row.accuracy, form_of(kind))}",
        typeset(row.latency, form_of("latency_ms")),
        f"{typeset(row.artifact.bytes, form_of('bytes'))} MB",
    )
    warned = [f"⚠ its report warns about {' and '.join(row.artifact.warned)}"] if row.artifact.warned else []
    text = "\n".join([f"{row.run.label}: {row.artifact.label}", *figures, *warned, *(MARKS[each] for each in row.best)])
    return {"data-card": text, "tabindex": "0", "role": "img", "aria-label": text}
