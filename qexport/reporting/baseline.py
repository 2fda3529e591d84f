"""Comparison with an earlier run: what became worse by more than noise.

What noise is, for each figure of an artifact that both runs have:

- mAP and retention: two runs score the same images, and each has a paired bootstrap interval. The margin is that of
  the difference of two estimates with intervals of their own: the root of the sum of the squared distances from each
  figure to the end of its interval that lies towards the other (MOVER: Zou & Donner, "Construction of confidence
  limits about effect measures", Statistics in Medicine 27, 2008). Whether intervals overlap would be too lenient a
  question (Schenker & Gentleman, "On judging the significance of differences by examining the overlap between
  confidence intervals", The American Statistician 55, 2001). The images are the same, so that the true margin is
  smaller still.
- Without intervals: 2 % of mAP and of retention and 0.01 of fidelity, for a hundred images; other numbers of images by
  the root of their number. These are the project's brief's figures, not measured here.
- Speed-up: FP32 time by INT8 time of one run, so that a slower day does not count. The margin is a factor: the
  logarithms of p95/p50 of the four timings, added as squares, and never less than `MIN_SLOWDOWN`.
- Size by 1 %, INT8 coverage by half a point: neither is noisy; this is what a new version of a converter may change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from qexport.errors import InputError
from qexport.reporting.gate import (
    SHARE,
    accuracy_of,
    describe_outcome,
    megabytes_of,
    speedup_of,
    with_caveats,
)
from qexport.reporting.load import Baseline
from qexport.reporting.report import (
    ACCURACY,
    LATENCY,
    AccuracyInfo,
    ArtifactReport,
    EvaluationInfo,
    ModelInfo,
    Outcome,
    Report,
)
from qexport.reporting.rule import SIZE, NumberFormat

MAP_NOISE = 0.02
"""Share of mAP, and of retention, that a hundred images leave open where there is no interval."""
FIDELITY_NOISE = 0.01
MIN_NOISE = 0.002
"""Kernels of another CPU or version round differently; an interval may have no width at all."""
MIN_SLOWDOWN = 1.25
"""The same files' speed-up was seen to move by a fifth between quiet runs of one machine (docs/measured.md)."""
MAX_SIZE_GROWTH = 1.01
MAX_COVERAGE_LOSS = 0.005
SAME = ("task", "head", "nms", "imgsz", "batch")
"""What figures depend on so much that they cannot be compared without it."""

Noise = Callable[[ArtifactReport, ArtifactReport, bool], float]
"""(artifact now, artifact before, whether the weights are the same) → how much worse the figure may be."""


@dataclass(frozen=True)
class Comparison:
    """One figure that must not become worse.

    Attributes:
        least: whether less of it is worse.
        noise: how much worse it may be; always positive, in the figure's unit.
    """

    name: str
    words: str
    of: str
    least: bool
    figure: Callable[[ArtifactReport], float | None]
    noise: Noise
    shown: NumberFormat


def _images(now: AccuracyInfo, before: AccuracyInfo) -> float:
    """By what the noise of a hundred images is multiplied."""
    return math.sqrt(100 / max(1, min(now.images, before.images)))


def _accuracies(now: ArtifactReport, before: ArtifactReport) -> tuple[AccuracyInfo, AccuracyInfo]:
    """Those of two artifacts that were both scored."""
    assert now.accuracy is not None
    assert before.accuracy is not None
    return now.accuracy, before.accuracy


def _margin(now: AccuracyInfo, before: AccuracyInfo, figure: str, least: bool) -> float | None:
    """MOVER's margin of the difference, None where one of the two has no interval."""
    spans = getattr(now, f"{figure}_interval"), getattr(before, f"{figure}_interval")
    if spans[0] is None or spans[1] is None:
        return None
    values = getattr(now, figure), getattr(before, figure)
    ends = (spans[0][1], spans[1][0]) if least else (spans[0][0], spans[1][1])
    return max(MIN_NOISE, math.hypot(*(end - value for end, value in zip(ends, values, strict=True))))


def _map_noise(now: ArtifactReport, before: ArtifactReport, same_weights: bool) -> float:
    own, earlier = _accuracies(now, before)
    # Of the same weights and images FP32 scores the same, so that mAP falls by what the drop grows.
    paired = _margin(own, earlier, "drop", least=False) if same_weights else None
    margin = paired if paired is not None else _margin(own, earlier, "map", least=True)
    return margin if margin is not None else MAP_NOISE * (earlier.map or 0.0) * _images(own, earlier)


def _retention_noise(now: ArtifactReport, before: ArtifactReport, _: bool) -> float:
    own, earlier = _accuracies(now, before)
    margin = _margin(own, earlier, "retention", least=True)
    return margin if margin is not None else MAP_NOISE * _images(own, earlier)


def _fidelity_noise(now: ArtifactReport, before: ArtifactReport, _: bool) -> float:
    return FIDELITY_NOISE * _images(*_accuracies(now, before))


def _speedup_noise(now: ArtifactReport, before: ArtifactReport, _: bool) -> float:
    timings = [timing for each in (now, before) for timing in (each.latency_ms, each.latency_float_ms) if timing]
    factor = math.exp(math.hypot(*(math.log(timing.p95 / timing.p50) for timing in timings)))
    return float(before.speedup or 0.0) * (1 - 1 / max(MIN_SLOWDOWN, factor))


def _size_noise(_: ArtifactReport, before: ArtifactReport, __: bool) -> float:
    return megabytes_of(before) * (MAX_SIZE_GROWTH - 1)


def _coverage(artifact: ArtifactReport) -> float | None:
    return artifact.int8_mac_coverage


COMPARISONS: tuple[Comparison, ...] = (
    Comparison("map", "mAP50-95", ACCURACY, True, accuracy_of("map"), _map_noise, NumberFormat(4)),
    Comparison("retention", "retention", ACCURACY, True, accuracy_of("retention"), _retention_noise, SHARE),
    Comparison("fidelity", "fidelity", ACCURACY, True, accuracy_of("fidelity"), _fidelity_noise, NumberFormat(3)),
    Comparison("speedup", "speed-up", LATENCY, True, speedup_of, _speedup_noise, NumberFormat(2, "×")),
    Comparison("size", "size", SIZE, False, megabytes_of, _size_noise, NumberFormat(2, " MB")),
    Comparison("coverage", "INT8 share of the arithmetic", SIZE, True, _coverage, lambda *_: MAX_COVERAGE_LOSS, SHARE),
)


def refuse_other(
    before: Baseline, formats: Sequence[str], precision: str, model: ModelInfo, evaluation: EvaluationInfo | None
) -> None:
    """Refuse a baseline whose figures mean something else than those of the run that is to be compared.

    Args:
        formats, precision, model, evaluation: of that run; the last is None where nothing is scored.

    Raises:
        InputError: it has none of the artifacts, is of another head or size, or was scored on other images.
    """
    name, report = before.origin.path, before.report
    kinds = {(artifact.format, artifact.precision) for artifact in report.artifacts}
    if kinds.isdisjoint((format_, precision) for format_ in formats):
        raise InputError(
            f"baseline {name} has no {precision} artifact of {' or '.join(formats)}", "make a new baseline"
        )
    for key in SAME:
        earlier, now = getattr(report.model, key), getattr(model, key)
        if earlier != now and not (key == "nms" and earlier is None):
            raise InputError(
                f"baseline {name} has {key} {_shown(earlier)}, this run has {_shown(now)}",
                "compare equal settings, or make a new baseline",
            )
    scored = report.evaluation
    if evaluation and scored and scored.fingerprint != evaluation.fingerprint:
        raise InputError(
            f"baseline {name} was scored on other images ({scored.images} of {scored.data})",
            "give the same --eval-data, or make a new baseline",
        )


def _shown(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def compare(report: Report, before: Report, precision: str) -> tuple[tuple[Outcome, ...], tuple[str, ...]]:
    """Compare every artifact of a precision with that of the same format and kind in an earlier report.

    Returns:
        Outcomes, and what could not be compared, or not quite, in one line each.
    """
    artifacts, earlier = (
        {_kind(each): each for each in one.artifacts if each.precision == precision} for one in (report, before)
    )
    same_weights = report.model.sha256 == before.model.sha256
    timed = _machine(report) == _machine(before)
    found = [
        outcome
        for kind in artifacts
        if kind in earlier
        for comparison in COMPARISONS
        if comparison.of != LATENCY or timed
        for outcome in _outcomes(comparison, artifacts[kind], earlier[kind], same_weights)
    ]
    return tuple(found), tuple(_notes(report, before, artifacts, earlier))


Kind = tuple[str, bool]


def _kind(artifact: ArtifactReport) -> Kind:
    return artifact.format, artifact.engine


def _machine(report: Report) -> tuple[object, ...]:
    return report.environment.processor, report.environment.cores, report.threads


def _outcomes(comparison: Comparison, now: ArtifactReport, before: ArtifactReport, same_weights: bool) -> list[Outcome]:
    """One outcome, none where one of the two runs has not measured it."""
    figure, earlier = comparison.figure(now), comparison.figure(before)
    if figure is None or earlier is None:
        return []
    noise = comparison.noise(now, before, same_weights)
    bound = round(earlier - noise if comparison.least else earlier + noise, 6)
    shown = comparison.shown
    text = describe_outcome(shown, comparison.words, now, figure, None, bound, comparison.least)
    text = f"{text}: it was {shown.text(earlier)}, and {shown.text(noise)} is noise"
    passed = figure >= bound if comparison.least else figure <= bound
    name = f"baseline-{comparison.name}"
    text = with_caveats(text, comparison.of, now, before)
    return [Outcome(name, now.file_name, figure, None, bound, passed, text)]


def _notes(
    report: Report, before: Report, artifacts: Mapping[Kind, ArtifactReport], earlier: Mapping[Kind, ArtifactReport]
) -> list[str]:
    found = []
    if report.model.sha256 != before.model.sha256:
        found.append("the baseline is of other weights: what differs may come from the training")
    if _machine(report) != _machine(before):
        found.append("the baseline was timed on another machine or with other threads: speed-ups are not compared")
    for kind in [kind for kind in artifacts if kind not in earlier]:
        found.append(f"{artifacts[kind].file_name} is not in the baseline: not compared")
    for kind in [kind for kind in earlier if kind not in artifacts]:
        found.append(f"{earlier[kind].file_name} of the baseline is not in this run: not compared")
    for comparison in COMPARISONS:
        lost = [
            artifact.file_name
            for kind, artifact in artifacts.items()
            if kind in earlier and comparison.figure(earlier[kind]) is not None and comparison.figure(artifact) is None
        ]
        if lost:
            found.append(f"{comparison.words} of {', '.join(lost)} was not measured: not compared with the baseline")
    return found
