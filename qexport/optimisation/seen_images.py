"""Images that passes learn from: few, the same in whatever order they are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qexport.data.choice import take

MAX_IMAGES = 32
"""Thousands of places of each layer's output are looked at in them: more move nothing, and take longer."""


def learned_from(images: Sequence[Path]) -> tuple[Path, ...]:
    """Up to `MAX_IMAGES` of them, by name."""
    return take(sorted(images, key=lambda path: (path.name, path)), count=MAX_IMAGES)
