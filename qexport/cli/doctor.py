"""The verb `doctor`: what this machine has, what each format lacks, what INT8 is worth here."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from rich.console import Console

from qexport.cli.console import fail, library_output
from qexport.cli.console import option as _option
from qexport.cli.output import say_json
from qexport.errors import MissingExtraError, UsageError
from qexport.system.machine import default_threads

if TYPE_CHECKING:
    from qexport.progress import Progress
    from qexport.reporting.diagnosis import Diagnosis, Fit

MAX_TRYING = 120
"""Seconds until torchvision is given up."""


def doctor_command(
    no_benchmark: Annotated[bool, _option("Time nothing, and load no library.", "--no-benchmark")] = False,
    threads: Annotated[
        int | None, _option("CPU threads to time with. Default: 2 where there are cores, as exports.", "--threads")
    ] = None,
    json_: Annotated[bool, _option("Print one JSON object, and nothing else.", "--json")] = False,
) -> int:
    """Say what this machine has, what each format lacks and how to add it, and what INT8 is worth here."""
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise UsageError(f"--threads {threads} is out of range", "give 1 or more")
    from qexport.cli.progress import shown_progress
    from qexport.compat.quiet import quiet_libraries

    quiet_libraries()
    found = _looked_at()
    if not no_benchmark:
        with library_output() as terminal, shown_progress(terminal, json_) as progress:
            found = _timed(found, threads, progress)
    if json_:
        from qexport.reporting.diagnosis import to_json

        say_json(to_json(found))
    else:
        from qexport.cli.doctor_lines import print_diagnosis

        print_diagnosis(found, Console())
    return 0 if found.able else fail("no format can be written here: add what is missing", MissingExtraError.exit_code)


def _looked_at() -> Diagnosis:
    from qexport.backends.installed import format_states
    from qexport.backends.registry import reported_packages
    from qexport.reporting.diagnosis import Diagnosis
    from qexport.system.capabilities import capabilities
    from qexport.system.machine import environment
    from qexport.system.packages import misfits

    return Diagnosis(environment(reported_packages()), capabilities(), format_states(), misfits())


def _timed(found: Diagnosis, threads: int, progress: Progress) -> Diagnosis:
    """Time the runtimes that are here, keep the figures, and try torchvision beside torch."""
    from qexport.measurement.peaks import Peaks, measurable, peaks_apart
    from qexport.reporting.kept_peaks import keep_peaks
    from qexport.system.load import seconds_of_others

    timed, started, before = [], time.perf_counter(), seconds_of_others()
    for name in measurable(each.format for each in found.formats if not each.problem):
        with progress.step(f"Timing {name}"):
            timed.append(peaks_apart(name, threads))
    after, seconds = seconds_of_others(), time.perf_counter() - started
    load = None if before is None or after is None else max(0.0, round((after - before) / seconds, 2))
    peaks = Peaks(threads, tuple(timed), load)
    whole = any(each.peaks for each in timed) and not peaks.crowded(found.capabilities.cores)
    kept = keep_peaks(peaks) if whole else None
    found = replace(found, peaks=peaks, kept=str(kept) if kept else None)
    return found if found.lacking else replace(found, torchvision=_torchvision(progress))


def _torchvision(progress: Progress) -> Fit:
    """Whether it works beside torch, by a process of its own, which loads both."""
    from qexport.compat.torchvision import fault, remedy
    from qexport.reporting.diagnosis import Fit
    from qexport.system.apart import ApartError, text_from

    with progress.step("Trying torchvision beside torch"):
        try:
            found = text_from(fault, seconds=MAX_TRYING)
        except ApartError as error:
            found = str(error)
    return Fit(found, remedy()) if found else Fit()
