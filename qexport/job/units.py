"""Bounds of the gate as people write them: shares, percentages, factors and sizes, with or without a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SIZES = {"kB": 1e-3, "KB": 1e-3, "MB": 1.0, "GB": 1e3, "KiB": 1024e-6, "MiB": 1024**2 / 1e6, "GiB": 1024**3 / 1e6}
"""Suffix → megabytes (10⁶ bytes, as the report shows them)."""


def share(value: Any) -> float:
    """0.97 or "97%" → 0.97; raise `ValueError` for a percentage without its sign."""
    number = percent(value) / 100 if str(value).strip().endswith("%") else float(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def percent(value: Any) -> float:
    """2 or "2%" → 2.0."""
    number = float(str(value).strip().removesuffix("%"))
    if not 0 <= number <= 100:
        raise ValueError
    return number


def positive(value: Any) -> float:
    """A finite number above zero."""
    number = float(value)
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise ValueError
    return number


def megabytes(value: Any) -> float:
    """3.2, "3.2MB" or "3 MiB" → megabytes of 10⁶ bytes."""
    text = str(value).strip()
    unit = next((unit for unit in SIZES if text.endswith(unit)), "")
    return positive(text.removesuffix(unit)) * SIZES[unit or "MB"]


@dataclass(frozen=True)
class Unit:
    """What an option takes.

    Attributes:
        parse: from the option's value; raises `ValueError`.
        wanted: what that is, for the message about a wrong value.
    """

    parse: Callable[[Any], float]
    wanted: str


SHARE = Unit(share, "a share such as 0.97, or a percentage such as 97%")
BOUNDS: Mapping[str, Unit] = {
    "max_drop": Unit(percent, "a percentage of FP32's mAP, such as 2"),
    "min_retention": SHARE,
    "min_fidelity": SHARE,
    "min_speedup": Unit(positive, "a factor such as 1.5"),
    "max_size": Unit(megabytes, "megabytes, or a size such as 900kB or 3MiB"),
    "max_latency_ms": Unit(positive, "milliseconds"),
}
"""Field of the job → what it takes; `qexport.reporting.gate.RULES` has the same names, with hyphens."""
