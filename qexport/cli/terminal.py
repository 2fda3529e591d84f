"""The report as a table on the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console, Group
from rich.measure import Measurement
from rich.text import Text

from qexport.backends.device_fit import DeviceFit
from qexport.backends.registry import display_name
from qexport.cli.output import Rows, sentence, show
from qexport.optimisation.repair_record import RepairRecord
from qexport.reporting.fidelity_text import fidelity_text, with_interval
from qexport.reporting.names import precision_name
from qexport.reporting.pass_lines import pass_lines
from qexport.reporting.provenance import listed_seconds, scored_on, stand_in, taken_lines, verified
from qexport.reporting.report import ACCURACY, LATENCY, AccuracyInfo, ArtifactReport, Report, file_name
from qexport.reporting.runtime_facts import listed_arithmetic, listed_needs
from qexport.reporting.shown import shown
from qexport.reporting.thresholds import advice
from qexport.reporting.tuning_lines import tuning_lines
from qexport.reporting.verdict import DOUBTFUL, FIT, UNFIT, verdicts
from qexport.reporting.warning_list import list_warnings
from qexport.system.machine import ANY
from qexport.verification.outcome import OutputFidelity

NOTHING = "–"
UNBOUNDED = 1000
"""Columns that no table needs."""
MARK = "*"
"""Behind a figure that one of the warnings below the table concerns."""
AWAY = "†"
"""Behind an artifact that was run by something else than the runtime that it is for."""
FAILED = "✗"
COLUMNS = ("drop and intervals", "drop", "")
"""What is shown of the loss of accuracy, as far as there is room; what the table leaves out stands below it."""
INTERVAL = "95 % interval"
STYLES = {FIT: "green", DOUBTFUL: "yellow", UNFIT: "red"}


def render(report: Report, saved: Path, console: Console) -> Group:
    """Return the table, what its signs mean, intervals that it has no room for, warnings, and what was verified."""
    report = shown(report)
    wide = console.options.update(max_width=UNBOUNDED)
    compared = any(_drop(artifact) or _spread(artifact) for artifact in report.artifacts)
    for columns in COLUMNS if compared else ("",):
        table = _table(report, columns)
        if Measurement.get(console, wide, table).maximum <= console.width:
            break
    else:
        return Group(*_lines(report), *_legend(report), *_drops(report), *_notes(report, saved))
    below = [] if columns == COLUMNS[0] else _drops(report)
    return Group(table, *_legend(report), *below, *_notes(report, saved))


def _lines(report: Report) -> list[Text]:
    """What the table says, for a terminal that is too narrow for it: a figure that is cut off is another figure."""
    table = _table(report, "")
    names = [_in_one_line(str(column.header)) for column in table.columns[1:]]
    lines = [sentence(_title(report))]
    for name, *figures in zip(*(map(str, column.cells) for column in table.columns), strict=True):
        lines.append(sentence(f"{name}: {', '.join(map(' '.join, zip(names, figures, strict=True)))}"))
    return lines


def _in_one_line(heading: str) -> str:
    for broken, whole in (("mAP\n", "mAP"), ("speed-\n", "speed-"), ("-\n", ""), ("\n", " ")):
        heading = heading.replace(broken, whole)
    return heading


def _table(report: Report, columns: str) -> Rows:
    """The figures, and as `columns` says what was lost against FP32, and how far that would move with other images."""
    table = Rows(gap=0, title=_title(report))
    table.add_column("artifact", no_wrap=True)
    dropped = any(map(_drop, report.artifacts))
    for heading in (
        "MB",
        *_metrics(report),
        *({"drop": ["drop"], COLUMNS[0]: [f"drop\n{INTERVAL}"]}.get(columns, []) if dropped else []),
        "reten-\ntion",
        f"fidelity\n{INTERVAL}" if columns == COLUMNS[0] else "fide-\nlity",
        "ms\np50",
        "speed-\nup",
        "INT8\nMACs",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for artifact in report.artifacts:
        table.add(*_row(artifact, columns, dropped))
    for failure in report.failures:
        table.add(f"{failure.format} {FAILED}", *[NOTHING] * (len(table.columns) - 1))
    return table


def _metrics(report: Report) -> list[str]:
    """Headings of the task's two figures, in two lines each."""
    return [name.removeprefix("mask ").removeprefix("pose ").replace("mAP", "mAP\n") for name in report.metrics]


def _title(report: Report) -> str:
    model, size = report.model, "×".join(map(str, report.model.imgsz))
    head = "outputs of unknown meaning" if model.head == "unknown" else f"{model.head} head"
    parts = [f"{file_name(model.path)}, {head}, {size}"]
    if report.calibration:
        parts.append(f"calibrated on {report.calibration.images} images")
    if scored := scored_on(report):
        parts.append(scored)
    return ", ".join(parts)


def _row(artifact: ArtifactReport, columns: str, dropped: bool = True) -> tuple[str, ...]:
    of_accuracy, of_latency = (MARK if artifact.warned(about) else "" for about in (ACCURACY, LATENCY))
    latency, drop = artifact.latency_ms, _drop(artifact, columns == COLUMNS[0]) or NOTHING
    return (
        f"{artifact.label}{AWAY if stand_in(artifact) else ''}",
        f"{artifact.bytes / 1e6:.2f}",
        *_accuracy(artifact, drop if columns and dropped else "", of_accuracy, columns == COLUMNS[0]),
        _figure(latency.p50 if latency else None, ".1f", of_latency),
        _figure(artifact.speedup, ".2f", "×"),
        _figure(artifact.int8_mac_coverage, ".1%"),
    )


def _accuracy(artifact: ArtifactReport, drop: str, mark: str, bounds: bool) -> tuple[str, ...]:
    """The task's two figures, the drop where it is shown, and what was kept."""
    found = artifact.accuracy
    if found is None:
        return (NOTHING,) * (5 if drop else 4)
    return (
        _figure(found.map, ".4f", mark),
        _figure(found.map50, ".4f"),
        *([drop] if drop else []),
        _figure(found.retention, ".1%"),
        _fidelity(found, bounds),
    )


def _fidelity(found: AccuracyInfo, bounds: bool) -> str:
    if found.fidelity is None:
        return NOTHING
    return with_interval(found.fidelity, found.fidelity_interval if bounds else None, "fidelity")


def _spread(artifact: ArtifactReport) -> bool:
    """Whether its fidelity has an interval."""
    return artifact.accuracy is not None and artifact.accuracy.fidelity_interval is not None


def _drop(artifact: ArtifactReport, bounds: bool = True) -> str:
    """FP32's first metric minus the artifact's, and its 95 % interval: 0.0089 [0.0002, 0.0234]; "" for none."""
    found = artifact.accuracy
    if found is None or found.drop is None:
        return ""
    return with_interval(found.drop, found.drop_interval if bounds else None, "drop")


def _drops(report: Report) -> list[Text]:
    """The same in lines of their own, where the table has no room for it."""
    return [sentence(f"drop of {each.label}: {_drop(each)}") for each in report.artifacts if _drop(each)]


def _legend(report: Report) -> list[Text]:
    """What the signs mean that are in the table, and who made the figures of what was not run by its own runtime."""
    told = []
    if any(map(_drop, report.artifacts)):
        told.append("drop: FP32 minus the artifact, negative where the artifact scored higher")
    if any(_spread(each) or (each.accuracy and each.accuracy.drop_interval) for each in report.artifacts):
        told.append("[ ]: 95 % interval over images")
    if any(figure.endswith(MARK) for each in report.artifacts for figure in _row(each, "")):
        told.append(f"{MARK}: a warning is about the figure and what is made of it")
    told.append(f"{NOTHING}: not measured")
    told += [f"{FAILED}: not written, or not to its end"] if report.failures else []
    names: dict[str, list[str]] = {}
    for each in report.artifacts:
        names.setdefault(stand_in(each), []).append(each.label)
    away = [f"{AWAY} {', '.join(names[runtime])}: run by {runtime}" for runtime in names if runtime]
    return [sentence("; ".join(told), style="dim"), *(sentence(line) for line in away)]


def _figure(value: float | None, form: str, unit: str = "") -> str:
    return NOTHING if value is None else f"{value:{form}}{unit}"


def _notes(report: Report, saved: Path) -> list[Text]:
    """Warnings, each once with the names of all that it is about, and where the evidence is.

    What failed or is broken are error lines, which end the run.
    """
    warnings = list_warnings(report, lambda artifact: artifact.label)
    lines = [sentence(f"warning: {warning.line}", style="yellow") for warning in warnings]
    parts = ((artifact, fidelity_text(artifact)) for artifact in report.artifacts)
    lines += [sentence(f"fidelity of {artifact.label}: {text}") for artifact, text in parts if text]
    lines += [sentence(_verified(artifact), style="green") for artifact in report.artifacts if artifact.verification]
    lines += [sentence(line) for line in _planned(report)]
    lines += [sentence(f"{each.file_name}: {line}") for each in report.artifacts for line in pass_lines(each.passes)]
    lines += [sentence(line) for each in report.artifacts for line in tuning_lines(each.file_name, each.tuning)]
    lines += [
        sentence(_repaired(artifact.file_name, artifact.repair)) for artifact in report.artifacts if artifact.repair
    ]
    lines += [sentence(_runs(artifact)) for artifact in report.artifacts if artifact.arithmetic or artifact.needs]
    lines += [sentence(_likeness(artifact, each)) for artifact in report.artifacts for each in artifact.outputs]
    lines += [sentence(f"{each.file_name}: {advice(each)}") for each in report.artifacts if advice(each)]
    lines += [sentence(_device(artifact.device)) for artifact in report.artifacts if artifact.device]
    rules = report.gate.rules if report.gate else ()
    lines += [sentence(f"passed: {rule.rule}: {rule.text}", "green") for rule in rules if rule.passed]
    lines.append(sentence(f"wrote {', '.join(a.file_name for a in report.artifacts)} to {saved_in(report)}"))
    lines += [sentence(f"taken from the cache: {line}") for line in taken_lines(report)]
    if taken := listed_seconds(report):
        lines.append(sentence(f"took {taken}"))
    also = f" and {report.saved}" if report.saved and Path(report.saved) != saved else ""
    lines.append(sentence(f"report: {saved}{also}"))
    for verdict in verdicts(report, _in_words):
        lines.append(sentence(f"verdict: {verdict.text}", style=f"bold {STYLES[verdict.kind]}"))
        lines += [sentence(f"try: {verdict.then}")] if verdict.then else []
    return lines


def _in_words(artifact: ArtifactReport) -> str:
    engine = " engine" if artifact.engine else ""
    return f"{precision_name(artifact.precision)} {display_name(artifact.format)}{engine}"


def saved_in(report: Report) -> Path:
    """The folder that the artifacts are in."""
    return Path(report.artifacts[0].path).parent


def _device(fit: DeviceFit) -> str:
    """What a device that is not here was checked for, and what it needs."""
    runs = f"has {fit.operators - sum(each.count for each in fit.lacking)} of"
    needs = "".join(f"; {what} {size / 1e6:.2f} MB" for what, size in fit.memory.items())
    files = "".join(f"; wrote {path.name}" for path in fit.files)
    return f"{fit.device}: {runs} {fit.operators} operators by its documentation{needs}{files}"


def _repaired(name: str, record: RepairRecord) -> str:
    """What is in float to meet the budget."""
    met = "repaired" if record.met else "not mended"
    return f"{met}: {name}: {record.reason}; {record.float_macs:.1%} of its arithmetic is in float"


def _verified(artifact: ArtifactReport) -> str:
    return f"verified: {artifact.file_name}: {verified(artifact)}"


def _planned(report: Report) -> list[str]:
    """For which kind of CPU each file with a plan was planned."""
    here = report.environment.cpu_kind
    kinds = {here: f"{here}, as this machine is"}
    lines = []
    for artifact in report.artifacts:
        cpu = (artifact.quantisation or {}).get("cpu")
        if cpu and not artifact.engine:
            every = f"any CPU ({display_name(artifact.format)} has one plan for all)"
            kind = every if cpu == ANY else kinds.get(cpu, f"{cpu}, which this machine ({here or 'unknown'}) is not")
            lines.append(f"planned: {artifact.file_name} for {kind}")
    return lines


def _runs(artifact: ArtifactReport) -> str:
    """What the runtime computes a file in here, and what it needs to run at all."""
    parts = []
    if artifact.arithmetic:
        peak = f", at {artifact.peak_share:.0%} of their peak here" if artifact.peak_share else ""
        parts.append(f"computed in {listed_arithmetic(artifact.arithmetic)}{peak}")
    if artifact.by_default:
        timed, kind = artifact.by_default.latency_ms.p50, artifact.by_default.arithmetic
        parts.append(f"{timed:.1f} ms in {kind}, which the runtime takes where nobody asks for FP32")
    if artifact.speedup_by_default:
        parts.append(f"{artifact.speedup_by_default:.2f}× as fast as FP32 where nobody asks for FP32")
    if artifact.needs:
        parts.append(f"needs {listed_needs(artifact.needs)}")
    return f"{artifact.file_name}: {'; '.join(parts)}"


def _likeness(artifact: ArtifactReport, output: OutputFidelity) -> str:
    """One output beside the FP32 file's."""
    figures = (
        ("SQNR", _figure(output.sqnr_db, ".1f", " dB")),
        ("cosine", _figure(output.cosine, ".4f")),
        ("columns", _figure(output.columns, ".4f")),
    )
    listed = ", ".join(f"{name} {figure}" for name, figure in figures)
    return f"{artifact.file_name} {output.name} against FP32 on {output.images} images: {listed}"


def print_report(report: Report, saved: Path, console: Console) -> None:
    """Show the report; in a file or a pipe its sentences are not broken into lines."""
    show(console, render(report, saved, console), whole_lines=True)
