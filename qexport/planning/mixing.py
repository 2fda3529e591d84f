"""Concatenations whose parts must not share a scale."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from qexport.calibration.statistics import Statistics
from qexport.programs.boundary import users_of
from qexport.programs.program import Program, Region, Value, observed_sources, readers_of

MIXED = 32.0
"""Ranges that differ by more than this must not share a scale: the narrower would have eight of 256 steps."""


def mixed_raw_outputs(values: Mapping[str, Value], raw: Collection[str]) -> frozenset[str]:
    """Raw values that hold scores and something else in one tensor: no scale suits both.

    Only those are found whose parts go different ways before levels are concatenated.
    """
    readers = readers_of(values.values())

    def ways(name: str) -> Iterator[bool]:
        for reader in readers[name]:
            if reader.operation in ("part", "reshape", "transpose"):
                yield from ways(reader.name)
            elif reader.operation != "cat":
                yield reader.operation == "sigmoid"

    return frozenset(name for name in raw if len(set(ways(name))) > 1)


def mixed_scale_concats(program: Program, statistics: Mapping[str, Statistics]) -> dict[str, str]:
    """Concatenations of the body whose parts must not share a scale and what computes with them, and why, by name."""
    found = {}
    for value in program.values.values():
        if value.operation != "cat" or value.region is not Region.BODY:
            continue
        peaks = [peak for name in value.inputs if (peak := _peak(program, statistics, name)) > 0]
        if peaks and max(peaks) > MIXED * min(peaks):
            why = f"stays float: values up to {min(peaks):.3g} and up to {max(peaks):.3g} must not share a scale"
            users = (user.name for user in users_of(program.readers, value.name) if user.region is Region.BODY)
            found.update(dict.fromkeys((value.name, *users), why))
    return found


def _peak(program: Program, statistics: Mapping[str, Statistics], name: str) -> float:
    """The largest magnitude that was seen of a value."""
    seen = [statistics[source] for source in observed_sources(program, name) if source in statistics]
    return max((max(-each.minimum, each.maximum) for each in seen), default=0.0)
