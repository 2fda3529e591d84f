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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.reporting.gate import (
    SHARE,
    Entry,
    NumberFormat,
    Outcome,
    describe_outcome,
    field_of,
    file_name,
    interval_of,
    with_caveats,
)

if TYPE_CHECKING:
    from qexport.job.options import ExportJob
    from qexport.reporting.load import SavedReport

MAP_NOISE = 0.02
"""Share of mAP, and of retention, that a hundred images leave open where there is no interval."""
FIDELITY_NOISE = 0.01
MIN_NOISE = 0.002
"""Kernels of another CPU or version round differently; an interval may have no width at all."""
MIN_SLOWDOWN = 1.25
"""The same files' speed-up was seen to move by a fifth between quiet runs of one machine (README, bench-formats)."""
MAX_SIZE_GROWTH = 1.01
MAX_COVERAGE_LOSS = 0.005
SAME = ("task", "head", "nms", "imgsz", "batch")
"""What figures depend on so much that they cannot be compared without it."""

Noise = Callable[[Entry, Entry, bool], float]
"""(entry now, entry before, whether the weights are the same) → how much worse the figure may be."""


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
    figure: Callable[[Entry], float | None]
    noise: Noise
    shown: NumberFormat


def _images(now: Entry, before: Entry) -> float:
    """By what the noise of a hundred images is multiplied."""
    return math.sqrt(100 / max(1, min(now["accuracy"]["images"], before["accuracy"]["images"])))


def _margin(now: Entry, before: Entry, figure: str, interval: str, least: bool) -> float | None:
    """MOVER's margin of the difference, None where one of the two has no interval."""
    spans = interval_of(now, interval), interval_of(before, interval)
    if spans[0] is None or spans[1] is None:
        return None
    values = now["accuracy"][figure], before["accuracy"][figure]
    ends = (spans[0][1], spans[1][0]) if least else (spans[0][0], spans[1][1])
    return max(MIN_NOISE, math.hypot(*(end - value for end, value in zip(ends, values, strict=True))))


def _map_noise(now: Entry, before: Entry, same_weights: bool) -> float:
    # Of the same weights and images FP32 scores the same, so that mAP falls by what the drop grows.
    paired = _margin(now, before, "drop", "drop_interval", least=False) if same_weights else None
    margin = paired if paired is not None else _margin(now, before, "map", "map_interval", least=True)
    return margin if margin is not None else MAP_NOISE * before["accuracy"]["map"] * _images(now, before)


def _retention_noise(now: Entry, before: Entry, _: bool) -> float:
    margin = _margin(now, before, "retention", "retention_interval", least=True)
    return margin if margin is not None else MAP_NOISE * _images(now, before)


def _speedup_noise(now: Entry, before: Entry, _: bool) -> float:
    timings = [entry[name] for entry in (now, before) for name in ("latency_ms", "latency_float_ms")]
    factor = math.exp(math.hypot(*(math.log(timing["p95"] / timing["p50"]) for timing in timings)))
    return float(before["speedup"]) * (1 - 1 / max(MIN_SLOWDOWN, factor))


COMPARISONS: tuple[Comparison, ...] = (
    Comparison("map", "mAP50-95", "accuracy", True, field_of("accuracy", "map"), _map_noise, NumberFormat(4)),
    Comparison("retention", "retention", "accuracy", True, field_of("accuracy", "retention"), _retention_noise, SHARE),
    Comparison(
        "fidelity",
        "fidelity",
        "accuracy",
        True,
        field_of("accuracy", "fidelity"),
        lambda now, before, _: FIDELITY_NOISE * _images(now, before),
        NumberFormat(3),
    ),
    Comparison(
        "speedup", "speed-up", "latency", True, lambda e: e.get("speedup"), _speedup_noise, NumberFormat(2, "×")
    ),
    Comparison(
        "size",
        "size",
        "size",
        False,
        lambda entry: entry["bytes"] / 1e6,
        lambda _, before, __: before["bytes"] / 1e6 * (MAX_SIZE_GROWTH - 1),
        NumberFormat(2, " MB"),
    ),
    Comparison(
        "coverage",
        "INT8 share of the arithmetic",
        "size",
        True,
        lambda entry: entry.get("int8_mac_coverage"),
        lambda *_: MAX_COVERAGE_LOSS,
        SHARE,
    ),
)


def refuse_other(
    before: SavedReport, job: ExportJob, model: Mapping[str, Any], evaluation: Mapping[str, Any] | None
) -> None:
    """Refuse a baseline whose figures mean something else.

    Args:
        before: the baseline.
        job, model, evaluation: the run that is to be compared; the latter as in report.json.

    Raises:
        InputError: it has none of the artifacts, is of another head or size, or was scored on other images.
    """
    name, content = before.path, before.content
    kinds = {(entry["format"], entry["precision"]) for entry in content["artifacts"]}
    if kinds.isdisjoint((format_, job.precision) for format_ in job.format):
        raise InputError(
            f"baseline {name} has no {job.precision} artifact of {' or '.join(job.format)}", "make a new baseline"
        )
    for key in SAME:
        if key in content["model"] and content["model"][key] != model[key]:
            raise InputError(
                f"baseline {name} has {key} {content['model'][key]}, this run has {model[key]}",
                "compare equal settings, or make a new baseline",
            )
    scored = content.get("evaluation")
    if evaluation and scored and scored["fingerprint"] != evaluation["fingerprint"]:
        raise InputError(
            f"baseline {name} was scored on other images ({scored['images']} of {scored['data']})",
            "give the same --eval-data, or make a new baseline",
        )


def compare(
    report: Mapping[str, Any], before: Mapping[str, Any], precision: str
) -> tuple[tuple[Outcome, ...], tuple[str, ...]]:
    """Compare every artifact of a precision with that of the same format and kind in an earlier report.

    Returns:
        Outcomes, and warnings about what could not be compared, or not quite.
    """
    entries = {_kind(entry): entry for entry in report["artifacts"] if entry["precision"] == precision}
    earlier = {_kind(entry): entry for entry in before["artifacts"] if entry["precision"] == precision}
    both = [kind for kind in entries if kind in earlier]
    same_weights = report["model"]["sha256"] == before["model"]["sha256"]
    timed = _machine(report) == _machine(before)
    found = [
        outcome
        for kind in both
        for comparison in COMPARISONS
        if comparison.of != "latency" or timed
        for outcome in _outcomes(comparison, entries[kind], earlier[kind], same_weights)
    ]
    return tuple(found), tuple(_warnings(report, before, entries, earlier))


def _kind(entry: Entry) -> tuple[str, bool]:
    return entry["format"], entry["engine"]


def _machine(report: Mapping[str, Any]) -> tuple[Any, ...]:
    environment = report["environment"]
    return environment.get("processor"), environment.get("cores"), report["threads"]


def _outcomes(comparison: Comparison, now: Entry, before: Entry, same_weights: bool) -> list[Outcome]:
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
    return [Outcome(name, file_name(now), figure, None, bound, passed, with_caveats(text, comparison.of, now, before))]


def _warnings(
    report: Mapping[str, Any],
    before: Mapping[str, Any],
    entries: Mapping[tuple[str, bool], Entry],
    earlier: Mapping[tuple[str, bool], Entry],
) -> list[str]:
    found = []
    if report["model"]["sha256"] != before["model"]["sha256"]:
        found.append("the baseline is of other weights: what differs may come from the training")
    if _machine(report) != _machine(before):
        found.append("the baseline was timed on another machine or with other threads: speed-ups are not compared")
    for kind in [kind for kind in entries if kind not in earlier]:
        found.append(f"{file_name(entries[kind])} is not in the baseline: not compared")
    for kind in [kind for kind in earlier if kind not in entries]:
        found.append(f"{file_name(earlier[kind])} of the baseline is not in this run: not compared")
    for comparison in COMPARISONS:
        lost = [
            file_name(entry)
            for kind, entry in entries.items()
            if kind in earlier and comparison.figure(earlier[kind]) is not None and comparison.figure(entry) is None
        ]
        if lost:
            found.append(f"{comparison.words} of {', '.join(lost)} was not measured: not compared with the baseline")
    return found
