"""The report as Markdown: what a CI's summary page shows."""

from __future__ import annotations

import math

from qexport.measurement.evidence.fidelity_parts import Interval
from qexport.reporting.fidelity_text import fidelity_text
from qexport.reporting.markdown import as_code, as_text
from qexport.reporting.pass_lines import pass_lines
from qexport.reporting.provenance import listed_seconds, scored_on, stand_in, taken_lines, verified
from qexport.reporting.report import ACCURACY, LATENCY, ArtifactReport, Report, file_name
from qexport.reporting.rule import NumberFormat
from qexport.reporting.shown import shown
from qexport.reporting.thresholds import advice
from qexport.reporting.tuning_lines import tuning_lines
from qexport.reporting.verdict import DOUBTFUL, FIT, UNFIT, verdicts
from qexport.reporting.warning_list import list_warnings

NOTHING = "–"
MARK = "⚠️"
"""Behind every figure that a warning concerns."""
SIGNS = {FIT: "✅", DOUBTFUL: MARK, UNFIT: "❌"}
PERCENT, DECIMAL = NumberFormat(1, "%", 100), NumberFormat(3)


def to_markdown(report: Report) -> str:
    """Render a report: figures with intervals, warnings, and the gate."""
    report = shown(report)
    parts = [_title(report), _verdicts(report), _table(report), _legend(report), _warnings(report), _failures(report)]
    parts += [
        _fidelity(report),
        _thresholds(report),
        _verified(report),
        _passes(report),
        _tuned(report),
        _taken(report),
        _gate(report),
    ]
    parts.append(_origin(report))
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(report: Report) -> str:
    model, size = report.model, "×".join(map(str, report.model.imgsz))
    parts = [f"{as_text(file_name(model.path))}, {as_text(model.head)} head, {size}"]
    if report.calibration:
        parts.append(f"calibrated on {report.calibration.images} images")
    if scored := scored_on(report):
        parts.append(scored)
    return f"### {_sign(report)}qexport: {', '.join(parts)}"


def _sign(report: Report) -> str:
    """How the run ended; nothing where nobody set rules and all is there."""
    gate = report.gate
    if report.failures or report.unmeasured or (gate and not gate.passed):
        return "❌ "
    return "✅ " if gate else ""


def _verdicts(report: Report) -> str:
    """What the report comes to, and what to type next."""
    lines = (
        (SIGNS[each.kind], as_text(each.text), each.then) for each in verdicts(report, lambda artifact: artifact.label)
    )
    return "\n".join(f"- {sign} {text}{f'; try {as_code(then)}' if then else ''}" for sign, text, then in lines)


def _table(report: Report) -> str:
    headings = (
        "artifact",
        "MB",
        as_text(report.metrics[0]),
        "drop",
        "retention",
        "fidelity",
        "ms p50",
        "ms p95",
        "speed-up",
        "INT8 MACs",
    )
    rows = [headings, ("---", *["---:"] * (len(headings) - 1)), *map(_row, report.artifacts)]
    rows += [(f"{as_text(each.format)} ❌", *[NOTHING] * (len(headings) - 1)) for each in report.failures]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(artifact: ArtifactReport) -> tuple[str, ...]:
    of_accuracy, of_latency = (f" {MARK}" if artifact.warned(about) else "" for about in (ACCURACY, LATENCY))
    return (
        f"{as_code(artifact.file_name)}{_stand_in(artifact)}",
        f"{artifact.bytes / 1e6:.2f}",
        *_accuracy(artifact, of_accuracy),
        *_latency(artifact, of_latency),
        _figure(artifact.speedup, NumberFormat(2, "×"), None, of_latency),
        _figure(artifact.int8_mac_coverage, PERCENT, None, ""),
    )


def _accuracy(artifact: ArtifactReport, mark: str) -> tuple[str, ...]:
    found = artifact.accuracy
    if found is None:
        return (NOTHING,) * 4
    return (
        _figure(found.map, NumberFormat(4), found.map_interval, mark),
        _figure(found.drop, NumberFormat(4), found.drop_interval, mark),
        _figure(found.retention, PERCENT, found.retention_interval, mark),
        _figure(found.fidelity, DECIMAL, found.fidelity_interval, mark),
    )


def _latency(artifact: ArtifactReport, mark: str) -> tuple[str, ...]:
    found = artifact.latency_ms
    if found is None:
        return (NOTHING,) * 2
    return tuple(_figure(each, NumberFormat(1), None, mark) for each in (found.p50, found.p95))


def _figure(value: float | None, shown: NumberFormat, interval: Interval | None, mark: str) -> str:
    if value is None or math.isnan(value):
        return NOTHING
    span = f" [{shown.text(interval[0])}, {shown.text(interval[1])}]" if interval else ""
    return f"{shown.text(value)}{span}{mark}"


def _stand_in(artifact: ArtifactReport) -> str:
    """What made the row's figures, where that is not the runtime that the file is for."""
    runtime = stand_in(artifact)
    return f"<br><sub>run by {as_text(runtime)}</sub>" if runtime else ""


def _legend(report: Report) -> str:
    """What the signs of the table mean."""
    told, scored = [f"{NOTHING}: not measured"], [each.accuracy for each in report.artifacts if each.accuracy]
    if any(each.map_interval or each.fidelity_interval for each in scored):
        told.append("in brackets: 95 % interval over images")
    if any(each.drop is not None for each in scored):
        told.append("drop: FP32 minus the artifact, negative where the artifact scored higher")
    if any(MARK in cell for artifact in report.artifacts for cell in _row(artifact)):
        told.append(f"{MARK}: a warning below is about the figure")
    return f"<sub>{'; '.join(told)}</sub>"


def _warnings(report: Report) -> str:
    found = list_warnings(report, lambda artifact: as_code(artifact.file_name))
    return "\n".join(
        f"- {MARK} {', '.join(each.names)}{': ' if each.names else ''}{as_text(each.text)}" for each in found
    )


def _fidelity(report: Report) -> str:
    lines = ((artifact, fidelity_text(artifact)) for artifact in report.artifacts)
    return "\n".join(
        f"- fidelity of {as_code(artifact.file_name)}: {as_text(text)}" for artifact, text in lines if text
    )


def _verified(report: Report) -> str:
    lines = ((artifact, verified(artifact)) for artifact in report.artifacts)
    return "\n".join(f"- verified: {as_code(artifact.file_name)}: {as_text(text)}" for artifact, text in lines if text)


def _passes(report: Report) -> str:
    lines = ((artifact, line) for artifact in report.artifacts for line in pass_lines(artifact.passes))
    return "\n".join(f"- {as_code(artifact.file_name)}: {as_text(line)}" for artifact, line in lines)


def _tuned(report: Report) -> str:
    lines = [line for each in report.artifacts for line in tuning_lines(each.file_name, each.tuning)]
    return "\n".join(f"- {as_text(line)}" for line in lines)


def _taken(report: Report) -> str:
    return "\n".join(f"- taken from the cache: {as_text(line)}" for line in taken_lines(report))


def _thresholds(report: Report) -> str:
    lines = ((artifact, advice(artifact)) for artifact in report.artifacts)
    return "\n".join(f"- {as_code(artifact.file_name)}: {as_text(text)}" for artifact, text in lines if text)


def _failures(report: Report) -> str:
    return "\n".join(f"- ❌ {as_text(each.format)}: {as_text(each.reason)}" for each in report.failures)


def _gate(report: Report) -> str:
    gate = report.gate
    if not gate:
        return ""
    failed = sum(not rule.passed for rule in gate.rules)
    head = f"**Gate: {'passed' if gate.passed else 'failed'}**, {len(gate.rules)} rules, {failed} broken"
    lines = [f"- {'✅' if rule.passed else '❌'} {as_text(rule.rule)}: {as_text(rule.text)}" for rule in gate.rules]
    return "\n".join([head, "", *lines])


def _origin(report: Report) -> str:
    machine = report.environment
    known = f"{machine.processor or 'unknown processor'}, {machine.cores or '?'} cores"
    parts = [as_text(f"{known}, {report.threads} threads; qexport {report.qexport}")]
    if report.baseline:
        parts.append(f"compared with {as_code(report.baseline.path)}")
    if taken := listed_seconds(report):
        parts.append(as_text(f"took {taken}"))
    return f"<sub>{'; '.join(parts)}</sub>"
