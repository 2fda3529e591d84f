"""How many images a run calibrates with and learns from, and which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexport.errors import UsageError

MAX_CALIBRATION = 512
"""Calibration images where nobody says how many: ranges hardly move beyond, and a hundred thousand take hours."""
MAX_LEARNED = 32
"""Images that gradients are taken on: a pass backward takes several runs, and more move nothing."""
ALL = "all"


def parse_count(value: object) -> int:
    """How many images, 1 or more, or 0 for "all".

    Raises:
        UsageError: less than 1.
        ValueError: neither.
    """
    return 0 if value == ALL else _count(value, "calib-images", f"give 1 or more, or {ALL}")


def parse_least(value: object) -> int:
    """How many images a run needs, 1 or more.

    Raises:
        UsageError: less than 1.
        ValueError: no whole number.
    """
    return _count(value, "min-images", "give 1 or more")


def _count(value: object, option: str, remedy: str) -> int:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or float(value) != int(float(value)):
        raise ValueError(value)
    if float(value) < 1:
        raise UsageError(f"--{option} {value} is out of range", remedy)
    return int(float(value))


def limit_of(count: int | None, fraction: float) -> int | None:
    """The limit on the number of images, None for none: a requested share is obeyed as it is."""
    if count is None:
        return MAX_CALIBRATION if fraction == 1 else None
    return count or None


def note_of(count: int | None, fraction: float, available: int) -> str:
    """A note that the limit is a default; "" if the user set one or nothing is left out."""
    limit = limit_of(count, fraction)
    if count is not None or limit is None or available <= limit:
        return ""
    return f"calibrated on {limit} of {available} images, evenly chosen; --calib-images {ALL} takes all"


def take(images: Sequence[Path], fraction: float = 1.0, count: int | None = None, seed: int = 0) -> tuple[Path, ...]:
    """An evenly spread subset, in order, the same on every run.

    Args:
        images: what to choose from.
        fraction: share to keep, more than 0 and at most 1; at least one image stays.
        count: at most this many images; None for no limit.
        seed: shifts the choice; another seed picks other images as evenly.

    Raises:
        UsageError: `fraction` or `count` is out of range.
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"--fraction {fraction} is out of range", "give more than 0 and at most 1")
    if count is not None and count < 1:
        raise UsageError(f"--calib-images {count} is out of range", "give 1 or more")
    total = len(images)
    if total == 0:
        return ()
    kept = max(1, round(total * fraction))
    if count is not None:
        kept = min(kept, count)
    # One image from each of `kept` equal stretches: whole numbers, so no platform rounds differently.
    offset = (total // 2 + seed) % total
    return tuple(images[(i * total + offset) // kept] for i in range(kept))


def learned_from(images: Sequence[Path]) -> tuple[Path, ...]:
    """Up to `MAX_LEARNED` images, evenly spread, the same in whatever order they are given."""
    return take(sorted(images, key=lambda path: (path.name, path)), count=MAX_LEARNED)
