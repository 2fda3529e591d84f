"""The report as a page: one HTML file that needs nothing else, rendered from report.json alone."""

from __future__ import annotations

from pathlib import Path

from qexport.files import write_text
from qexport.reporting.saved_report import read_report


def write_page(source: Path, path: Path) -> None:
    """Render a report.json into a page, which appears whole or not at all.

    Raises:
        InputError: the report cannot be used, or the page cannot be written.
    """
    from qexport.reporting.page.render import render

    write_text(path, render(read_report(source).content))
