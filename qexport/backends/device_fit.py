"""What a device that cannot be run here makes of an artifact: what it lacks, and how much memory it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Lacking:
    """Operators of one kind that a device does not run itself, and why."""

    kind: str
    count: int
    reason: str


@dataclass(frozen=True)
class DeviceFit:
    """Whether an artifact suits a device, as far as its file tells.

    Attributes:
        device: what it was checked for.
        operators: how many there are.
        lacking: those that the device does not run itself.
        in_front: operators before the first that is lacking, where the device runs only those; None where all count.
        memory: bytes that it needs there, by what for.
        files: what was written for the device, beside the artifact.
        source: where the limits are documented.
    """

    device: str
    operators: int
    lacking: tuple[Lacking, ...]
    in_front: int | None = None
    memory: Mapping[str, int] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    source: str = ""
