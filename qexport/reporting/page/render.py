"""From a report to the text of the page: templates filled with what `content` arranges, figures through `typeset`."""

from __future__ import annotations

from functools import partial

from markupsafe import Markup

from qexport.backends.registry import display_name
from qexport.reporting.page import charts, content, gallery
from qexport.reporting.page.environment import filled
from qexport.reporting.page.pareto import pareto, tuning
from qexport.reporting.page.training_page import curves
from qexport.reporting.page.typeset import NOTHING, form_of, lookup, typeset
from qexport.reporting.provenance import taken_lines
from qexport.reporting.report import Report, file_name
from qexport.reporting.shown import shown
from qexport.reporting.verdict import verdicts


def render(report: Report) -> str:
    """The page, one HTML document that loads nothing."""
    report = shown(report)
    entries = content.entries_of(report)
    asked = content.asked_of(entries)
    known = {
        "figure": partial(figure, report),
        "lookup": partial(lookup, report),
        "charts": charts,
        "curves": curves,
        "content": content,
        "file_name": file_name,
        "format_name": display_name,
        "drawn": gallery,
        "pareto": pareto,
        "tuning": tuning,
    }
    return filled(
        "page.html",
        known,
        report=report,
        entries=entries,
        asked=asked,
        metrics=report.metrics,
        precision=asked[0].precision if asked else "",
        headline=content.headline(asked),
        subject=content.subject(report),
        timed=any(each.part("latency_ms") for each in entries),
        paired=any(each.scored("drop_interval") for each in asked),
        resamples=next((f"{each.at}.accuracy.resamples" for each in asked if each.scored("resamples")), ""),
        gallery=gallery.make_gallery(asked),
        verdicts=verdicts(report, content.title_of),
        warnings=content.warnings_of(report),
        taken=taken_lines(report),
    )


def figure(report: Report, path: str) -> Markup:
    """A figure of the report as an element that says where it comes from; a dash where it was not measured."""
    value = lookup(report, path)
    if value is None:
        return Markup('<span class="nothing">{}</span>').format(NOTHING)
    return Markup('<data data-figure="{}" value="{}">{}</data>').format(path, value, typeset(value, form_of(path)))
