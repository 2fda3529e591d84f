"""The verb `report`: a page from a report.json that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qexport.cli.output import say
from qexport.errors import UsageError


def report_command(
    report: Annotated[Path, typer.Argument(help="A report.json that qexport wrote, or its folder.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The page. Default: beside the report.", show_default=False)
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Render a report.json as a page: one HTML file that needs no network."""
    from qexport.compat.quiet import quiet_libraries

    quiet_libraries()
    from qexport.inspection.run_folder import report_in
    from qexport.reporting.load import load_report
    from qexport.reporting.page import write_page

    report = report_in(report)
    page = out or report.with_suffix(".html")
    if page.absolute() == report.absolute():
        raise UsageError(f"--out {page} is the report itself", "give another name for the page")
    write_page(load_report(report), page)
    if not quiet:
        say(f"wrote {page}")
