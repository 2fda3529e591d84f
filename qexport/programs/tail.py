"""Where a network ends and the arithmetic on its outputs begins, for graphs whose head nobody has told us.

Pixels (0 to 640) and scores (0 to 1) must never share a scale. What mixes them lies behind the last layer that has
learned something: boxes are decoded, levels and scores concatenated, the best chosen. That tail stays float, and what
it reads leaves the body with scales of its own. Concatenations in front of it are judged by what calibration saw.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from qexport.calibration.statistics import Statistics
from qexport.programs.program import MOVES_DATA, Program, Value, observed_sources

MIXED = 32.0
"""Ranges that differ by more than this must not share a scale: the narrower would have eight of 256 steps."""

Readers = Mapping[str, tuple[Value, ...]]


def readers_of(values: Iterable[Value]) -> dict[str, tuple[Value, ...]]:
    """For every value those computed from it."""
    found: dict[str, list[Value]] = {}
    for value in values:
        found.setdefault(value.name, [])
        for source in value.inputs:
            found[source].append(value)
    return {name: tuple(each) for name, each in found.items()}


def with_regions(values: Mapping[str, Value], raw: Collection[str] = ()) -> dict[str, Value]:
    """Say of each value whether it belongs to the body or to the tail.

    Args:
        values: in order of computation; those of other types than float32 are in the region "shape" already.
        raw: values that the tail begins behind, in place of the last learned layers.
    """
    tail = behind(values, raw) if raw else unlearned(values)
    return {
        name: replace(value, region="decode") if name in tail and value.region == "body" else value
        for name, value in values.items()
    }


def behind(values: Mapping[str, Value], raw: Collection[str]) -> frozenset[str]:
    """Everything that is computed from the values called `raw`."""
    found: set[str] = set()
    for value in values.values():
        if any(source in found or source in raw for source in value.inputs):
            found.add(value.name)
    return frozenset(found - set(raw))


def unlearned(values: Mapping[str, Value]) -> frozenset[str]:
    """Everything that no learned layer reads, directly or through others."""
    readers = readers_of(values.values())
    learned = {value.name for value in values.values() if value.weight and not _is_expectation(values, value)}
    feeding: set[str] = set()
    for name in reversed(list(values)):
        if any(reader.name in learned or reader.name in feeding for reader in readers[name]):
            feeding.add(name)
    return frozenset(values.keys() - learned - feeding)


def _is_expectation(values: Mapping[str, Value], layer: Value) -> bool:
    """Whether a layer only weighs bins with their numbers, as heads with distributions of box sides do.

    Li et al., "Generalized Focal Loss" (2020): a softmax over bins, then their expected value.
    """
    source = values[layer.inputs[0]] if layer.inputs else layer
    while source.operation in MOVES_DATA and len(source.inputs) == 1:
        source = values[source.inputs[0]]
    return source.operation == "softmax"


def raw_values(values: Mapping[str, Value]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Body values that the tail reads: those that only sigmoids see, class scores, and all others."""
    readers = readers_of(values.values())
    raw: dict[str, None] = {}
    for value in values.values():
        if value.region == "decode":
            raw.update((name, None) for name in value.inputs if values[name].region == "body")
    scores = tuple(name for name in raw if {each.operation for each in _users(readers, name)} == {"sigmoid"})
    return tuple(name for name in raw if name not in scores), scores


def _users(readers: Readers, name: str) -> Iterator[Value]:
    """What computes with a value, whatever moved it on the way."""
    for reader in readers[name]:
        if reader.operation in MOVES_DATA:
            yield from _users(readers, reader.name)
        else:
            yield reader


def torn_values(values: Mapping[str, Value], raw: Collection[str]) -> frozenset[str]:
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


def mixing_values(program: Program, statistics: Mapping[str, Statistics]) -> dict[str, str]:
    """Concatenations of the body whose parts must not share a scale and what computes with them, and why, by name."""
    found = {}
    for value in program.values.values():
        if value.operation != "cat" or value.region != "body":
            continue
        peaks = [peak for name in value.inputs if (peak := _peak(program, statistics, name)) > 0]
        if peaks and max(peaks) > MIXED * min(peaks):
            why = f"stays float: values up to {min(peaks):.3g} and up to {max(peaks):.3g} must not share a scale"
            users = (user.name for user in _users(program.readers, value.name) if user.region == "body")
            found.update(dict.fromkeys((value.name, *users), why))
    return found


def _peak(program: Program, statistics: Mapping[str, Statistics], name: str) -> float:
    """The largest magnitude that was seen of a value."""
    seen = [statistics[source] for source in observed_sources(program, name) if source in statistics]
    return max((max(-each.minimum, each.maximum) for each in seen), default=0.0)
