"""Warnings go where the figure goes: which of an artifact's warnings concern which kind of figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ABOUT = {"latency": ("latency", "float32 files faster"), "accuracy": ("accuracy", "evaluation images")}
"""Kind of figure → words, one of which every warning about it has in it (`report.accuracy_warnings`, …)."""


def about(warning: str) -> str:
    """The kind of figure that a warning concerns; "artifact" where it is the whole file."""
    return next((kind for kind, words in ABOUT.items() if any(word in warning for word in words)), "artifact")


def caveats(entry: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The warnings of an artifact's entry in report.json that a figure of this kind must not be shown without."""
    return tuple(warning for warning in entry.get("warnings", ()) if about(warning) == kind)
