"""How each figure of report.json is set in type. Nothing else on the page turns a number into text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

NOTHING = "–"
MINUS = "−"


@dataclass(frozen=True)
class Form:
    """A format specification, the unit behind the number, and what the value is multiplied by before."""

    spec: str
    unit: str = ""
    factor: float = 1.0


COUNT = Form(",.0f")
SCORE = Form(".4f")
SHARE = Form(".1f", "\N{NARROW NO-BREAK SPACE}%", 100)
SHIFT = Form("+.3f")
MILLISECONDS = Form(".1f")
THRESHOLD = Form(".2f")

FORMS: Mapping[str, Form] = {
    "bytes": Form(".2f", factor=1e-6),
    "map": SCORE,
    "map50": SCORE,
    "box_map": SCORE,
    "map_float": SCORE,
    "map50_float": SCORE,
    "drop": SCORE,
    "retention": SHARE,
    "fidelity": Form(".3f"),
    "fidelity50": Form(".3f"),
    "boxes": COUNT,
    "mean_iou": Form(".3f"),
    "edge_error": Form(".2f"),
    "edge_error_p95": Form(".2f"),
    "images": COUNT,
    "held_out": COUNT,
    "start": Form(".4g"),
    "resamples": COUNT,
    "labels": COUNT,
    "matched": COUNT,
    "counts": COUNT,
    "mean": Form(".3f"),
    "mean_float": Form(".3f"),
    "shift": SHIFT,
    "p05": SHIFT,
    "bins": Form("+.2f"),
    "p50": MILLISECONDS,
    "p95": MILLISECONDS,
    "min": MILLISECONDS,
    "speedup": Form(".2f", "×"),
    "speedup_by_default": Form(".2f", "×"),
    "arithmetic": SHARE,
    "peak_share": SHARE,
    "int8_mac_coverage": SHARE,
    "coverage": SHARE,
    "agreement": SHARE,
    "min_agreement": SHARE,
    "cosine": SCORE,
    "tensors": COUNT,
    "unnamed": COUNT,
    "operators": COUNT,
    "in_front": COUNT,
    "count": COUNT,
    "memory": Form(".2f", factor=1e-6),
    "scale": Form(".4g"),
    "zero_point": COUNT,
    "macs": COUNT,
    "sqnr_db": Form(".1f"),
    "low": Form("#.3g"),
    "high": Form("#.3g"),
    "score": Form(".2f"),
    "everything": THRESHOLD,
    "reference": THRESHOLD,
    "before": Form(".4g"),
    "after": Form(".4g"),
    "noise": Form(".2g"),
    "seconds": Form(".1f"),
    "limit": COUNT,
    "distance": Form(".4g"),
    "float_macs": SHARE,
    "float_macs_before": SHARE,
    "lost_percent": Form(".2f", "\N{NARROW NO-BREAK SPACE}%"),
    "latency_ms": Form(".1f", "\N{NARROW NO-BREAK SPACE}ms"),
    "threads": COUNT,
    "cores": COUNT,
    "batch": COUNT,
    "classes": COUNT,
}
"""By the name of the field; a pair of bounds has the form of what it bounds."""

SHIFTS = ("p50", "p95")
"""Names that mean milliseconds elsewhere and a difference of confidence in `confidence`."""


def form_of(path: str) -> Form:
    """The form of the figure at a dotted path such as `artifacts.0.accuracy.map_interval.1`."""
    parts = [part for part in path.split(".") if not part.isdigit()]
    for name in reversed(parts):
        if name in SHIFTS and "confidence" in parts:
            return SHIFT
        if name == "classes" and "thresholds" in parts:
            return THRESHOLD
        if (known := FORMS.get(name.removesuffix("_interval"))) is not None:
            return known
    raise KeyError(path)


def typeset(value: Any, form: Form) -> str:
    """A number as text: true minus, never a negative zero; a dash where there is none."""
    if value is None:
        return NOTHING
    if isinstance(value, Sequence):
        return f"{len(value)} values" if len(value) != 1 else typeset(value[0], form)
    text = f"{value * form.factor:{form.spec}}"
    if text.startswith("-") and not text.strip("-0.,"):
        text = text[1:]
    return text.replace("-", MINUS) + form.unit


def lookup(report: Any, path: str) -> Any:
    """What is at a dotted path of the report; None where a step of it is missing, or where the figure is no number."""
    found = report
    for part in path.split("."):
        if is_dataclass(found):
            found = getattr(found, part, None)
        elif isinstance(found, Mapping):
            found = found.get(part)
        elif isinstance(found, list | tuple) and part.isdigit() and int(part) < len(found):
            found = found[int(part)]
        else:
            return None
    return None if isinstance(found, float) and not math.isfinite(found) else found
