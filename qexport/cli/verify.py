"""The verbs that look at files which are there already: `verify` and `diff`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qexport.cli import help as texts
from qexport.cli.console import SETTINGS, Timeout, fail, library_output
from qexport.cli.output import Rows, say, say_json, show
from qexport.cli.progress import shown_progress
from qexport.errors import InputError, UsageError, VerificationError
from qexport.system.machine import default_threads
from qexport.system.nearby import or_nearby
from qexport.vocabulary import listed, unknown

if TYPE_CHECKING:
    from qexport.inspection.difference import Row
    from qexport.inspection.recheck import Check
    from qexport.progress import Progress

RUNTIMES = ("tensorflow",)
DIFFERENT = 1
COMPARING = "Comparing"
SIGNS = {True: "ok", False: "FAILED", None: "–"}

checks_app = typer.Typer(no_args_is_help=True, context_settings=SETTINGS)


@checks_app.command(cls=texts.Command, epilog=texts.VERIFY)
def verify(
    file: Annotated[Path, typer.Argument(help="An artifact that qexport wrote, or the folder of a run.")],
    report: Annotated[Path | None, typer.Option(help="Its report. Default: the one beside it.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set YAML: score its val split, too; with --runtime, images to run.")
    ] = None,
    runtime: Annotated[
        str | None, typer.Option(help="tensorflow: compare LiteRT with TensorFlow's reference kernels instead.")
    ] = None,
    images: Annotated[int, typer.Option(help="How many images to run with --runtime.")] = 20,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads to run the file with. Default: 2, as exports.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes that score images of --data at once.")] = 1,
    timeout: Timeout = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> int:
    """Check that a file still does what its report says: hash, plan, coverage, outputs on the stored samples, mAP."""
    from qexport.compat.quiet import quiet_libraries

    if runtime is not None and runtime not in RUNTIMES:
        raise unknown(f"--runtime {runtime}", runtime, RUNTIMES)
    if runtime is not None and data is None:
        raise UsageError(f"--runtime {runtime} needs images", "add --data DATA.yaml")
    from qexport.job.value_rules import check_value

    check_value("jobs", jobs)
    threads = default_threads() if threads is None else threads
    quiet_libraries()
    from qexport.inspection.run_folder import artifact_in

    file = artifact_in(file)
    if runtime is not None and data is not None:
        _cross_check(file, data, images, threads, json_, timeout)
        return 0
    with library_output() as terminal, shown_progress(terminal, json_, timeout) as progress:
        checks = _recheck(file, report, data, threads, jobs, progress)
    return _show_checks(file, checks, json_)


def _recheck(
    file: Path, report: Path | None, data: str | None, threads: int, jobs: int, progress: Progress
) -> list[Check]:
    from qexport.backends.artifact import SUFFIX, check_artifact

    check_artifact(file)
    from qexport.inspection.difference import find_format
    from qexport.inspection.run_folder import report_beside

    find_format(file)
    saved = report or report_beside(file)
    if not saved.exists():
        along = f", or copy along what lies beside it: report.json, {file.name}{SUFFIX}, plan and samples"
        remedy = f"give --report{or_nearby(saved) if report else along}"
        raise InputError(f"there is no report at {saved}", remedy)
    from qexport.reporting.load import load_report

    known = load_report(saved)
    from qexport.compat.torchvision import repair
    from qexport.data.resolve import resolve_data
    from qexport.inspection.recheck import recheck
    from qexport.steps.scoring import scoring_processes

    repair()
    with scoring_processes(jobs) as elsewhere:
        return list(recheck(file, known, resolve_data(data) if data else None, threads, elsewhere, progress))


def _show_checks(file: Path, checks: list[Check], as_json: bool) -> int:
    if as_json:
        say_json(
            json.dumps({"artifact": str(file), "checks": [dataclasses.asdict(check) for check in checks]}, indent=2)
        )
    else:
        for check in checks:
            text = "" if check.passed is False else check.text  # its error line has it
            say(f"{check.name:9} {SIGNS[check.passed]:6} {text}".rstrip())
        if all(check.passed is not False for check in checks):
            say(_passed(file, checks))
    code = 0
    for check in checks:
        if check.passed is False:
            code = fail(f"{file.name}: {check.name}: {check.text}", VerificationError.exit_code)
    return code


def _passed(file: Path, checks: list[Check]) -> str:
    """The last line where nothing failed, which does not count what there was nothing to check by."""
    passed, open_ = sum(check.passed is True for check in checks), [each.name for each in checks if each.passed is None]
    counted = f"all {passed} checks passed" if not open_ else f"{passed} of {len(checks)} checks passed"
    return f"{file.name}: {counted}{f', nothing to check {listed(open_)} by' if open_ else ''}"


def _cross_check(file: Path, data: str, images: int, threads: int, as_json: bool, timeout: float | None) -> None:
    """Run a .tflite file with TensorFlow's reference kernels, too, and compare the detections with LiteRT's."""
    with library_output() as terminal, shown_progress(terminal, as_json, timeout) as progress, progress.step(COMPARING):
        from qexport.backends.artifact import check_artifact
        from qexport.data.dataset import image_list
        from qexport.data.resolve import resolve_data
        from qexport.inspection.cross_check import cross_check

        check_artifact(file)
        found = cross_check(file, image_list(resolve_data(data), "val")[:images], threads)
    if as_json:
        say_json(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        score = "no detections" if found.map is None else f"{found.map:.3f} mAP50-95"
        say(
            f"detections   {score} of TensorFlow's reference kernels against LiteRT with XNNPACK, {found.images} images"
        )
        say(f"first layer  {found.first_layer or 'none in integers'}: {found.steps} steps apart at most")
        say(f"GPU delegate {found.gpu or 'takes the whole graph'}")
    found.check()


@checks_app.command(cls=texts.Command, epilog=texts.DIFF)
def diff(
    a: Annotated[Path, typer.Argument(help="An artifact, or a report.json.")],
    b: Annotated[Path, typer.Argument(help="Another of the same kind.")],
    data: Annotated[
        str | None, typer.Option(help="Data set YAML: run two artifacts on its val split, not on stored samples.")
    ] = None,
    images: Annotated[int, typer.Option(help="How many images of --data.")] = 20,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads to run artifacts with. Default: 2, as exports.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> int:
    """Compare two artifacts or two reports: sizes, scales, precision of layers, outputs, accuracy."""
    from qexport.compat.quiet import quiet_libraries

    quiet_libraries()
    with library_output() as terminal, shown_progress(terminal, json_) as progress, progress.step(COMPARING):
        from qexport.compat.torchvision import repair
        from qexport.data.dataset import image_list
        from qexport.data.resolve import resolve_data
        from qexport.inspection.difference import are_equal, difference

        repair()
        chosen = image_list(resolve_data(data), "val")[:images] if data else ()
        rows = difference(a, b, chosen, default_threads() if threads is None else threads)
    equal = are_equal(rows)
    if json_:
        say_json(json.dumps({"equal": equal, "rows": [dataclasses.asdict(row) for row in rows]}, indent=2))
    else:
        show(Console(), _table(rows))
    return 0 if equal else DIFFERENT


def _table(rows: list[Row]) -> Rows:
    table = Rows()
    for heading in ("", "A", "B", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        style = "red" if row.same is False else None
        table.add(row.what, row.a, row.b, {True: "=", False: "≠", None: ""}[row.same], style=style)
    return table
