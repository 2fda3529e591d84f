"""The gate: bounds that the user sets on measured figures, checked on the report.

Rules are rows of a table, and what other packages bring (`qexport.reporting.rule`). A rule is checked on the figure
itself; the interval, where there is one, is shown beside it, and so is every warning that concerns the figure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from qexport.errors import EngineNotBuiltError, GateError, named_reason
from qexport.measurement.attempt import MAX_REASON
from qexport.measurement.evidence.fidelity_parts import Interval
from qexport.reporting.provenance import on_stand_in
from qexport.reporting.report import ACCURACY, LATENCY, ArtifactReport, Outcome, Report
from qexport.reporting.rule import SIZE, NumberFormat, Rule, find_rule

WITHOUT_LABELS = ": the evaluation images have no labels"


def accuracy_of(name: str) -> Callable[[ArtifactReport], float | None]:
    """What reads a figure of accuracy: None where it was not measured, or is no number."""

    def figure(artifact: ArtifactReport) -> float | None:
        found: float | None = getattr(artifact.accuracy, name, None)
        return None if found is None or math.isnan(found) else found

    return figure


def speedup_of(artifact: ArtifactReport) -> float | None:
    """The factor by which it is faster than FP32."""
    return artifact.speedup


def megabytes_of(artifact: ArtifactReport) -> float:
    """Its size, in 10⁶ bytes."""
    return artifact.bytes / 1e6


def _median(artifact: ArtifactReport) -> float | None:
    return artifact.latency_ms.p50 if artifact.latency_ms else None


def _kept(artifact: ArtifactReport) -> Interval | None:
    return artifact.accuracy.retention_interval if artifact.accuracy else None


def _lost(artifact: ArtifactReport) -> float | None:
    retention = accuracy_of("retention")(artifact)
    return None if retention is None else round(100 * (1 - retention), 6)


def _lost_interval(artifact: ArtifactReport) -> Interval | None:
    kept = _kept(artifact)
    return (round(100 * (1 - kept[1]), 6), round(100 * (1 - kept[0]), 6)) if kept else None


def _unlike(artifact: ArtifactReport) -> float | None:
    fidelity = accuracy_of("fidelity")(artifact)
    return None if fidelity is None else _below_ceiling(artifact, fidelity)


def _below_ceiling(artifact: ArtifactReport, fidelity: float) -> float:
    """Percent that is missing of what FP32 has against itself, which is less than 1: see `average_precision`."""
    ceiling = accuracy_of("fidelity_ceiling")(artifact) or 1.0
    return round(100 * (1 - fidelity / ceiling), 6)


def _alike(artifact: ArtifactReport) -> Interval | None:
    return artifact.accuracy.fidelity_interval if artifact.accuracy else None


def _unlike_interval(artifact: ArtifactReport) -> Interval | None:
    alike = _alike(artifact)
    return (_below_ceiling(artifact, alike[1]), _below_ceiling(artifact, alike[0])) if alike else None


SHARE = NumberFormat(2, "%", 100)

RULES: tuple[Rule, ...] = (
    Rule(
        "max-drop",
        "loss of mAP",
        of=ACCURACY,
        compares=True,
        least=False,
        figure=_lost,
        shown=NumberFormat(2, "%"),
        interval=_lost_interval,
        labels=True,
    ),
    Rule(
        "min-retention",
        "retention",
        of=ACCURACY,
        compares=True,
        least=True,
        figure=accuracy_of("retention"),
        shown=SHARE,
        interval=_kept,
        labels=True,
    ),
    Rule(
        "min-fidelity",
        "fidelity",
        of=ACCURACY,
        compares=True,
        least=True,
        figure=accuracy_of("fidelity"),
        shown=NumberFormat(3),
        interval=_alike,
    ),
    Rule(
        "min-speedup",
        "speed-up",
        of=LATENCY,
        compares=True,
        least=True,
        figure=speedup_of,
        shown=NumberFormat(2, "×"),
    ),
    Rule(
        "max-size",
        "size",
        of=SIZE,
        compares=False,
        least=False,
        figure=megabytes_of,
        shown=NumberFormat(2, " MB"),
    ),
    Rule(
        "max-latency-ms",
        "latency (p50)",
        of=LATENCY,
        compares=False,
        least=False,
        figure=_median,
        shown=NumberFormat(1, " ms"),
    ),
)

LOSS_WITHOUT_LABELS = replace(
    RULES[0],
    words="loss of FP32's fidelity to itself, as there are no labels,",
    figure=_unlike,
    interval=_unlike_interval,
    labels=False,
)
"""What `--max-drop` means where mAP cannot be had; `--repair` steers by the same."""


def rules_for(bounds: Mapping[str, float]) -> tuple[Rule, ...]:
    """The rules that have a bound: those that are here in their order, then other packages' in that of the bounds.

    Raises:
        UsageError, PluginError: see `find_rule`.
    """
    own = tuple(rule for rule in RULES if rule.name in bounds)
    known = {rule.name for rule in own}
    return (*own, *(find_rule(name) for name in bounds if name not in known))


def check(report: Report, bounds: Mapping[str, float], precision: str) -> tuple[Outcome, ...]:
    """Check every rule on every artifact of the precision that was asked for.

    Args:
        bounds: rule name → bound.
    """
    artifacts = [artifact for artifact in report.artifacts if artifact.precision == precision]
    unlabelled = report.evaluation is not None and not report.evaluation.labelled
    rules = rules_for(bounds)
    if unlabelled:
        rules = tuple(LOSS_WITHOUT_LABELS if rule is RULES[0] else rule for rule in rules)
    return tuple(
        _outcome(rule, artifact, bounds[rule.name], found, WITHOUT_LABELS if rule.labels and unlabelled else "")
        for rule in rules
        for artifact, found in _measured(rule, artifacts)
    )


def exit_code(report: Report) -> int:
    """What a run ends with: the code of the first that failed, of an engine that is not built here, the gate's, or 0.

    Whoever sees that of an engine may take all else for complete.
    """
    lost = [*(each.exit_code for each in report.failures), *(each.exit_code for each in report.unmeasured)]
    lost.sort(key=lambda code: code == EngineNotBuiltError.exit_code)
    broken = report.gate is not None and not all(each.passed for each in report.gate.rules)
    return next(iter(lost), GateError.exit_code if broken else 0)


@dataclass(frozen=True)
class _Reading:
    """What a rule reads of an artifact; `why` says where there is no figure why."""

    figure: float | None = None
    interval: Interval | None = None
    why: str = ""


def _read(rule: Rule, artifact: ArtifactReport) -> _Reading:
    try:
        figure, interval = rule.figure(artifact), rule.interval(artifact)
        if figure is None or not math.isfinite(figure):
            return _Reading()
        return _Reading(float(figure), (float(interval[0]), float(interval[1])) if interval else None)
    except Exception as error:  # other packages' rules raise anything
        return _Reading(why=f" ({named_reason(error, MAX_REASON)})")


def _measured(rule: Rule, artifacts: Sequence[ArtifactReport]) -> list[tuple[ArtifactReport, _Reading]]:
    """Leave out a graph whose engine has the figure: what the engine does is what counts."""
    found = [(each, _read(rule, each)) for each in artifacts]
    having = {each.format for each, read in found if read.figure is not None}
    return [(each, read) for each, read in found if read.figure is not None or each.format not in having]


def _outcome(rule: Rule, artifact: ArtifactReport, bound: float, found: _Reading, why: str) -> Outcome:
    figure, interval = found.figure, found.interval
    passed = figure is not None and (figure >= bound if rule.least else figure <= bound)
    why = why or found.why
    text = describe_outcome(rule.shown, rule.words, artifact, figure, interval, bound, rule.least, why)
    text = with_caveats(text, rule.of, artifact)
    return Outcome(rule.name, artifact.file_name, figure, interval, bound, passed, text)


def describe_outcome(
    shown: NumberFormat,
    words: str,
    artifact: ArtifactReport,
    figure: float | None,
    interval: Interval | None,
    bound: float,
    least: bool,
    why: str = "",
) -> str:
    """Figure and bound in one line; `why` is said where there is no figure."""
    name = artifact.file_name
    if figure is None:
        return f"{words} of {name} could not be measured{why}; {'at least' if least else 'at most'} {shown.text(bound)}"
    passed = figure >= bound if least else figure <= bound
    found, limit = shown.pair(figure, bound)
    span = f" (95 % interval {shown.text(interval[0])} to {shown.text(interval[1])})" if interval else ""
    relation = ("at least" if least else "at most") if passed else ("under" if least else "over")
    return f"{words} {found}{span} of {name} is {relation} {limit}"


def with_caveats(text: str, about: str, *artifacts: ArtifactReport) -> str:
    """The line with what ran the file, where that was a stand-in, and the warnings about its figure, each once."""
    found = dict.fromkeys(warning.text for artifact in artifacts for warning in artifact.warned(about))
    told = f"{text}{on_stand_in(artifacts[0])}" if about == ACCURACY else text
    return f"{told} (warning: {'; '.join(found)})" if found else told
