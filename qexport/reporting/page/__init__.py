"""The report as a page: one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path

from qexport.reporting.report import Report
from qexport.system.files import write_text


def write_page(report: Report, path: Path) -> None:
    """Render a report into a page, which appears whole or not at all.

    Raises:
        InputError: the page cannot be written.
    """
    from qexport.reporting.page.render import render

    write_text(path, render(report))
