"""The verb `sweep`: many exports from one file, and one table of what they came to."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from qexport.cli.completion import among
from qexport.cli.console import Timeout, fail, library_output
from qexport.cli.console import option as _option
from qexport.cli.output import Rows, say_json, sentence, show
from qexport.errors import UsageError
from qexport.vocabulary import alternatives, unknown

if TYPE_CHECKING:
    from qexport.execution.executor import Executor
    from qexport.job.sweep_file import Sweep
    from qexport.progress import Progress
    from qexport.reporting.sweep_ranking import Ranked
    from qexport.reporting.sweep_report import SweepReport

LOCAL, RAY = "local", "ray"
EXECUTED = among((LOCAL, RAY))
ANYWHERE = "auto"
"""The address by which Ray finds the cluster of this machine, or that of RAY_ADDRESS."""
BEST, WARNED, BESIDE, NOTHING = "▲", "*", "†", "–"


def sweep_command(
    file: Annotated[Path, typer.Argument(help="YAML with models, formats, precisions and options as lists.")],
    out: Annotated[Path | None, _option("Folder of all runs. Default: qexport_out/NAME.", "--out", "-o")] = None,
    jobs: Annotated[int | None, _option("Runs at once on this machine. Default: 1.", "--jobs", "-j")] = None,
    executor: Annotated[
        str, _option(f"{LOCAL} or {RAY}. Default: {LOCAL}.", "--executor", autocompletion=EXECUTED)
    ] = LOCAL,
    address: Annotated[
        str | None, _option("Of Ray's cluster, as ray.init takes it. Default: this machine's.", "--address")
    ] = None,
    trust_checkpoint: Annotated[
        bool, _option("Unpickle any class: runs code from the checkpoints.", "--trust-checkpoint")
    ] = False,
    dry_run: Annotated[bool, _option("Print the runs, and do none.", "--dry-run")] = False,
    timeout: Timeout = None,
    quiet: Annotated[bool, _option("Print errors only.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _option("Print sweep.json, and nothing else.", "--json")] = False,
) -> int:
    """Export every combination of models, formats, precisions and options, and compare them."""
    _check(jobs, executor, address)
    from qexport.job.sweep_file import read_sweep

    asked = read_sweep(file, out, trust_checkpoint)
    if dry_run:
        _show_runs(asked)
        return 0
    from qexport.cli.progress import shown_progress
    from qexport.compat.quiet import quiet_libraries
    from qexport.system.files import check_folder

    quiet_libraries()
    check_folder(asked.folder)
    with (
        library_output(asked.folder) as terminal,
        shown_progress(terminal, quiet or json_, timeout) as progress,
        _executor(asked, jobs or 1, executor, address, progress) as does,
    ):
        from qexport.sweep_run import sweep_of

        command = shlex.join(["qexport", *sys.argv[1:]])
        report = sweep_of(asked, does, progress, command, executor == RAY or (jobs or 1) > 1)
    return _told(report, asked.folder, quiet, json_)


def _check(jobs: int | None, executor: str, address: str | None) -> None:
    if executor not in (LOCAL, RAY):
        raise unknown(f"--executor {executor}", executor, (LOCAL, RAY))
    from qexport.job.value_rules import check_value

    check_value("jobs", jobs)
    if jobs is not None and executor == RAY:
        raise UsageError("--jobs and --executor ray exclude each other", "Ray decides: leave out one of them")
    if address is not None and executor != RAY:
        raise UsageError("--address is of Ray's cluster", "add --executor ray, or leave it out")


@contextmanager
def _executor(asked: Sweep, jobs: int, name: str, address: str | None, progress: Progress) -> Iterator[Executor]:
    if name == LOCAL:
        from qexport.execution.pool import pool

        with pool(jobs, progress) as local:
            yield local
    else:
        from qexport.execution.ray.cluster import connected

        threads = max(run.job.threads * run.job.jobs for run in asked.runs if run.job)
        with connected(address or ANYWHERE, threads) as cluster:
            yield cluster


def _show_runs(asked: Sweep) -> None:
    table = Rows()
    for heading in ("run", "folder", ""):
        table.add_column(heading, overflow="fold")
    for run in asked.runs:
        if run.job:
            table.add(run.label, run.name, "")
        else:
            table.add(run.label, NOTHING, f"not available: {run.obstacle}", style="dim")
    show(Console(), table)
    count = sum(run.job is not None for run in asked.runs)
    show(Console(), sentence(f"{count} runs in {asked.folder}"))


def _told(report: SweepReport, folder: Path, quiet: bool, as_json: bool) -> int:
    """Print what came of it, and return the exit code."""
    from qexport.reporting.sweep_report import UNAVAILABLE

    if as_json:
        say_json((folder / "sweep.json").read_text(encoding="utf-8"))
    elif not quiet:
        _show(report, folder)
    code = 0
    for run in report.runs:
        if run.exit_code and run.state != UNAVAILABLE:
            fail(f"{run.label}: {run.line}", run.exit_code)
            code = code or run.exit_code
    return code


def _show(report: SweepReport, folder: Path) -> None:
    from qexport.reporting.sweep_ranking import ranked
    from qexport.reporting.sweep_report import UNAVAILABLE

    console, rows = Console(), ranked(report)
    if rows:
        show(console, _table(rows))
        told = [f"{BEST}: best of its kind; {WARNED}: see the warning in its report"]
        told += [f"{BESIDE}: measured beside other runs"] if any(not row.run.alone for row in rows) else []
        show(console, sentence("; ".join(told), style="dim"))
    for run in (run for run in report.runs if run.state == UNAVAILABLE):
        show(console, sentence(f"not available: {run.label}: {run.line}"), whole_lines=True)
    processors = list(dict.fromkeys(row.run.processor for row in rows if row.latency is not None))
    if len(processors) > 1:
        show(console, sentence(f"latencies are of {alternatives(processors)}", style="yellow"), whole_lines=True)
    show(console, sentence(f"wrote sweep.json and sweep.html to {folder}"), whole_lines=True)


def _table(rows: tuple[Ranked, ...]) -> Rows:
    table = Rows()
    table.add_column("run", overflow="fold")
    several = any(len(row.run.artifacts) > 1 for row in rows)
    for heading in (*(("artifact",) if several else ()), "measure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("accuracy", "reten-\ntion", "fide-\nlity", "ms\np50", "speed-\nup", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        found, alone = row.artifact, "" if row.run.alone else BESIDE
        accurate, fast = (BEST if kind in row.best else "" for kind in ("accuracy", "latency"))
        of_accuracy, of_latency = (WARNED if kind in found.warned else "" for kind in ("accuracy", "latency"))
        table.add(
            row.run.label,
            *((found.label,) if several else ()),
            row.measure if row.accuracy is not None else NOTHING,
            _marked(found.map, "map", of_accuracy, accurate),
            _marked(found.retention, "retention"),
            _marked(found.fidelity, "fidelity", accurate if found.map is None else ""),
            _marked(found.latency_ms, "p50", of_latency, alone, fast),
            _marked(found.speedup, "speedup"),
            _marked(found.bytes, "bytes"),
        )
    return table


def _marked(value: float | None, name: str, *marks: str) -> str:
    """A figure as the page sets it, with its marks behind it."""
    from qexport.reporting.page.typeset import form_of, typeset

    return typeset(value, form_of(name)) + ("" if value is None else "".join(marks))
