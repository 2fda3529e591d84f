"""What of a quantised program can be told apart: layers, the values that join several, and blocks of both."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from qexport.planning.plan import QuantPlan
from qexport.programs.program import Program, Region, has_constant_operand

Kind = Literal["block", "layer", "value"]


@dataclass(frozen=True)
class Part:
    """Values of a program with their weights.

    Attributes:
        name: of a layer that of its first value, of what joins several that of the joint; of a block the path of its
            module.
        kind: "layer" has weights, "value" joins several layers, "block" is all of a module.
        operation: of the first value, "" of a block.
        values: names, in order of computation.
        tensors: what of it the plan quantises: names of values, paths of weights, constants of products.
        macs: multiply-accumulates of one run.
        block: name of the block that it is in, "" for none.
    """

    name: str
    kind: Kind
    operation: str
    values: tuple[str, ...]
    tensors: frozenset[str]
    macs: int
    block: str


def parts_of(program: Program, plan: QuantPlan) -> tuple[Part, ...]:
    """Every part that has something quantised: blocks first, then layers and values in order of computation.

    A layer owns what is computed from it alone, such as SiLU's sigmoid and product. What joins several layers is a
    part of its own, together with all that a kernel makes it share its scale with: of several that share one they are
    one part, named after the first concatenation, which makes them.
    """
    members: dict[str, list[str]] = {}
    for name, owner in owners(program).items():
        members.setdefault(owner, []).append(name)
    blocks = _blocks(program)
    single = [_part(program, plan, owner, tuple(values), blocks) for owner, values in members.items()]
    found = _merged(part for part in single if part.tensors)
    together: dict[str, list[Part]] = {}
    for part in found:
        together.setdefault(part.block, []).append(part)
    return (*(_block(name, each) for name, each in together.items() if name), *found)


def _merged(parts: Iterable[Part]) -> list[Part]:
    found: dict[frozenset[str], Part] = {}
    for part in parts:
        known = found.get(part.tensors, part)
        if known is not part:
            named = part if part.operation == "cat" != known.operation else known
            part = replace(named, values=(*known.values, *part.values), macs=known.macs + part.macs)
        found[part.tensors] = part
    return list(found.values())


def owners(program: Program) -> dict[str, str]:
    """For every value of the body the layer that it belongs to, or itself where it joins several."""
    found: dict[str, str] = {}
    for value in program.values.values():
        if value.region in (Region.BODY, Region.EXACT):
            sources = {found.get(name, name) for name in value.inputs}
            found[value.name] = sources.pop() if len(sources) == 1 and not value.weight else value.name
    return found


def _part(program: Program, plan: QuantPlan, owner: str, values: tuple[str, ...], blocks: Mapping[str, str]) -> Part:
    first = program.values[owner]
    group = plan.tensors[owner].group if owner in plan.tensors and not first.weight else ""
    shared = (name for name, tensor in plan.tensors.items() if group and tensor.group == group)
    weights = (program.values[name].weight for name in values)
    tensors = {name for name in (*values, *weights, *shared) if plan.is_quantised(name)}
    constants = (name for name in values if name in plan.integer and has_constant_operand(program.values[name]))
    tensors |= {f"{name}.constant" for name in constants}
    kind: Kind = "layer" if first.weight else "value"
    macs = sum(program.values[name].macs for name in values)
    return Part(owner, kind, first.operation, values, frozenset(tensors), macs, blocks[owner])


def _block(name: str, parts: list[Part]) -> Part:
    values = tuple(value for part in parts for value in part.values)
    tensors = frozenset(tensor for part in parts for tensor in part.tensors)
    return Part(name, "block", "", values, tensors, sum(part.macs for part in parts), name)


def _blocks(program: Program) -> dict[str, str]:
    """The block of every value: that of its weight, or of the last value that it is computed from."""
    owner = owners(program)
    last = {program.values[owner[name]].weight for name in program.raw.all if name in owner}
    heads = {_prefix(path, 1) for path in last if path}
    found: dict[str, str] = {}
    for value in program.values.values():
        if value.weight:
            short = _prefix(value.weight, 1)
            found[value.name] = _prefix(value.weight, 2) if short in heads else short
        else:
            sources = (found[name] for name in reversed(value.inputs) if name in found)
            found[value.name] = _of_module(value.name, heads) or next(sources, "")
    return found


def _of_module(name: str, heads: Collection[str]) -> str:
    """The module of a YOLO model that a value without weights is named after, where that is one block."""
    module = re.match(r"model_(\d+)_", name)
    block = f"model.{module[1]}" if module else ""
    return "" if block in heads else block


def _prefix(path: str, depth: int) -> str:
    """The front of a weight's path: up to the first number in it, or up to the second, as branches and levels have.

    Without so many numbers it is one word longer than what has them, and never the weight itself.
    """
    words = path.split(".")[:-1] or [path]
    numbers = [i for i, word in enumerate(words) if word.isdigit()]
    if len(numbers) >= depth:
        return ".".join(words[: numbers[depth - 1] + 1])
    behind = numbers[-1] + 2 if numbers else 1
    return ".".join(words[:behind])
