"""The verb `sensitivity`: what each layer and each block costs when it is quantised."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from qexport.cli.completion import model_path
from qexport.cli.console import Timeout, library_output
from qexport.cli.console import option as _option
from qexport.cli.output import Rows, sentence, show
from qexport.errors import UsageError

if TYPE_CHECKING:
    from qexport.optimisation.sensitivity_record import Sensitivity, SensitivityRow

MAX_ROWS = 20
"""Of each table in the terminal; files have all."""
QUICK = 150
"""Sets of tensors that are tried with --quick."""


def sensitivity_command(
    model: Annotated[
        str,
        typer.Argument(
            help="Checkpoint (.pt), name that Ultralytics knows, or float .onnx.", autocompletion=model_path
        ),
    ],
    data: Annotated[str | None, _option("Data set YAML: its train split calibrates and measures.", "--data")] = None,
    format_: Annotated[str, _option("Format whose plan is looked at. Default: tflite.", "--format", "-f")] = "tflite",
    precision: Annotated[str, _option("Precision of the plan. Default: int8.", "--precision")] = "int8",
    imgsz: Annotated[str | None, _option("Image size: 640, or height and width: 480 640.", "--imgsz")] = None,
    ranges: Annotated[str | None, _option("How ranges of activations are chosen.", "--ranges")] = None,
    calibration: Annotated[Path | None, _option("Reuse a calibration.npz.", "--calibration")] = None,
    plan: Annotated[Path | None, _option("Look at this plan.json.", "--plan")] = None,
    candidate: Annotated[Path | None, _option("Look at this candidate.npz.", "--candidate")] = None,
    images: Annotated[int, _option("How many images to measure on. Default: 16.", "--images")] = 16,
    quick: Annotated[bool, _option("Blocks, and the layers of the worst ones.", "--quick")] = False,
    no_cache: Annotated[bool, _option("Take no calibration of an earlier run, leave none.", "--no-cache")] = False,
    json_: Annotated[Path | None, _option("Write all of it as JSON.", "--json")] = None,
    page: Annotated[Path | None, _option("Write charts and all figures as a page.", "--out", "-o")] = None,
    timeout: Timeout = None,
    quiet: Annotated[bool, _option("Print errors only.", "--quiet", "-q")] = False,
) -> int:
    """Measure what each layer and each block costs: quantised alone, and left out alone."""
    from qexport.job.checks import PLANLESS
    from qexport.job.options import make_job

    if images < 1:
        raise UsageError(f"--images {images} is out of range", "give 1 or more")
    if data is None:
        raise UsageError("sensitivity needs images to measure on", "add --data DATA.yaml")
    given: dict[str, Any] = {"model": model, "data": data, "format": format_, "precision": precision, "no_eval": True}
    given |= {"imgsz": imgsz, "ranges": ranges, "calibration": calibration, "plan": plan, "candidate": candidate}
    job = make_job({**given, "no_cache": no_cache})
    if job.precision in PLANLESS:
        raise UsageError(f"--precision {job.precision} has nothing that is planned", "give --precision int8")
    from qexport.cli.progress import shown_progress
    from qexport.compat.quiet import quiet_libraries
    from qexport.job.places import check_paths

    quiet_libraries()
    check_paths(job)
    with library_output() as terminal, shown_progress(terminal, quiet, timeout) as progress:
        from qexport.pipeline import sensitivity_of

        found = sensitivity_of(job, images, QUICK if quick else None, progress)
        _write(found, json_, page, Path(model).name)
    if not quiet:
        _show(found, Console())
    return 0


def _write(found: Sensitivity, json_: Path | None, page: Path | None, model: str) -> None:
    if json_:
        from qexport.reporting.sensitivity_file import save_sensitivity

        save_sensitivity(found, json_)
    if page:
        from qexport.reporting.page.sensitivity_page import write_sensitivity

        write_sensitivity(found, page, model)


def _show(found: Sensitivity, console: Console) -> None:
    told = (
        f"The plan for {found.profile} is {found.whole:.4g} ± {found.noise:.2g} from the float program "
        f"({found.images} images). Shares add up to more than 100 %: errors of parts add in squares."
    )
    show(console, sentence(told))
    for title, rows in (("Block", [row for row in found.rows if row.kind == "block"]), ("Layer", found.single)):
        if rows:
            show(console, _table(found, rows[:MAX_ROWS], title))
        if len(rows) > MAX_ROWS:
            show(console, sentence(f"… and {len(rows) - MAX_ROWS} more: see --json, --out"))
    if found.skipped:
        show(console, sentence(f"{found.skipped} parts of blocks that cost little were not measured"))


def _table(found: Sensitivity, rows: tuple[SensitivityRow, ...] | list[SensitivityRow], title: str) -> Rows:
    table = Rows()
    table.add_column(title, overflow="fold")
    table.add_column("")
    for heading in ("alone", "left out gains", "±", "arithmetic"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        gain, noise = found.gain(row), row.noise
        table.add(row.name, row.operation, f"{found.share(row):.0%}", f"{gain:.2g}", f"{noise:.1g}", f"{row.macs:.1%}")
    return table
