"""Which values must share one scale, because a kernel only moves their integers."""

from __future__ import annotations

from collections.abc import Mapping

from qexport.planning.plan import TensorQuant
from qexport.planning.runtime_profiles import FixedScale, RuntimeProfile, SharedScale
from qexport.programs.program import MOVES_DATA, Program

MOVED = "moves integers of one scale: the pairs in front of it are enough"


def scale_groups(
    program: Program, profile: RuntimeProfile, integer: frozenset[str], touched: frozenset[str]
) -> list[tuple[str, ...]]:
    """Partition `touched` into sets that must share a scale, each in order of computation."""
    parent = {name: name for name in touched}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    for value in program.values.values():
        if value.name in integer and isinstance(profile.operations[value.operation], SharedScale):
            for source in value.inputs:
                parent[root(source)] = root(value.name)
    for levels in _joined(program, profile):
        for name in touched.intersection(levels):
            parent[root(name)] = root(next(level for level in levels if level in touched))
    groups: dict[str, list[str]] = {}
    for name in program.values:
        if name in touched:
            groups.setdefault(root(name), []).append(name)
    return [tuple(group) for group in groups.values()]


def _joined(program: Program, profile: RuntimeProfile) -> tuple[tuple[str, ...], ...]:
    """Raw outputs of all levels that a converter joins before they are floats again."""
    return (program.raw.boxes, program.raw.scores, program.raw.extras) if profile.levels_share_scale else ()


def torn_values(program: Program, profile: RuntimeProfile, group: tuple[str, ...]) -> tuple[str, ...]:
    """Values of a group whose kernel prescribes their scale, if the group holds others that want their own."""
    rules = {name: profile.operations.get(program.values[name].operation) for name in group}
    fixed = {rule for rule in rules.values() if isinstance(rule, FixedScale)}
    others = any(not isinstance(rule, FixedScale | SharedScale) for rule in rules.values())
    return tuple(name for name, rule in rules.items() if rule in fixed) if others or len(fixed) > 1 else ()


def fixed_rule(program: Program, profile: RuntimeProfile, group: tuple[str, ...]) -> FixedScale | None:
    """The scale that a kernel prescribes for a group, None where it may be chosen."""
    if torn_values(program, profile, group):
        return None
    rules = (profile.operations.get(program.values[name].operation) for name in group)
    return next((rule for rule in rules if isinstance(rule, FixedScale)), None)


def moved_values(
    program: Program, integer: frozenset[str], tensors: Mapping[str, TensorQuant]
) -> dict[str, TensorQuant]:
    """Values that only move elements that are integers of one scale already: their inputs' pairs are enough.

    Constants that are joined with them are floats: integers come from a pair behind.
    """
    bare: dict[str, TensorQuant] = {}
    for value in program.values.values():
        moved = value.name in integer and value.operation in MOVES_DATA and not tensors[value.name].is_float
        if (
            moved
            and not value.constants
            and all(source in bare or not tensors[source].is_float for source in value.inputs)
        ):
            bare[value.name] = TensorQuant("float32", group=tensors[value.name].group, why=MOVED)
    return bare
