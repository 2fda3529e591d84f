"""What parts of a plan cost as a page: bars, the worst first, and the same figures as a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from qexport.compat.plots import PercentFormatter
from qexport.optimisation.sensitivity_record import Sensitivity, SensitivityRow
from qexport.reporting.page.environment import filled
from qexport.reporting.page.svg import ASKED, INK, SOFT, axes_in, drawing, svg_of, themed
from qexport.reporting.page.typeset import form_of, typeset
from qexport.system.files import write_text

MAX_BARS = 32
"""Of each chart: what comes behind costs next to nothing; the table has all."""


def write_sensitivity(found: Sensitivity, path: Path, model: str) -> None:
    """Render it into a page, which appears whole or not at all.

    Args:
        model: name of the model's file.

    Raises:
        InputError: the page cannot be written.
    """
    blocks = [row for row in found.rows if row.kind == "block"]
    charts = {"Blocks": bars(found, blocks, "blocks"), "Layers and joints": bars(found, found.single, "layers")}
    write_text(path, filled("sensitivity.html", found=found, model=model, charts=charts))


@themed
def bars(found: Sensitivity, rows: Sequence[SensitivityRow], name: str) -> Markup | None:
    """What each costs alone as a share of the whole plan's distance, and, thin, what leaving it out gains."""
    shown = rows[:MAX_BARS]
    if not shown or not found.whole:
        return None
    figure = drawing(860, 44 + 18 * len(shown))
    axes = axes_in(figure, 250, 38, 16, 6)
    marks: dict[str, dict[str, str]] = {}
    for place, row in enumerate(shown):
        gid = f"{name}-{place}"
        axes.barh(place, found.share(row), 0.62, color=ASKED, lw=0, gid=gid)
        axes.barh(place + 0.36, max(0.0, found.gain(row) / found.whole), 0.14, color=SOFT, lw=0)
        marks[gid] = {"data-card": _card(found, row)}
    axes.set_yticks(range(len(shown)), [row.name for row in shown], color=INK)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("of the whole plan's distance, alone; thin: gained by leaving it out", loc="right")
    return svg_of(figure, f"sensitivity-{name}", f"What {len(shown)} {name} cost, the worst first", marks)


def _card(found: Sensitivity, row: SensitivityRow) -> str:
    """Hover card of a bar: the same figures as in the table."""
    alone, macs = typeset(found.share(row), form_of("coverage")), typeset(row.macs, form_of("coverage"))
    gain = typeset(found.gain(row), form_of("after"))
    noise = typeset(row.noise, form_of("after"))
    return f"{row.name}\nalone {alone} of the distance\nleft out: {gain} less ± {noise}\n{macs} of the arithmetic"
