"""Whole numbers as files of others say them: what has a fraction is none, rather than the one below it."""

from __future__ import annotations

from typing import Any


def whole(said: Any) -> int:
    """A whole number, of any type of numbers or as text.

    Raises:
        TypeError, ValueError, OverflowError: it is another.
    """
    found = int(said)
    if isinstance(said, bool) or (not isinstance(said, str) and found != said):
        raise ValueError(f"{said} where a whole number belongs")
    return found
