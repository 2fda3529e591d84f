"""A training run as a page: distance and loss over epochs beside start and FP32, and the same figures as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from markupsafe import Markup

from qexport.compat.plots import Axes, MaxNLocator
from qexport.reporting.page.environment import filled
from qexport.reporting.page.svg import ASKED, FLOAT, INK, MUTED, axes_in, drawing, svg_of, themed
from qexport.reporting.page.typeset import form_of, typeset
from qexport.reporting.training_report import TrainingReport
from qexport.system.files import write_text
from qexport.training.record import EpochRecord, TrainingRecord

WIDTH, LEFT, RIGHT = 860, 62, 92
MARKED = 40
"""Epochs that points are drawn for; more would run into each other."""


def write_training(report: TrainingReport, path: Path) -> None:
    """Render it into a page, which appears whole or not at all.

    Raises:
        InputError: the page cannot be written.
    """
    write_text(path, filled("training.html", report=report, curves=curves))


def curves(record: TrainingRecord, name: str) -> dict[str, Markup | None]:
    """Title → chart, of what changes over the epochs; `name`: unique on the page."""
    if not record.epochs:
        return {}
    return {
        "Distance from FP32": distance_curve(record, name),
        "Loss": loss_curve(record, name),
        "Learning rates": rate_curves(record, name),
    }


@themed
def distance_curve(record: TrainingRecord, name: str) -> Markup:
    """Distance of the simulated network on held-out images after each epoch; lines for the start, and for FP32 at 0."""
    figure = drawing(WIDTH, 260)
    axes = _over_epochs(axes_in(figure, LEFT, 36, RIGHT, 10), record.epochs)
    numbers, distances = [0, *_numbers(record.epochs)], [record.start, *(each.distance for each in record.epochs)]
    axes.axhline(record.start, color=FLOAT, lw=1.4, ls=(0, (4, 3)))
    axes.axhline(0, color=INK, lw=1.4)
    axes.plot(numbers, distances, color=ASKED, lw=1.8)
    marks = _points(axes, record.epochs, f"distance-{name}", lambda each: each.distance)
    axes.set_xlim(0, max(numbers))
    axes.set_ylim(0, 1.12 * max(distances))
    for height, text in ((record.start, "before training"), (0.0, "FP32")):
        _name(axes, text, height)
    best = next((each for each in record.epochs if each.number == record.best), None)
    if best:
        axes.plot([best.number], [best.distance], "o", ms=11, mfc="none", mec=ASKED, mew=1.4, clip_on=False)
    label = f"Distance from FP32 over {len(record.epochs)} epochs, {record.profile}"
    return svg_of(figure, f"distance-{name}", label, marks)


@themed
def loss_curve(record: TrainingRecord, name: str) -> Markup:
    """What training makes smaller, mean over each epoch."""
    figure = drawing(WIDTH, 200)
    axes = _over_epochs(axes_in(figure, LEFT, 36, RIGHT, 10), record.epochs)
    axes.plot(_numbers(record.epochs), [each.loss for each in record.epochs], color=ASKED, lw=1.8)
    marks = _points(axes, record.epochs, f"loss-{name}", lambda each: each.loss)
    return svg_of(figure, f"loss-{name}", f"Loss over {len(record.epochs)} epochs, {record.profile}", marks)


@themed
def rate_curves(record: TrainingRecord, name: str) -> Markup | None:
    """Learning rate of each group of parameters at the end of each epoch, on a logarithmic scale; 0 is not drawn."""
    figure = drawing(WIDTH, 180)
    axes = _over_epochs(axes_in(figure, LEFT, 36, RIGHT, 10), record.epochs)
    for group, colour, dashes in (("weights", ASKED, "-"), ("scales", FLOAT, "--"), ("biases", MUTED, ":")):
        rates = {each.number: each.rates.get(group, 0.0) for each in record.epochs}
        known = {number: rate for number, rate in rates.items() if rate > 0}
        if known:
            axes.plot(list(known), list(known.values()), color=colour, lw=1.6, ls=dashes, marker="o", ms=3)
            _name(axes, group, list(known.values())[-1])
    if not axes.lines:
        return None
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}".replace("e-0", "e−"))
    return svg_of(figure, f"rates-{name}", f"Learning rates over {len(record.epochs)} epochs, {record.profile}")


def _name(axes: Axes, text: str, height: float) -> None:
    """Write what a line is at its right end."""
    axes.annotate(text, (1, height), (8, 0), ("axes fraction", "data"), textcoords="offset points", va="center")


def _numbers(epochs: Sequence[EpochRecord]) -> list[int]:
    return [each.number for each in epochs]


def _over_epochs(axes: Axes, epochs: Sequence[EpochRecord]) -> Axes:
    """Axes whose horizontal one counts epochs."""
    axes.set_xlim(0, max(_numbers(epochs)))
    axes.xaxis.set_major_locator(MaxNLocator(12, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("epoch", loc="right")
    return axes


def _points(
    axes: Axes, epochs: Sequence[EpochRecord], name: str, height: Callable[[EpochRecord], float]
) -> dict[str, dict[str, str]]:
    """Draw a point with a hover card for each epoch, and return what their elements say."""
    marks: dict[str, dict[str, str]] = {}
    for each in epochs[:: -(-len(epochs) // MARKED)]:
        gid = f"{name}-{each.number}"
        axes.plot([each.number], [height(each)], "o", ms=5, color=ASKED, gid=gid, clip_on=False)
        text = f"epoch {each.number}\nloss {_set(each.loss)}\ndistance {_set(each.distance)}"
        marks[gid] = {"data-card": text, "tabindex": "0", "role": "img", "aria-label": text}
    return marks


def _set(value: float) -> str:
    return typeset(value, form_of("after"))
