"""Warnings go where the figure goes: which kind of figure a warning concerns, and whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABOUT = {"latency": ("latency", "float32 files faster"), "accuracy": ("accuracy", "evaluation images")}
"""Kind of figure → words, one of which every warning about it has in it (`report.accuracy_warnings`, …)."""
ALL = "All artifacts"


@dataclass(frozen=True)
class Warned:
    """One warning, its number in the report, and the names of the artifacts that it is about (none: the whole run)."""

    number: int
    text: str
    names: tuple[str, ...]

    @property
    def line(self) -> str:
        """The warning behind the names."""
        return f"{', '.join(self.names)}: {self.text}" if self.names else self.text


def about(warning: str) -> str:
    """The kind of figure that a warning concerns; "artifact" where it is the whole file."""
    return next((kind for kind, words in ABOUT.items() if any(word in warning for word in words)), "artifact")


def caveats(entry: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """The warnings of an artifact's entry in report.json that a figure of this kind must not be shown without."""
    return tuple(warning for warning in entry.get("warnings", ()) if about(warning) == kind)


def collected(
    run: Iterable[str], entries: Sequence[Mapping[str, Any]], name: Callable[[Mapping[str, Any]], str]
) -> tuple[Warned, ...]:
    """Every warning once, numbered: those of the run, then those of artifacts with all that they are about.

    Args:
        run: warnings about the run as a whole.
        entries: artifacts of report.json.
        name: what a reader knows an artifact by.
    """
    found: dict[str, list[str]] = {text: [] for text in run}
    for entry in entries:
        for text in entry.get("warnings") or ():
            found.setdefault(text, []).append(name(entry))
    every = len(entries)
    names = [each if len(each) < every or every < 2 else [ALL] for each in found.values()]
    return tuple(Warned(i, text, tuple(each)) for i, (text, each) in enumerate(zip(found, names, strict=True), 1))
