"""Where a network ends and the arithmetic on its outputs begins, for graphs whose head nobody has told us.

Pixels (0 to 640) and scores (0 to 1) must never share a scale. What mixes them lies behind the last layer that has
learned something: boxes are decoded, levels and scores concatenated, the best chosen. That tail stays float, and what
it reads leaves the body with scales of its own. Concatenations in front of it are judged by what calibration saw.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from qexport.programs.program import MOVES_DATA, RawNames, Region, Value, read_by_decode, readers_of

Readers = Mapping[str, tuple[Value, ...]]


def with_regions(values: Mapping[str, Value], raw: Collection[str] = ()) -> dict[str, Value]:
    """Say of each value whether it belongs to the body or to the tail.

    Args:
        values: in order of computation; those of other types than float32 are in the region "shape" already.
        raw: values that the tail begins behind, in place of the last learned layers.
    """
    tail = behind(values, raw) if raw else downstream_of_learned_layers(values)
    return {
        name: replace(value, region=Region.DECODE) if name in tail and value.region is Region.BODY else value
        for name, value in values.items()
    }


def behind(values: Mapping[str, Value], raw: Collection[str]) -> frozenset[str]:
    """Everything that is computed from the values called `raw`."""
    found: set[str] = set()
    for value in values.values():
        if any(source in found or source in raw for source in value.inputs):
            found.add(value.name)
    return frozenset(found - set(raw))


def downstream_of_learned_layers(values: Mapping[str, Value]) -> frozenset[str]:
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


def raw_values(values: Mapping[str, Value]) -> RawNames:
    """Body values that the tail reads: those that only sigmoids see, class scores, and all others."""
    readers = readers_of(values.values())
    raw = read_by_decode(values)
    scores = tuple(name for name in raw if {each.operation for each in users_of(readers, name)} == {"sigmoid"})
    return RawNames(tuple(name for name in raw if name not in scores), scores)


def users_of(readers: Readers, name: str) -> Iterator[Value]:
    """What computes with a value, whatever moved it on the way."""
    for reader in readers[name]:
        if reader.operation in MOVES_DATA:
            yield from users_of(readers, reader.name)
        else:
            yield reader
