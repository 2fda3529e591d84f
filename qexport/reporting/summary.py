"""The report as Markdown: what a CI's summary page shows. Every figure comes from report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.reporting.gate import Entry, NumberFormat, file_name
from qexport.reporting.honesty import caveats, collected
from qexport.reporting.provenance import scored_images, stand_in, verified

NOTHING = "–"
MARK = "⚠️"
"""Behind every figure that a warning concerns."""
PERCENT, DECIMAL = NumberFormat(1, "%", 100), NumberFormat(3)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Render a report's content: figures with intervals, warnings, and the gate."""
    parts = [_title(report), _table(report), _legend(report), _warnings(report), _failures(report)]
    parts += [_verified(report), _gate(report), _origin(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(report: Mapping[str, Any]) -> str:
    model, size = report["model"], "×".join(map(str, report["model"]["imgsz"]))
    parts = [f"{_text(file_name(model))}, {_text(model['head'])} head, {size}"]
    if report.get("calibration"):
        parts.append(f"calibrated on {report['calibration']['images']} images")
    if scored := scored_images(report):
        parts.append(f"scored on {scored}")
    return f"### {_sign(report)}qexport: {', '.join(parts)}"


def _sign(report: Mapping[str, Any]) -> str:
    """How the run ended; nothing where nobody set rules and all is there."""
    gate = report.get("gate") or {}
    if report["failures"] or report.get("unmeasured") or not gate.get("passed", True):
        return "❌ "
    return "✅ " if gate else ""


def _table(report: Mapping[str, Any]) -> str:
    names = (report.get("evaluation") or {}).get("metrics", ["mAP50-95", "mAP50"])
    headings = (
        "artifact",
        "MB",
        names[0],
        "drop",
        "retention",
        "fidelity",
        "ms p50",
        "ms p95",
        "speed-up",
        "INT8 MACs",
    )
    rows = [headings, ("---", *["---:"] * (len(headings) - 1)), *map(_row, report["artifacts"])]
    rows += [(f"{_text(each['format'])} ❌", *[NOTHING] * (len(headings) - 1)) for each in report["failures"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(entry: Entry) -> tuple[str, ...]:
    accuracy, latency = entry.get("accuracy") or {}, entry.get("latency_ms") or {}
    of_accuracy, of_latency = (f" {MARK}" if caveats(entry, kind) else "" for kind in ("accuracy", "latency"))
    return (
        f"`{file_name(entry)}`{_stand_in(entry)}",
        f"{entry['bytes'] / 1e6:.2f}",
        _figure(accuracy.get("map"), NumberFormat(4), accuracy.get("map_interval"), of_accuracy),
        _figure(accuracy.get("drop"), NumberFormat(4), accuracy.get("drop_interval"), of_accuracy),
        _figure(accuracy.get("retention"), PERCENT, accuracy.get("retention_interval"), of_accuracy),
        _figure(accuracy.get("fidelity"), DECIMAL, None, of_accuracy),
        _figure(latency.get("p50"), NumberFormat(1), None, of_latency),
        _figure(latency.get("p95"), NumberFormat(1), None, of_latency),
        _figure(entry.get("speedup"), NumberFormat(2, "×"), None, of_latency),
        _figure(entry.get("int8_mac_coverage"), PERCENT, None, ""),
    )


def _figure(value: float | None, shown: NumberFormat, interval: Any, mark: str) -> str:
    if value is None:
        return NOTHING
    span = f" [{shown.text(interval[0])}, {shown.text(interval[1])}]" if interval else ""
    return f"{shown.text(value)}{span}{mark}"


def _stand_in(entry: Entry) -> str:
    """What made the row's figures, where that is not the runtime that the file is for."""
    runtime = stand_in(entry)
    return f"<br><sub>run by {_text(runtime)}</sub>" if runtime else ""


def _legend(report: Mapping[str, Any]) -> str:
    """What the signs of the table mean."""
    told = [f"{NOTHING}: not measured"]
    if any((entry.get("accuracy") or {}).get("map_interval") for entry in report["artifacts"]):
        told.append("in brackets: 95 % interval over images")
    if any(_figure_of(entry, "drop") is not None for entry in report["artifacts"]):
        told.append("drop: FP32 minus the artifact, negative where the artifact scored higher")
    if any(MARK in cell for entry in report["artifacts"] for cell in _row(entry)):
        told.append(f"{MARK}: a warning below is about the figure")
    return f"<sub>{'; '.join(told)}</sub>"


def _figure_of(entry: Entry, name: str) -> float | None:
    found: float | None = (entry.get("accuracy") or {}).get(name)
    return found


def _warnings(report: Mapping[str, Any]) -> str:
    found = collected(report["warnings"], report["artifacts"], lambda entry: f"`{file_name(entry)}`")
    return "\n".join(
        f"- {MARK} {', '.join(each.names)}{': ' if each.names else ''}{_text(each.text)}" for each in found
    )


def _verified(report: Mapping[str, Any]) -> str:
    lines = ((entry, verified(entry)) for entry in report["artifacts"])
    return "\n".join(f"- verified: `{file_name(entry)}`: {_text(text)}" for entry, text in lines if text)


def _failures(report: Mapping[str, Any]) -> str:
    return "\n".join(f"- ❌ {_text(each['format'])}: {_text(each['reason'])}" for each in report["failures"])


def _gate(report: Mapping[str, Any]) -> str:
    gate = report.get("gate")
    if not gate:
        return ""
    failed = sum(not rule["passed"] for rule in gate["rules"])
    head = f"**Gate: {'passed' if gate['passed'] else 'failed'}**, {len(gate['rules'])} rules, {failed} broken"
    lines = [f"- {'✅' if rule['passed'] else '❌'} {rule['rule']}: {_text(rule['text'])}" for rule in gate["rules"]]
    return "\n".join([head, "", *lines])


def _origin(report: Mapping[str, Any]) -> str:
    environment = report["environment"]
    machine = f"{environment.get('processor', 'unknown processor')}, {environment.get('cores', '?')} cores"
    parts = [f"{machine}, {report['threads']} threads; qexport {report.get('qexport', '')}"]
    if report.get("baseline"):
        parts.append(f"compared with `{report['baseline']['path']}`")
    return f"<sub>{_text('; '.join(parts))}</sub>"


def _text(words: str) -> str:
    """What came from file names and libraries, so that it stays text."""
    joined = " ".join(str(words).split())
    for sign in "\\|<>*_[]":
        joined = joined.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return joined
