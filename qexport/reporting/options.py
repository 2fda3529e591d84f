"""What the report takes from a job, and where it goes: nothing here knows a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunOptions:
    """What a run was asked for, as far as its report says so.

    Attributes:
        command: the command line, as one string.
        data, eval_data: as given; the first is evaluated on where there is no second.
        calibration: the calibration.npz that was given.
        ranges: how activation ranges are chosen.
        min_images: calibration images that had to be usable.
        threads: CPU threads of artifacts.
        target: the device, "" for none.
        scored, timed: whether accuracy and latency were asked for.
        saved: where report.json goes.
    """

    command: str = ""
    data: str | None = None
    eval_data: str | None = None
    calibration: Path | None = None
    ranges: str = ""
    min_images: int = 1
    threads: int = 1
    target: str = ""
    scored: bool = True
    timed: bool = True
    saved: str = ""


@dataclass(frozen=True)
class Places:
    """The files that a report and its renderings are written to; None for those that nobody asked for."""

    report: Path
    page: Path | None = None
    summary: Path | None = None
    junit: Path | None = None
