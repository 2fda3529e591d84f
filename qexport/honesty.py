"""Warnings go where the figure goes: which of an artifact's warnings concern which kind of figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = {"accuracy": ("accuracy", "evaluation"), "latency": ("latency",)}
"""Kind of figure → words that every warning about it has in it (`report.accuracy_warnings`, `latency_warnings`)."""


def caveats(entry: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The warnings of an artifact's entry in report.json that a figure of this kind must not be shown without."""
    words = ABOUT.get(kind, ())
    return tuple(warning for warning in entry.get("warnings", ()) if any(word in warning for word in words))
