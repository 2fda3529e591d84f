"""The quantisation plan: what becomes of every value, and why. Lowering obeys it and decides nothing."""

from __future__ import annotations

import hashlib
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from qexport.errors import InputError
from qexport.planning.arithmetic import INT8_NARROW, SMALLEST_SCALE, TYPES, WEIGHT_AXIS, IntegerType
from qexport.programs.program import Region
from qexport.system.files import write_text
from qexport.system.given_files import read_text
from qexport.system.json_form import parse_json

if TYPE_CHECKING:
    from qexport.programs.program import Program, Value

SCHEMA = 2
READABLE = (1, SCHEMA)
"""Schema 1 says nothing of rules."""
Rule = Literal["own", "shared", "fixed", "derived"]
RULES: tuple[str, ...] = get_args(Rule)
LARGEST_SCALE = 3.4e38
"""What float32 holds; less than `SMALLEST_SCALE` is not told from it when a file is compared with its plan."""
PRESCRIBED, PIXELS, WIDE = "scale prescribed by the kernel", "pixels: ", "wide"
"""What the reasons for fixed scales begin with, and what those for derived ones contain: schema 1 has no rules."""


@dataclass(frozen=True)
class TensorQuant:
    """How one tensor is stored.

    Attributes:
        dtype: "int8", "int16", … or "float32" when it stays float.
        scale, zero_point: one entry for the tensor, or one for each slice along `axis`; empty when float.
        axis: channel axis of per-channel weights, None for per-tensor.
        group: tensors of one group share scale and zero point because a kernel demands it; "" alone.
        why: one line.
        rule: where the scale comes from, and so who may change it: "own" and "shared" scales were estimated for one
            tensor or for a group; "fixed" ones are prescribed by a kernel or by the pixels; "derived" ones follow from
            other numbers, such as a constant's, or a weight's whose bias has to fit. Of no meaning when float.
    """

    dtype: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None
    group: str = ""
    why: str = ""
    rule: Rule = "own"

    @property
    def is_float(self) -> bool:
        """Whether the tensor is not quantised."""
        return self.dtype == "float32"

    @property
    def kind(self) -> IntegerType:
        """The integers that a quantised tensor may become; weights and other constants leave the lowest unused."""
        return INT8_NARROW if self.axis is not None or self.rule == "derived" else TYPES[self.dtype]


@dataclass(frozen=True)
class QuantPlan:
    """Decisions for one program on one runtime.

    Attributes:
        profile: name of the `RuntimeProfile` that it was made for.
        program: fingerprint of the float program.
        integer: names of the values whose operation runs in integers; other quantised values are converted
            where an integer operation reads them (`qexport.planning.coverage.reads_integers`).
        tensors: activations by value name, weights by parameter path.
        integer_bias: biases of integer convolutions are stored as INT32 with the product of the two scales.
    """

    profile: str
    program: str
    integer: frozenset[str]
    tensors: Mapping[str, TensorQuant]
    integer_bias: bool = False

    def is_quantised(self, name: str) -> bool:
        """Whether the plan gives `name` integers."""
        found = self.tensors.get(name)
        return found is not None and not found.is_float

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the form of schema 1, which has everything that a file depends on."""
        return hashlib.sha256(to_json(self, schema=1).encode()).hexdigest()


def to_json(plan: QuantPlan, schema: int = SCHEMA) -> str:
    """Return the plan as readable JSON, one tensor a line."""
    rows = []
    for name, tensor in plan.tensors.items():
        entry = {"integer": name in plan.integer, **_compact(tensor, schema)}
        rows.append(f"    {json.dumps(name)}: {json.dumps(entry)}")
    head: dict[str, Any] = {"schema": schema, "profile": plan.profile, "program": plan.program}
    if plan.integer_bias:
        head["integer_bias"] = True
    opening = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items())
    return "{\n" + opening + ',\n  "tensors": {\n' + ",\n".join(rows) + "\n  }\n}\n"


def _compact(tensor: TensorQuant, schema: int) -> dict[str, Any]:
    entry = {key: value for key, value in asdict(tensor).items() if value not in ((), None, "")}
    if schema == 1 or tensor.rule == "own":
        del entry["rule"]
    return entry


def save_plan(plan: QuantPlan, path: str | Path) -> None:
    """Write a plan as JSON, whole or not at all."""
    write_text(Path(path), to_json(plan))


def load_plan(path: str | Path) -> QuantPlan:
    """Read a saved plan; whether it suits a program is for `check_plan`.

    Raises:
        InputError: unreadable, or written by a later version.
    """
    try:
        return from_json(read_text(path), Path(path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is not a quantisation plan ({error})", "give a plan.json that qexport wrote"
        ) from error


def from_json(text: str, path: Path) -> QuantPlan:
    """Return the plan that `to_json` was given.

    Args:
        path: where it was read from, for the message.

    Raises:
        InputError: written by a later version.
        ValueError, KeyError, TypeError, AttributeError, OverflowError: it is no plan.
    """
    content = parse_json(text, object_pairs_hook=_once)
    if content["schema"] not in READABLE:
        raise InputError(f"{path} has plan schema {content['schema']}, this version reads {SCHEMA}", "create it again")
    entries: dict[str, dict[str, Any]] = content["tensors"]
    integer = frozenset(name for name, entry in entries.items() if _flag(entry.pop("integer")))
    tensors = {name: _tensor(entry, content["schema"]) for name, entry in entries.items()}
    bias = _flag(content.get("integer_bias", False))
    return QuantPlan(str(content["profile"]), str(content["program"]), integer, tensors, bias)


def _flag(given: object) -> bool:
    if not isinstance(given, bool):
        raise TypeError(f"{given!r} is neither true nor false")
    return given


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's entries, each name once: of two that a hand has left, one would be obeyed without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it has {next(name for name in names if names.count(name) > 1)} twice")
    return found


def _tensor(entry: dict[str, Any], schema: int) -> TensorQuant:
    texts = ("dtype", "group", "why", "rule")
    numbers: dict[str, Any] = {}
    wrong = [key for key in texts if not isinstance(entry.get(key, ""), str)]
    wrong += ["axis"] if type(entry.get("axis", 0)) is not int else []
    wrong += [key for key in ("scale", "zero_point") if any(type(n) not in (int, float) for n in entry.get(key, ()))]
    if wrong:
        raise TypeError(f"{wrong[0]} cannot be {entry[wrong[0]]!r}")
    if "scale" in entry:
        numbers["scale"] = tuple(float(scale) for scale in entry["scale"])
    if "zero_point" in entry:
        numbers["zero_point"] = tuple(operator.index(point) for point in entry["zero_point"])
    if schema == 1:
        numbers["rule"] = _rule_of(entry)
    return TensorQuant(**(entry | numbers))


def _rule_of(entry: Mapping[str, Any]) -> Rule:
    """The rule of a tensor of schema 1, which its group and its reason give away."""
    why = str(entry.get("why", ""))
    if why.startswith((PRESCRIBED, PIXELS)):
        return "fixed"
    if "axis" in entry and WIDE in why:
        return "derived"
    return "shared" if entry.get("group") else "own"


def check_plan(plan: QuantPlan, program: Program, path: str | Path) -> None:
    """Refuse a plan, edited by hand or not, that a program cannot be written by.

    Args:
        path: where it came from, for the message.

    Raises:
        InputError: made for another program, or with what is wrong first.
    """
    if plan.program != program.fingerprint:
        raise InputError(f"{path} is a plan of another model, image size, batch or head", "give the plan of this one")
    layers = {value.weight: value for value in program.values.values() if value.weight}
    known = {**dict.fromkeys(program.values), **layers}
    wrong = [
        *(f"it decides {name}, which the program does not have" for name in plan.tensors if name not in known),
        *(f"it says nothing of {name}" for name in known if name not in plan.tensors),
        *(f"{name} is to run in integers, and is no value" for name in plan.integer if name not in program.values),
    ] or [*_wrong_tensors(plan, program, layers), *_wrong_layers(plan, program), *_wrong_groups(plan)]
    if wrong:
        more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
        raise InputError(f"{path} cannot be used: {wrong[0]}{more}", "correct it, or plan without it")


def _wrong_tensors(plan: QuantPlan, program: Program, layers: Mapping[str, Value]) -> Iterator[str]:
    for name, tensor in plan.tensors.items():
        if tensor.is_float:
            if tensor.scale or tensor.zero_point:
                yield f"{name} is float32, and has a scale or a zero point"
            continue
        layer = layers.get(name)
        types, axis, channels = tuple(TYPES), None, 1
        if layer is not None:
            types, axis = ("int8",), WEIGHT_AXIS[layer.operation]
            channels = int(program.graph.parameter(name).shape[axis])
        wrong = _wrong_numbers(tensor, types, axis, channels)
        if wrong:
            yield f"{name} {wrong}"


def _wrong_numbers(tensor: TensorQuant, types: Sequence[str], axis: int | None, channels: int) -> str:
    if tensor.dtype not in types:
        return f"has the type {tensor.dtype}, and can have {', '.join((*types, 'float32'))}"
    if tensor.rule not in RULES:
        return f"has the rule {tensor.rule}, and can have {', '.join(RULES)}"
    if tensor.axis != axis:
        return f"has scales along axis {tensor.axis}, not {axis}"
    if not len(tensor.scale) == len(tensor.zero_point) == channels:
        return f"has {len(tensor.scale)} scales and {len(tensor.zero_point)} zero points, and needs {channels}"
    unfit = [scale for scale in tensor.scale if not SMALLEST_SCALE <= scale <= LARGEST_SCALE]
    if unfit:
        return f"has a scale of {unfit[0]}, and can have {SMALLEST_SCALE:g} to {LARGEST_SCALE:.3g}"
    if tensor.rule == "derived" and tensor.dtype != INT8_NARROW.name:
        return f"has the rule derived, and is {tensor.dtype}"
    low, high = (0, 0) if axis is not None else (TYPES[tensor.dtype].low, TYPES[tensor.dtype].high)
    outside = [point for point in tensor.zero_point if not low <= point <= high]
    return f"has a zero point of {outside[0]}, and can have {low} to {high}" if outside else ""


def _wrong_layers(plan: QuantPlan, program: Program) -> Iterator[str]:
    for name in sorted(plan.integer):
        value = program.values[name]
        if value.region is not Region.BODY:
            yield f"{name} is to run in integers, and is no part of the network's body"
        elif value.weight and not plan.is_quantised(value.weight):
            yield f"{name} is to run in integers, and its weight {value.weight} is {plan.tensors[value.weight].dtype}"


def _wrong_groups(plan: QuantPlan) -> Iterator[str]:
    first: dict[str, tuple[str, TensorQuant]] = {}
    for name, tensor in plan.tensors.items():
        if tensor.is_float or not tensor.group:
            continue
        other, same = first.setdefault(tensor.group, (name, tensor))
        if (tensor.dtype, tensor.scale, tensor.zero_point) != (same.dtype, same.scale, same.zero_point):
            yield f"{name} and {other} must share one scale (group {tensor.group})"
