"""What `qexport doctor` found, as lines for a terminal: what to do stands beside what is wrong, the gist at the end."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from qexport.backends.installed import FormatState, unbuilt
from qexport.cli.output import Rows, say, sentence, show
from qexport.compat.torchvision import unfit
from qexport.measurement.peaks import FP32, INT8, Peaks
from qexport.reporting.diagnosis import Diagnosis, verdict
from qexport.system.capabilities import Capabilities
from qexport.system.machine import PACKAGES
from qexport.system.packages import wanted_range

GOOD, PART, BAD = ("✓", "green"), ("!", "yellow"), ("✗", "red")
"""Signs: it works, it does but for something, it does not; and their colours."""
NOTHING = "–"
LABEL = 14
"""Columns of what stands in front of a line."""
UNBOUNDED = 10_000
"""Columns of a file or a pipe."""
MIN_TEXT = 20
"""Columns of a text beside its label, however narrow the terminal is."""
GIGA = 1e9


@dataclass(frozen=True)
class Line:
    """A text with what stands in front of it.

    Attributes:
        command: the text is to be copied: it is not broken into lines.
    """

    label: str
    text: str
    style: str = ""
    command: bool = False


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """Show all of it."""
    for title, lines in (
        ("This machine", _machine(found)),
        ("Packages", _packages(found)),
        ("Formats", (line for each in found.formats for line in _format(each))),
    ):
        show(console, sentence(title, "bold"))
        for line in lines:
            _show(line, console)
        say("")
    if found.peaks and found.peaks.runtimes:
        show(console, _table(found, found.peaks))
    for text in _gist(found):
        _show(Line("", text), console)


def _show(line: Line, console: Console) -> None:
    """Print a line, broken between words where the terminal is narrower."""
    front = f"  {line.label:{LABEL}}" if line.label or line.command else ""
    if line.command:
        say(front + line.text)
        return
    width = max((console.width if console.is_terminal else UNBOUNDED) - len(front), MIN_TEXT)
    for part in textwrap.wrap(line.text, width, break_on_hyphens=False):
        shown = sentence("").append_text(sentence(front, line.style)).append_text(sentence(part))
        show(console, shown, whole_lines=True)
        front = " " * len(front)


def _machine(found: Diagnosis) -> Iterator[Line]:
    seen, here = found.capabilities, found.environment
    yield Line("CPU", f"{here.processor} ({seen.architecture}), {_room(seen)}")
    if seen.board:
        yield Line("board", seen.board)
    if seen.features is None:
        yield Line("features", "the system does not say which")
    else:
        yield Line("has", ", ".join(name for name, there in seen.features.items() if there) or "none of those below")
        if lacking := [name for name, there in seen.features.items() if not there]:
            yield Line("lacks", ", ".join(lacking))
    for gpu in seen.gpus:
        memory = f", {gpu.memory / GIGA:.0f} GB" if gpu.memory else ""
        yield Line("GPU", f"{gpu.name}{memory}, driver {gpu.driver}")
    if seen.gpu_note:
        yield Line("GPU", seen.gpu_note)
    yield Line("system", f"Python {here.python}, {here.system}")


def _room(seen: Capabilities) -> str:
    """Cores and memory that may be used."""
    cores = f"{seen.cores} {'core' if seen.cores == 1 else 'cores'}"
    quota = f" ({seen.quota:g} of them by the container's quota)" if seen.quota and seen.quota < seen.cores else ""
    memory = f", {seen.memory / GIGA:.1f} GB of memory" if seen.memory else ""
    return f"{cores}{quota}{memory}"


def _packages(found: Diagnosis) -> Iterator[Line]:
    wrong = {each.package: each for each in found.misfits}
    for name, version in found.environment.packages.items():
        if name in PACKAGES and name not in wrong:
            wanted = wanted_range(name)
            yield _signed(GOOD, name, f"{version}{f', in the range {wanted}' if wanted else ''}")
    for each in found.misfits:
        known = f"{each.version}, outside the tested range" if each.version else "is missing"
        yield _signed(PART if each.version else BAD, each.package, known)
        yield Line("", f"pip install '{each.wanted}'", command=True)
    if found.torchvision is not None:
        fault = found.torchvision.fault
        yield _signed(PART if fault else GOOD, "torchvision", unfit(fault) if fault else "works beside this torch")
        if fault:
            yield Line("", found.torchvision.remedy, command=True)


def _signed(sign: tuple[str, str], name: str, text: str) -> Line:
    return Line(f"{sign[0]} {name}", text, sign[1])


def _format(state: FormatState) -> Iterator[Line]:
    """A format, what runs it, and what mends it."""
    if state.problem:
        yield _signed(BAD, state.format, state.problem.removeprefix(f"format {state.format} "))
        yield Line("", state.remedy, command=True)
        return
    runtime = ", ".join(f"{name} {version}" for name, version in state.packages.items())
    lacking = unbuilt(state)
    if state.engine is None or not lacking:
        yield _signed(GOOD, state.format, runtime)
        return
    yield _signed(PART, state.format, f"{runtime}; {lacking}")
    yield Line("", state.engine.remedy, command=True)


def _table(found: Diagnosis, peaks: Peaks) -> Rows:
    """Peaks by runtime and type, and what they mean."""
    kinds = list(dict.fromkeys((FP32, *(kind for each in peaks.runtimes for kind in each.peaks))))
    kinds = [*(kind for kind in kinds if kind != INT8), INT8]
    threads = f"{peaks.threads} {'thread' if peaks.threads == 1 else 'threads'}"
    table = Rows(title=f"What arithmetic is worth here: 10⁹ multiply-accumulates a second, {threads}")
    table.add_column("", no_wrap=True)
    for kind in kinds:
        table.add_column(kind, justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for each in peaks.runtimes:
        figures = (f"{each.peaks[kind] / GIGA:.0f}" if kind in each.peaks else NOTHING for kind in kinds)
        table.add(each.format, *figures, verdict(each, found.capabilities.features))
    return table


def _gist(found: Diagnosis) -> Iterator[str]:
    """The last lines: what can be done here, and what is best."""
    able, every = len(found.able), len(found.formats)
    yield f"{f'All {every}' if able == every else f'{able} of {every}'} formats can be written here."
    if found.peaks is None:
        yield "Nothing was timed: without --no-benchmark doctor measures what INT8 is worth here."
        return
    integers = {each.format: each.peaks[INT8] for each in found.peaks.runtimes if INT8 in each.peaks}
    if integers:
        best = max(integers, key=integers.__getitem__)
        yield f"Fastest in INT8 here: {best}. A model reaches a part of it: few of its layers are as large."
    if found.peaks.crowded(found.capabilities.cores):
        yield "Other processes were busy: figures are too low, and not kept. Run it again when the machine is idle."
    elif integers and found.kept is None:
        yield "Reports will not know these figures: no cache folder can be written."
