"""Which plans are worth trying where speed is what counts: groups of operations in float, and a runtime's own choices.

Where integers gain least is known beforehand: layers with little arithmetic for each element, which spend their time on
memory and on conversions at their borders. How much that is on a machine is for the machine to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from qexport.optimisation.candidate import Candidate
from qexport.optimisation.layers import Part, parts_of
from qexport.planning.runtime_profiles import Alternative, RuntimeProfile
from qexport.programs.program import INPUT, Program

TINY = 0.002
"""Share of all multiply-accumulates up to which a layer is a tiny one."""
HEAVY = 0.25
"""A block with more than this share of them is not tried as a whole: integers are what it is there for."""

Picks = Callable[[Program, Part], Iterable[str]]


@dataclass(frozen=True)
class Variation:
    """Something that a plan does in another way.

    Attributes:
        name: in a few words.
        floats: values whose operation goes from integers to float.
        alternative: of the runtime, where that is what is varied.
    """

    name: str
    floats: frozenset[str] = frozenset()
    alternative: Alternative | None = None


@dataclass(frozen=True)
class Group:
    """Operations that are put into float together.

    Attributes:
        name: in a few words.
        picks: values of a layer, or of what joins several, that belong to it.
        fused: whether it says anything of runtimes whose convolutions compute their activations.
    """

    name: str
    picks: Picks
    fused: bool = True


def _layer(wanted: Callable[[Program, Part], bool]) -> Picks:
    """All of a layer, with what is computed from it alone, where `wanted`."""
    return lambda program, part: part.values if part.kind == "layer" and wanted(program, part) else ()


def _reads_input(program: Program, part: Part) -> bool:
    return INPUT in program.values[part.name].inputs


def _is_depthwise(program: Program, part: Part) -> bool:
    value = program.values[part.name]
    shape = program.graph.parameter(value.weight).shape
    return value.operation == "conv" and shape[0] > 1 == shape[1]


def _is_tiny(program: Program, part: Part) -> bool:
    return part.macs <= TINY * sum(value.macs for value in program.values.values())


def _is_last(program: Program, part: Part) -> bool:
    return bool(set(part.values) & set(program.raw.all))


def _is_attention(program: Program, part: Part) -> bool:
    """What a product of two values is made of, and what reads it, up to the next layer."""
    behind = [reader.name for reader in program.readers[part.name]]
    return _reaches_product(program, behind) or _reaches_product(program, program.values[part.name].inputs, True)


def _reaches_product(program: Program, start: Iterable[str], backwards: bool = False) -> bool:
    """Whether one of some values is such a product, or leads to one with no layer in between."""
    waiting, seen = list(start), set[str]()
    while waiting:
        value = program.values[waiting.pop()]
        if value.operation == "matmul":
            return True
        if not value.weight and value.name not in seen:
            seen.add(value.name)
            waiting += value.inputs if backwards else [reader.name for reader in program.readers[value.name]]
    return False


def _joining(*operations: str) -> Picks:
    """Values that join several layers by one of these operations."""
    return lambda program, part: [name for name in part.values if program.values[name].operation in operations]


GROUPS = (
    Group("first convolution", _layer(_reads_input)),
    Group("depthwise convolutions", _layer(_is_depthwise)),
    Group("last layers", _layer(_is_last)),
    Group("attention", _layer(_is_attention)),
    Group("tiny layers", _layer(_is_tiny)),
    Group("activations", lambda _, part: part.values[1:] if part.kind == "layer" else (), fused=False),
    Group("sums", _joining("add", "sub")),
    Group("concatenations", _joining("cat")),
    Group("pooling and resizing", _joining("max_pool", "avg_pool", "resize")),
)
"""In the order in which they are tried. What only joins or moves values is where pairs of quantise and dequantise
stand or do not."""


def variations(candidate: Candidate, profile: RuntimeProfile) -> Iterator[Variation]:
    """Yield what is to be tried: the runtime's own choices, the groups, then block by block, least arithmetic first.

    Groups are those of the candidate's plan; what has nothing in integers there is left out, and what has the same
    operations as one before.
    """
    yield from (Variation(each.name, alternative=each) for each in profile.alternatives)
    program, integer = candidate.program, candidate.plan.integer
    parts, seen = parts_of(program, candidate.plan), {frozenset[str]()}
    groups = [each for each in GROUPS if each.fused or not profile.fused_activations]
    picked = [
        (each.name, [name for part in parts if part.kind != "block" for name in each.picks(program, part)])
        for each in groups
    ]
    for name, values in (*picked, *_blocks(program, parts)):
        floats = frozenset(values) & integer
        if floats not in seen:
            seen.add(floats)
            yield Variation(name, floats)


def _blocks(program: Program, parts: Iterable[Part]) -> list[tuple[str, tuple[str, ...]]]:
    """Blocks that are not most of the network, those with least arithmetic for what they write first."""
    total = sum(value.macs for value in program.values.values())
    blocks = [part for part in parts if part.kind == "block" and part.macs <= HEAVY * total]

    def intensity(part: Part) -> float:
        return part.macs / max(sum(math.prod(program.values[name].shape) for name in part.values), 1)

    return [(f"block {part.name}", part.values) for part in sorted(blocks, key=intensity)]
