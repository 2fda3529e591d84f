"""Values that the user names: by their names in plans, or in an ONNX file by the file's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from qexport.errors import UsageError
from qexport.programs.program import Program, Region, Value
from qexport.vocabulary import closest


def named_values(
    option: str, given: Iterable[str], values: Mapping[str, Value], names: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """Plan names for what the user wrote.

    Args:
        names: the file's own name of a tensor or node → plan names.

    Raises:
        UsageError: there is no such value.
    """
    found: dict[str, None] = {}
    for name in given:
        known = (name,) if name in values else tuple(each for each in names.get(name, ()) if each in values)
        if not known:
            near = closest(name, (*names, *values))
            hint = f"did you mean {near}" if near else "plan.json has the names"
            raise UsageError(f"{option} {name} is not in the model", hint)
        found.update(dict.fromkeys(known))
    return tuple(found)


def kept_float(program: Program, given: Iterable[str]) -> frozenset[str]:
    """Values that `--keep-float` asks for; an output's name stands for the raw values that it is made of.

    Raises:
        UsageError: there is no such value.
    """
    found: set[str] = set()
    for name in named_values("--keep-float", given, program.values, program.graph.names):
        found |= raw_behind(program, name) if name in program.graph.outputs else {name}
    return frozenset(found)


def refuse_weightless(program: Program, given: Iterable[str], where: str) -> None:
    """Refuse to keep in float what has no weights, where only weights are stored in fewer bits.

    Args:
        where: what is being written.

    Raises:
        UsageError: it names a value that is not a layer's.
    """
    for name in given:
        if not any(program.values[value].weight for value in kept_float(program, (name,))):
            raise UsageError(
                f"--keep-float {name} has no weights, and {where} stores nothing but weights in fewer bits",
                "name a convolution or linear layer, or leave it out",
            )


def raw_behind(program: Program, name: str) -> set[str]:
    """Body values that a value of the tail is computed from."""
    seen, waiting = set(), [name]
    while waiting:
        value = program.values[waiting.pop()]
        if value.name not in seen:
            seen.add(value.name)
            waiting += value.inputs if value.region is not Region.BODY else ()
    return {each for each in seen if program.values[each].region is Region.BODY}
