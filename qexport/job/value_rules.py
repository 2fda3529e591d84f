"""What the value of a single option may be, whatever the others are: rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from qexport.backends.registry import available_formats, find_info, known
from qexport.errors import UsageError
from qexport.optimisation.effort import EFFORTS
from qexport.optimisation.registry import weight_passes
from qexport.planning.registry import RANGES
from qexport.programs.options import HEADS
from qexport.targets import ALIASES as TARGET_ALIASES
from qexport.targets import TARGETS
from qexport.vocabulary import IO_TYPES, LAYOUTS, PRECISION_ALIASES, PRECISIONS, unknown

MAX_JOBS = 256
OPSETS = range(18, 24)
"""ONNX operator sets that torch.onnx writes without converting."""


def _given(job: object, option: str) -> Any:
    return getattr(job, option.replace("-", "_"))


@dataclass(frozen=True)
class Range:
    """Values that an option may have; none is always good."""

    option: str
    good: Callable[[Any], bool]
    wanted: str
    shown: Callable[[Any], str] = str

    def check(self, job: object) -> None:
        """Raise `UsageError` where it has another."""
        value = _given(job, self.option)
        if value is not None and not self.good(value):
            raise UsageError(f"--{self.option} {self.shown(value)} is out of range", f"give {self.wanted}")


@dataclass(frozen=True)
class Choice:
    """Words that an option may have, or a list of them, and other names of them; none is always good."""

    option: str
    words: tuple[str, ...]
    aliases: Mapping[str, Iterable[str]] | None = None

    def check(self, job: object) -> None:
        """Raise `UsageError` where it has another, with the one that was probably meant."""
        given = _given(job, self.option)
        for value in given if isinstance(given, tuple) else (given,):
            if value is not None and value not in self.words:
                raise unknown(f"--{self.option} {value}", value, self.words, self.aliases)


BOUNDS = (
    Range("fraction", lambda value: 0 < value <= 1, "more than 0 and at most 1"),
    Range("batch", lambda value: value > 0, "1 or more"),
    Range("threads", lambda value: value > 0, "1 or more"),
    Range("jobs", lambda value: 1 <= value <= MAX_JOBS, f"1 to {MAX_JOBS}"),
    Range("opset", lambda value: value in OPSETS, f"{OPSETS[0]} to {OPSETS[-1]}"),
    Range("workspace", lambda value: 0 < value < 4096, "more than 0 GiB"),
    Range("tune-seconds", lambda value: 0 < value < float("inf"), "more than 0 seconds"),
    Range("dla", lambda value: value >= 0, "the number of a core, 0 or more"),
)
CHOICES = (
    Choice("head", HEADS),
    Choice("target", tuple(TARGETS), TARGET_ALIASES),
    Choice("io", IO_TYPES),
    Choice("layout", LAYOUTS),
    Choice("tune", ("latency",)),
)


def check_value(option: str, value: Any) -> None:
    """Refuse a value that an option has in no job.

    Args:
        option: field of `ExportJob`.

    Raises:
        UsageError: one line, as `check_job` has it.
    """
    for name in value if option == "format" else ():
        find_info(name)
    for row in (row for row in rows(available_formats()) if row.option.replace("-", "_") == option):
        row.check(SimpleNamespace(**{option: value}))


def rows(formats: Iterable[str]) -> tuple[Range | Choice, ...]:
    """What the values of single options may be: precisions are all usual ones, and those that only the formats have."""
    own = {precision for info in known(formats) for precision in info.precisions}
    return (
        *BOUNDS,
        *CHOICES,
        Choice("precision", (*PRECISIONS, *sorted(own - {*PRECISIONS})), PRECISION_ALIASES),
        Choice("ranges", RANGES.names),
        Choice("effort", tuple(EFFORTS)),
        Choice("optimise", weight_passes()),
    )
