"""Every warning of a report once, with the names of all that it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qexport.reporting.report import ArtifactReport, Report, Warning

ALL = "All artifacts"


@dataclass(frozen=True)
class ListedWarning:
    """One warning, its number in the report, and the names of the artifacts that have it (none: the whole run)."""

    number: int
    warning: Warning
    names: tuple[str, ...]

    @property
    def text(self) -> str:
        """The warning itself."""
        return self.warning.text

    @property
    def line(self) -> str:
        """The warning behind the names."""
        return f"{', '.join(self.names)}: {self.text}" if self.names else self.text


def list_warnings(report: Report, name: Callable[[ArtifactReport], str]) -> tuple[ListedWarning, ...]:
    """Those of the run, then those of artifacts, numbered from 1; equal texts are one warning.

    Args:
        name: what a reader knows an artifact by.
    """
    names: dict[str, list[str]] = {warning.text: [] for warning in report.warnings}
    first = {warning.text: warning for warning in reversed(report.warnings)}
    for artifact in report.artifacts:
        for warning in artifact.warnings:
            names.setdefault(warning.text, []).append(name(artifact))
            first.setdefault(warning.text, warning)
    every = len(report.artifacts)
    whose = {text: each if len(each) < every or every < 2 else [ALL] for text, each in names.items()}
    return tuple(ListedWarning(i, first[text], tuple(each)) for i, (text, each) in enumerate(whose.items(), 1))
