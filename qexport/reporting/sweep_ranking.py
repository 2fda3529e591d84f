"""Artifacts of a sweep in order, and which of them are best: for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from qexport.reporting.report import ACCURACY, LATENCY
from qexport.reporting.sweep_report import FIDELITY, SweepReport, SweptArtifact, SweptRun


@dataclass(frozen=True)
class Ranked:
    """An artifact and its run.

    Attributes:
        best: "accuracy", "latency": what none that can be compared with it is better in.
        unbeaten: no other is both as accurate and faster, or as fast and more accurate.
    """

    run: SweptRun
    artifact: SweptArtifact
    best: tuple[str, ...] = ()
    unbeaten: bool = False

    @property
    def accuracy(self) -> float | None:
        """The task's figure, or fidelity where there are no labels."""
        return self.artifact.fidelity if self.artifact.map is None else self.artifact.map

    @property
    def measure(self) -> str:
        """What that is called; figures of another name cannot be compared with it."""
        return FIDELITY if self.artifact.map is None else self.run.metric

    @property
    def latency(self) -> float | None:
        """Milliseconds; those of another processor cannot be compared with them."""
        return self.artifact.latency_ms


def ranked(report: SweepReport) -> tuple[Ranked, ...]:
    """The most accurate first, each measure by itself, fidelity behind the others; what was not scored comes last."""
    rows = [Ranked(run, artifact) for run in report.runs for artifact in run.artifacts]
    most = _best(rows, lambda row: row.measure, lambda row: None if row.accuracy is None else -row.accuracy)
    least = _best(rows, lambda row: row.run.processor, lambda row: row.latency)
    marked = []
    for row in rows:
        best = tuple(kind for kind, leaders in ((ACCURACY, most), (LATENCY, least)) if row in leaders)
        marked.append(replace(row, best=best, unbeaten=_unbeaten(row, rows)))
    return tuple(sorted(marked, key=_place))


def _place(row: Ranked) -> tuple[bool, bool, str, float, float]:
    missing = row.accuracy is None
    return missing, row.measure == FIDELITY, row.measure, -(row.accuracy or 0.0), row.latency or 0.0


def _best(
    rows: Sequence[Ranked], group: Callable[[Ranked], str], figure: Callable[[Ranked], float | None]
) -> list[Ranked]:
    """Rows with the least figure of their group; none of a group of one."""
    found = []
    for name in {group(row) for row in rows}:
        known = [(value, row) for row in rows if group(row) == name and (value := figure(row)) is not None]
        if len(known) > 1:
            found += [row for value, row in known if value == min(each for each, _ in known)]
    return found


def _unbeaten(row: Ranked, rows: Sequence[Ranked]) -> bool:
    if row.accuracy is None or row.latency is None:
        return False
    for other in rows:
        same = (other.measure, other.run.processor) == (row.measure, row.run.processor)
        if same and other.accuracy is not None and other.latency is not None:
            better = other.accuracy > row.accuracy, other.latency < row.latency
            if any(better) and other.accuracy >= row.accuracy and other.latency <= row.latency:
                return False
    return True
