"""What the page shows, arranged from the report: entries with names, warnings with what they are about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qexport.backends.registry import display_name
from qexport.reporting.names import precision_name
from qexport.reporting.page.typeset import form_of, lookup, typeset
from qexport.reporting.provenance import NO_LABELS, scored_images, stand_in
from qexport.reporting.report import (
    ACCURACY,
    ARTIFACT,
    LATENCY,
    LIKENESS,
    ArtifactReport,
    ClassAccuracy,
    Outcome,
    Report,
)
from qexport.reporting.thresholds import furthest, thresholds_of
from qexport.reporting.warning_list import ListedWarning, list_warnings
from qexport.tasks import SCORING
from qexport.vocabulary import listed

BESIDE = (ACCURACY, LATENCY, ARTIFACT)
"""What warnings are about that stand beside something on the page; those of the run stand above."""
UNKNOWN_TASK = "outputs of unknown meaning"
ClassRow = tuple[int, ClassAccuracy, float | None]
"""Place of a class in the report, its figures, and its drop: FP32 minus what was asked for."""


@dataclass(frozen=True)
class Entry:
    """One artifact as the page shows it.

    Attributes:
        at: its path in the report, such as `artifacts.0`.
        reference: that of the FP32 artifact of the same runtime, "" for none.
        data: its figures.
        title: format and precision, such as "ONNX INT8".
        warnings: "accuracy", "latency" or "artifact" → the warnings beside what is about that.
        names: the model's classes, in their order; empty in reports of earlier versions.
    """

    at: str
    reference: str
    data: ArtifactReport
    title: str
    warnings: Mapping[str, tuple[ListedWarning, ...]]
    names: Sequence[str] = ()

    @property
    def kind(self) -> str:
        """Class of its colour: what is compared with is "float"."""
        return "float" if self.data.precision == "fp32" else "asked"

    @property
    def precision(self) -> str:
        """The precision's name as people write it."""
        return precision_name(self.data.precision)

    @property
    def format(self) -> str:
        """The format's name as people write it."""
        return artifact_format(self.data)

    def part(self, name: str) -> Any:
        """A part of it that may be missing: what is empty counts as missing."""
        return getattr(self.data, name) or None

    @property
    def classes(self) -> list[ClassRow]:
        """Rows of the per-class table, the greatest loss first; none without FP32 to compare with."""
        rows: list[ClassRow] = []
        for i, row in enumerate(self.scored("per_class") or ()):
            known = row.map is not None and row.map_float is not None
            rows.append((i, row, row.map_float - row.map if known else None))
        compared = any(drop is not None for _, _, drop in rows)
        return sorted(rows, key=lambda row: (row[2] is None, -(row[2] or 0.0))) if compared else []

    @property
    def class_names(self) -> dict[int, str]:
        """Names of the model's classes, at least of those that occur in the labels."""
        return {**dict(enumerate(self.names)), **{row.number: row.name for row in self.scored("per_class") or ()}}

    @property
    def thresholds_at(self) -> str:
        """Path of its thresholds in the report, "" where there are none."""
        known = thresholds_of(self.data)
        return f"{self.at}.{'accuracy' if known[1] == 'evaluation' else 'likeness'}.thresholds" if known else ""

    @property
    def threshold_classes(self) -> list[tuple[str, str]]:
        """Number and name of the classes whose thresholds differ most."""
        known, names = thresholds_of(self.data), self.class_names
        return [(number, names.get(int(number), number)) for number in furthest(known[0])] if known else []

    def scored(self, name: str) -> Any:
        """A part of its accuracy."""
        return getattr(self.data.accuracy, name, None) or None

    @property
    def origin(self) -> str:
        """What ran it in place of the runtime that it is for, in a few words; "" where its own did."""
        runtime = stand_in(self.data)
        return f"run by {runtime}" if runtime else ""

    @property
    def number(self) -> int:
        """Its place in the report."""
        return int(self.at.rpartition(".")[2])


def artifact_format(artifact: ArtifactReport) -> str:
    """Name of an artifact's format; an engine is named as one."""
    name = display_name(artifact.format)
    return f"{name} engine" if artifact.engine else name


def entries_of(report: Report) -> tuple[Entry, ...]:
    """All artifacts, in the order of the report."""
    artifacts = report.artifacts
    floats = {each.format: f"artifacts.{i}" for i, each in enumerate(artifacts) if each.precision == "fp32"}
    listed = {each.text: each for each in warnings_of(report)}
    made = []
    for i, each in enumerate(artifacts):
        kinds = {about: tuple(listed[warning.text] for warning in each.warned(about)) for about in BESIDE}
        reference = floats.get(each.format, "") if each.precision != "fp32" else ""
        made.append(Entry(f"artifacts.{i}", reference, each, title_of(each), kinds, report.model.names))
    return tuple(made)


def having(entries: Sequence[Entry], *names: str) -> list[Entry]:
    """Those that have a part, or a part of a part."""
    return [each for each in entries if lookup(each.data, ".".join(names))]


def title_of(artifact: ArtifactReport) -> str:
    """Format and precision."""
    return f"{artifact_format(artifact)} {precision_name(artifact.precision)}"


def warnings_of(report: Report) -> tuple[ListedWarning, ...]:
    """Every warning once, numbered: those of the run, then those of artifacts with all that they are about."""
    return list_warnings(report, title_of)


def of_figures(warnings: Sequence[ListedWarning]) -> list[ListedWarning]:
    """Those that figures must not be shown without, whosever they are."""
    return [each for each in warnings if each.warning.about in (ACCURACY, LATENCY, LIKENESS)]


def asked_of(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """What was asked for, without the FP32 files that it is compared with; all where nothing else is there."""
    return tuple(each for each in entries if each.kind == "asked") or tuple(entries)


def widest(rows: Sequence[ClassRow]) -> float:
    """The greatest drop of a per-class table, whichever its sign: the length of a whole bar."""
    return max((abs(drop) for _, _, drop in rows if drop is not None), default=0.0)


def headline(asked: Sequence[Entry]) -> str:
    """What came out, in a sentence."""
    if not asked:
        return "Nothing was written"
    words = f"{listed([each.format for each in asked])} in {asked[0].precision}"
    checked = [each for each in asked if each.part("verification")]
    if not checked:
        return words
    who = "" if len(asked) == 1 else "each " if len(checked) == len(asked) else f"{len(checked)} of {len(asked)} "
    # Only calibrated files have a plan; others are verified against the float program.
    against = " against its plan" if all(each.part("plan") for each in checked) else ""
    return f"{words}, {who}verified{against}{_elsewhere(checked)}"


def _elsewhere(checked: Sequence[Entry]) -> str:
    """Behind "verified": whose runtime is not here, and what ran those in its place."""
    away = [each for each in checked if each.origin]
    if len(away) == len(checked) == 1:
        return f", {away[0].origin}"
    return "".join(f"; {each.format} {each.origin}" for each in away)


def subject(report: Report) -> str:
    """What the figures are of, in short."""
    model = report.model
    parts = [task_name(model.task), f"{model.head} head", " × ".join(map(str, model.imgsz))]
    for group, images in (("calibrated", report.calibration), ("scored", report.evaluation)):
        if images and (group == "calibrated" or scored_images(report)):
            parts.append(f"{group} on {typeset(images.images, form_of('images'))} images")
    if report.evaluation and not report.evaluation.labelled:
        parts.append(NO_LABELS)
    return " · ".join([parts[0][:1].upper() + parts[0][1:], *parts[1:]])


def task_name(task: str | None) -> str:
    """What a task is called."""
    return SCORING[task].title if task in SCORING else task or UNKNOWN_TASK


def failing(report: Report) -> list[Outcome]:
    """Rules of the gate that do not hold."""
    return [rule for rule in report.gate.rules if not rule.passed] if report.gate else []
