"""The gate: bounds that the user sets on measured figures, checked on the report.

Rules are rows of a table. A rule is checked on the figure itself; the interval, where there is one, is shown beside
it, and so is every warning that concerns the figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.errors import UsageError
from qexport.reporting.honesty import caveats
from qexport.reporting.provenance import on_stand_in

if TYPE_CHECKING:
    from qexport.job.options import ExportJob

Entry = Mapping[str, Any]
"""One artifact of report.json."""
Interval = tuple[float, float]

SIZES = {"kB": 1e-3, "KB": 1e-3, "MB": 1.0, "GB": 1e3, "KiB": 1024e-6, "MiB": 1024**2 / 1e6, "GiB": 1024**3 / 1e6}
"""Suffix → megabytes (10⁶ bytes, as the report shows them)."""
MAX_DIGITS = 6


@dataclass(frozen=True)
class NumberFormat:
    """How a figure is written: multiplied, with so many digits, and a unit."""

    digits: int
    unit: str = ""
    times: float = 1.0

    def text(self, value: float, digits: int | None = None) -> str:
        """The figure with its unit."""
        return f"{value * self.times:.{self.digits if digits is None else digits}f}{self.unit}"

    def pair(self, first: float, second: float) -> tuple[str, str]:
        """Both figures, with as many digits as it takes to tell them apart."""
        for digits in range(self.digits, MAX_DIGITS):
            texts = self.text(first, digits), self.text(second, digits)
            if texts[0] != texts[1]:
                return texts
        return self.text(first), self.text(second)


@dataclass(frozen=True)
class Outcome:
    """What became of one rule on one artifact.

    Attributes:
        rule: its name, which is that of the option.
        artifact: file name.
        figure: None where there was nothing to measure, which no rule passes.
        interval: 95 % interval of the figure, None where there is none.
        text: one line: figure, bound, and what a reader must know before believing the figure.
    """

    rule: str
    artifact: str
    figure: float | None
    interval: Interval | None
    bound: float
    passed: bool
    text: str


@dataclass(frozen=True)
class Gate:
    """Every rule that was checked."""

    passed: bool
    rules: tuple[Outcome, ...]


def share(value: Any) -> float:
    """0.97 or "97%" → 0.97; raise `ValueError` for a percentage without its sign."""
    number = percent(value) / 100 if str(value).strip().endswith("%") else float(value)
    if not 0 <= number <= 1:
        raise ValueError
    return number


def percent(value: Any) -> float:
    """2 or "2%" → 2.0."""
    number = float(str(value).strip().removesuffix("%"))
    if not 0 <= number <= 100:
        raise ValueError
    return number


def positive(value: Any) -> float:
    """A finite number above zero."""
    number = float(value)
    if isinstance(value, bool) or not 0 < number < float("inf"):
        raise ValueError
    return number


def megabytes(value: Any) -> float:
    """3.2, "3.2MB" or "3 MiB" → megabytes of 10⁶ bytes."""
    text = str(value).strip()
    unit = next((unit for unit in SIZES if text.endswith(unit)), "")
    return positive(text.removesuffix(unit)) * SIZES[unit or "MB"]


@dataclass(frozen=True)
class Rule:
    """One bound that can be set.

    Attributes:
        name: option and, with underscores, field of the job.
        words: what the figure is called.
        of: what has to be measured for it: "accuracy", "latency" or "size".
        compares: whether it takes an FP32 file of the same run.
        least: the bound is the least that the figure may be; otherwise the most.
        figure, interval: from an artifact's entry in report.json; None where it was not measured.
        parse: from the option's value; raises `ValueError`.
        wanted: what the option takes, for the message about a wrong value.
    """

    name: str
    words: str
    of: str
    compares: bool
    least: bool
    figure: Callable[[Entry], float | None]
    shown: NumberFormat
    parse: Callable[[Any], float]
    wanted: str
    interval: Callable[[Entry], Interval | None] = lambda _: None

    @property
    def field(self) -> str:
        """Name of the job's field."""
        return self.name.replace("-", "_")


def field_of(part: str, name: str) -> Callable[[Entry], float | None]:
    """What reads `name` in the part of an entry that is null where it was not measured."""
    return lambda entry: (entry.get(part) or {}).get(name)


def interval_of(entry: Entry, name: str) -> Interval | None:
    """An interval of the accuracy, None where it was not computed."""
    found = (entry.get("accuracy") or {}).get(name)
    return (float(found[0]), float(found[1])) if found else None


def _lost(entry: Entry) -> float | None:
    retention = field_of("accuracy", "retention")(entry)
    return None if retention is None else round(100 * (1 - retention), 6)


def _lost_interval(entry: Entry) -> Interval | None:
    kept = interval_of(entry, "retention_interval")
    return (round(100 * (1 - kept[1]), 6), round(100 * (1 - kept[0]), 6)) if kept else None


SHARE = NumberFormat(2, "%", 100)
A_SHARE = "a share such as 0.97, or a percentage such as 97%"

RULES: tuple[Rule, ...] = (
    Rule(
        "max-drop",
        "loss of mAP",
        of="accuracy",
        compares=True,
        least=False,
        figure=_lost,
        shown=NumberFormat(2, "%"),
        parse=percent,
        wanted="a percentage of FP32's mAP, such as 2",
        interval=_lost_interval,
    ),
    Rule(
        "min-retention",
        "retention",
        of="accuracy",
        compares=True,
        least=True,
        figure=field_of("accuracy", "retention"),
        shown=SHARE,
        parse=share,
        wanted=A_SHARE,
        interval=lambda entry: interval_of(entry, "retention_interval"),
    ),
    Rule(
        "min-fidelity",
        "fidelity",
        of="accuracy",
        compares=True,
        least=True,
        figure=field_of("accuracy", "fidelity"),
        shown=NumberFormat(3),
        parse=share,
        wanted=A_SHARE,
    ),
    Rule(
        "min-speedup",
        "speed-up",
        of="latency",
        compares=True,
        least=True,
        figure=lambda entry: entry.get("speedup"),
        shown=NumberFormat(2, "×"),
        parse=positive,
        wanted="a factor such as 1.5",
    ),
    Rule(
        "max-size",
        "size",
        of="size",
        compares=False,
        least=False,
        figure=lambda entry: entry["bytes"] / 1e6,
        shown=NumberFormat(2, " MB"),
        parse=megabytes,
        wanted="megabytes, or a size such as 900kB or 3MiB",
    ),
    Rule(
        "max-latency-ms",
        "latency (p50)",
        of="latency",
        compares=False,
        least=False,
        figure=field_of("latency_ms", "p50"),
        shown=NumberFormat(1, " ms"),
        parse=positive,
        wanted="milliseconds",
    ),
)
BY_FIELD = {rule.field: rule for rule in RULES}


def bounds_of(job: ExportJob) -> dict[str, float]:
    """Rule name → bound, of the rules that the job sets."""
    bounds = {rule.name: getattr(job, rule.field) for rule in RULES}
    return {name: bound for name, bound in bounds.items() if bound is not None}


def check_measured(job: ExportJob) -> None:
    """Refuse rules about figures that the job does not measure.

    Raises:
        UsageError: naming the rule.
    """
    bounds = bounds_of(job)
    for rule in RULES:
        if rule.name not in bounds:
            continue
        if rule.compares and job.precision == "fp32":
            raise UsageError(
                f"--{rule.name} compares with FP32, and that is what is asked for", "for example, add --int8"
            )
        if rule.of == "accuracy" and job.no_eval:
            raise UsageError(f"--{rule.name} and --no-eval exclude each other", "leave out one of them")
        if rule.of == "latency":
            _check_timed(rule, job)


def _check_timed(rule: Rule, job: ExportJob) -> None:
    from qexport.backends.registry import find_info

    if not job.measures_latency:
        option = "--no-latency" if job.no_latency else f"--target {job.target}"
        raise UsageError(f"--{rule.name} and {option} exclude each other", "leave out one of them")
    for name in job.format:
        info = find_info(name)
        engine = info.engine is not None and info.engine.runtime is not None and not job.no_build
        if not info.timed and not engine:
            raise UsageError(f"--{rule.name} needs latency, which this run does not measure for {name}", "leave it out")


def check(report: Mapping[str, Any], bounds: Mapping[str, float], precision: str) -> tuple[Outcome, ...]:
    """Check every rule on every artifact of the precision that was asked for.

    Args:
        report: report.json's content.
        bounds: rule name → bound.
    """
    entries = [entry for entry in report["artifacts"] if entry["precision"] == precision]
    return tuple(
        _outcome(rule, entry, bounds[rule.name])
        for rule in RULES
        if rule.name in bounds
        for entry in _measured(rule, entries)
    )


def _measured(rule: Rule, entries: Sequence[Entry]) -> list[Entry]:
    """Leave out a graph whose engine has the figure: what the engine does is what counts."""
    having = {entry["format"] for entry in entries if rule.figure(entry) is not None}
    return [entry for entry in entries if rule.figure(entry) is not None or entry["format"] not in having]


def _outcome(rule: Rule, entry: Entry, bound: float) -> Outcome:
    figure, interval = rule.figure(entry), rule.interval(entry)
    passed = figure is not None and (figure >= bound if rule.least else figure <= bound)
    text = describe_outcome(rule.shown, rule.words, entry, figure, interval, bound, rule.least)
    return Outcome(rule.name, file_name(entry), figure, interval, bound, passed, with_caveats(text, rule.of, entry))


def describe_outcome(
    shown: NumberFormat,
    words: str,
    entry: Entry,
    figure: float | None,
    interval: Interval | None,
    bound: float,
    least: bool,
) -> str:
    """Figure and bound in one line."""
    name = file_name(entry)
    if figure is None:
        return f"{words} of {name} could not be measured; {'at least' if least else 'at most'} {shown.text(bound)}"
    passed = figure >= bound if least else figure <= bound
    found, limit = shown.pair(figure, bound)
    span = f" (95 % interval {shown.text(interval[0])} to {shown.text(interval[1])})" if interval else ""
    relation = ("at least" if least else "at most") if passed else ("under" if least else "over")
    return f"{words} {found}{span} of {name} is {relation} {limit}"


def with_caveats(text: str, kind: str, *entries: Entry) -> str:
    """The line with what ran the file, where that was a stand-in, and the warnings about its figure, each once."""
    found = dict.fromkeys(warning for entry in entries for warning in caveats(entry, kind))
    told = f"{text}{on_stand_in(entries[0])}" if kind == "accuracy" else text
    return f"{told} (warning: {'; '.join(found)})" if found else told


def file_name(entry: Entry) -> str:
    """The artifact's name, without the folder that it lay in."""
    return str(entry["path"]).replace("\\", "/").rsplit("/", 1)[-1]
