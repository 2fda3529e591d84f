"""What precisions are called where people read of them."""

from __future__ import annotations


def precision_name(precision: str) -> str:
    """`int8-full` → INT8 full."""
    first, *rest = precision.split("-")
    return " ".join([first.upper(), *rest])
