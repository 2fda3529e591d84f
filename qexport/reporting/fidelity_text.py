"""Fidelity in words: its interval and what it is made of, in one line."""

from __future__ import annotations

from qexport.measurement.evidence.fidelity_parts import Interval, MatchedBoxes
from qexport.reporting.page.typeset import form_of, typeset
from qexport.reporting.report import AccuracyInfo, ArtifactReport


def with_interval(figure: float, interval: Interval | None, name: str) -> str:
    """A figure of the field `name` and its 95 % interval: 0.953 [0.931, 0.968]."""
    form = form_of(name)
    between = f" [{typeset(interval[0], form)}, {typeset(interval[1], form)}]" if interval else ""
    return f"{typeset(figure, form)}{between}"


def fidelity_text(artifact: ArtifactReport) -> str:
    """Fidelity, what is found, how far edges moved by size of objects, and confidence; "" where nobody looked."""
    found = artifact.accuracy
    if found is None or found.fidelity is None:
        return ""
    if found.fidelity_interval is None and found.fidelity50 is None and not found.matched_boxes:
        return ""
    parts = [with_interval(found.fidelity, found.fidelity_interval, "fidelity")]
    if found.fidelity50 is not None:
        parts.append(f"at IoU 0.50 {with_interval(found.fidelity50, found.fidelity50_interval, 'fidelity50')}")
    parts += _boxes(found)
    if found.confidence:
        parts.append(f"confidence {typeset(found.confidence.shift, form_of('shift'))} where FP32 is confident")
    return "; ".join(parts)


def _boxes(found: AccuracyInfo) -> list[str]:
    if not found.matched_boxes:
        return []
    whole, *sizes = found.matched_boxes
    parts = [f"{whole.matched} of {whole.boxes} boxes matched"]
    if whole.mean_iou is not None:
        each = ", ".join(f"{row.size} {_edge(row)}" for row in sizes if row.edge_error is not None)
        within = typeset(whole.edge_error_p95, form_of("edge_error_p95"))
        parts.append(f"mean IoU {typeset(whole.mean_iou, form_of('mean_iou'))}")
        parts.append(f"edges {_edge(whole)} px off (95 % within {within}; {each})")
    return parts


def _edge(row: MatchedBoxes) -> str:
    return typeset(row.edge_error, form_of("edge_error"))
