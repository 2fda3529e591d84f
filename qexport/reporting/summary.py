"""The report as Markdown: what a CI's summary page shows. Every figure comes from report.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.reporting.gate import Entry, Shown, file_name
from qexport.reporting.honesty import caveats

NOTHING = "–"
MARK = "⚠️"
"""Behind every figure that a warning concerns."""
PERCENT, DECIMAL = Shown(1, "%", 100), Shown(3)


def to_markdown(report: Mapping[str, Any]) -> str:
    """Render a report's content: figures with intervals, warnings, and the gate."""
    parts = [_title(report), _table(report), _warnings(report), _failures(report), _gate(report), _origin(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(report: Mapping[str, Any]) -> str:
    model, size = report["model"], "×".join(map(str, report["model"]["imgsz"]))
    parts = [f"{_text(file_name(model))}, {_text(model['head'])} head, {size}"]
    if report.get("calibration"):
        parts.append(f"calibrated on {report['calibration']['images']} images")
    if report.get("evaluation"):
        parts.append(f"scored on {report['evaluation']['images']}")
    gate = report.get("gate")
    sign = "" if not gate else ("✅ " if gate["passed"] else "❌ ")
    return f"### {sign}qexport: {', '.join(parts)}"


def _table(report: Mapping[str, Any]) -> str:
    names = (report.get("evaluation") or {}).get("metrics", ["mAP50-95", "mAP50"])
    headings = ("artifact", "MB", names[0], "retention", "fidelity", "ms p50", "ms p95", "speed-up", "INT8 MACs")
    rows = [headings, ("---", *["---:"] * (len(headings) - 1)), *map(_row, report["artifacts"])]
    rows += [(f"{_text(each['format'])} ❌", *[NOTHING] * (len(headings) - 1)) for each in report["failures"]]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(entry: Entry) -> tuple[str, ...]:
    accuracy, latency = entry.get("accuracy") or {}, entry.get("latency_ms") or {}
    of_accuracy, of_latency = (f" {MARK}" if caveats(entry, kind) else "" for kind in ("accuracy", "latency"))
    return (
        f"`{file_name(entry)}`",
        f"{entry['bytes'] / 1e6:.2f}",
        _figure(accuracy.get("map"), Shown(4), accuracy.get("map_interval"), of_accuracy),
        _figure(accuracy.get("retention"), PERCENT, accuracy.get("retention_interval"), of_accuracy),
        _figure(accuracy.get("fidelity"), DECIMAL, None, of_accuracy),
        _figure(latency.get("p50"), Shown(1), None, of_latency),
        _figure(latency.get("p95"), Shown(1), None, of_latency),
        _figure(entry.get("speedup"), Shown(2, "×"), None, of_latency),
        _figure(entry.get("int8_mac_coverage"), PERCENT, None, ""),
    )


def _figure(value: float | None, shown: Shown, interval: Any, mark: str) -> str:
    if value is None:
        return NOTHING
    span = f" [{shown.text(interval[0])}, {shown.text(interval[1])}]" if interval else ""
    return f"{shown.text(value)}{span}{mark}"


def _warnings(report: Mapping[str, Any]) -> str:
    lines = [f"- {MARK} {_text(warning)}" for warning in report["warnings"]]
    lines += [
        f"- {MARK} `{file_name(entry)}`: {_text(warning)}"
        for entry in report["artifacts"]
        for warning in entry["warnings"]
    ]
    return "\n".join(lines)


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
