"""What a sweep came to: `sweep.json`, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qexport.reporting.record_file import load_record, save_record
from qexport.reporting.report import ACCURACY, LATENCY, ArtifactReport, Report
from qexport.version import __version__

SCHEMA = 1
DONE, FAILED, UNAVAILABLE = "done", "failed", "not available"
"""States of a run: the last is of combinations that no format has."""
FIDELITY = "fidelity"


@dataclass(frozen=True)
class SweptArtifact:
    """Figures of one artifact that a run was asked for, from its report; None where they were not measured.

    Attributes:
        bytes: of the file.
        map: the task's first figure, 0..1; None without labels.
        fidelity: agreement with FP32, 0..1.
        retention: of FP32's first figure.
        latency_ms: median of a run.
        speedup: against FP32.
        int8_mac_coverage: share of the arithmetic in INT8.
        warned: "accuracy", "latency": figures that the run's report has a warning about.
    """

    label: str
    bytes: int
    map: float | None = None
    fidelity: float | None = None
    retention: float | None = None
    latency_ms: float | None = None
    speedup: float | None = None
    int8_mac_coverage: float | None = None
    warned: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweptRun:
    """One run.

    Attributes:
        name: of its folder beside sweep.json.
        label: what is special about it.
        state: "done", "failed" or "not available".
        exit_code: of its process; 0 where it was not run.
        line: why it failed or is not available, or which rule of the gate it breaks.
        report, page: paths of its report.json and page, from the folder of sweep.json; "" where there is none.
        metric: name of the task's first figure.
        processor: of the machine that measured.
        alone: latency was measured while no other run of the sweep worked on that machine.
    """

    name: str
    label: str
    state: str
    exit_code: int = 0
    line: str = ""
    seconds: float = 0.0
    report: str = ""
    page: str = ""
    metric: str = ""
    processor: str = ""
    alone: bool = True
    artifacts: tuple[SweptArtifact, ...] = ()


@dataclass(frozen=True)
class SweepReport:
    """A sweep.

    Attributes:
        file: that it was asked for by.
        command: as it was typed; "" from Python.
        runs: in the order of the file.
    """

    file: str
    command: str
    runs: tuple[SweptRun, ...]
    version: str = __version__


def swept(report: Report, precision: str) -> tuple[SweptArtifact, ...]:
    """Of a run's report the artifacts that were asked for, without the FP32 files beside them."""
    return tuple(_swept(each) for each in report.artifacts if each.precision == precision)


def _swept(artifact: ArtifactReport) -> SweptArtifact:
    found = artifact.accuracy
    return SweptArtifact(
        label=artifact.label,
        bytes=artifact.bytes,
        map=found.map if found else None,
        fidelity=found.fidelity if found else None,
        retention=found.retention if found else None,
        latency_ms=artifact.latency_ms.p50 if artifact.latency_ms else None,
        speedup=artifact.speedup,
        int8_mac_coverage=artifact.int8_mac_coverage,
        warned=tuple(kind for kind in (ACCURACY, LATENCY) if artifact.warned(kind)),
    )


def save_sweep(report: SweepReport, path: Path) -> None:
    """Write a report as JSON, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    save_record(report, SCHEMA, path)


def load_sweep(path: str | Path) -> SweepReport:
    """Read what `save_sweep` wrote.

    Raises:
        InputError: it cannot be read, is something else, or was written by a later version.
    """
    return load_record(SweepReport, SCHEMA, path, "sweep that qexport recorded", "run the sweep again")
