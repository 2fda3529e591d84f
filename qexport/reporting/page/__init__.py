"""The report as a page: one HTML file that needs nothing else, rendered from report.json alone."""

from __future__ import annotations

from pathlib import Path

from qexport.reporting.load import read_report
from qexport.system.files import write_text


def write_page(source: Path, path: Path) -> None:
    """Render a report.json into a page, which appears whole or not at all.

    Raises:
        InputError: the report cannot be used, or the page cannot be written.
    """
    from qexport.reporting.page.render import render

    write_text(path, render(read_report(source).content))
