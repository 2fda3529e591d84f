"""The quantisation plan: what becomes of every value, and why. Lowering obeys it and decides nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.errors import InputError
from qexport.system.files import write_text

if TYPE_CHECKING:
    from qexport.programs.program import Program

SCHEMA = 1


@dataclass(frozen=True)
class TensorQuant:
    """How one tensor is stored.

    Attributes:
        dtype: "int8", "int16", … or "float32" when it stays float.
        scale, zero_point: one entry for the tensor, or one for each slice along `axis`; empty when float.
        axis: channel axis of per-channel weights, None for per-tensor.
        group: tensors of one group share scale and zero point because a kernel demands it; "" alone.
        why: one line.
    """

    dtype: str
    scale: tuple[float, ...] = ()
    zero_point: tuple[int, ...] = ()
    axis: int | None = None
    group: str = ""
    why: str = ""

    @property
    def is_float(self) -> bool:
        """Whether the tensor is not quantised."""
        return self.dtype == "float32"


@dataclass(frozen=True)
class QuantPlan:
    """Decisions for one program on one runtime.

    Attributes:
        profile: name of the `RuntimeProfile` that it was made for.
        program: fingerprint of the float program.
        integer: names of the values whose operation runs in integers; other quantised values are converted
            where an integer operation reads them.
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
        """SHA-256 of the saved form."""
        return hashlib.sha256(to_json(self).encode()).hexdigest()


def to_json(plan: QuantPlan) -> str:
    """Return the plan as readable JSON, one tensor a line."""
    rows = []
    for name, tensor in plan.tensors.items():
        entry = {"integer": name in plan.integer, **_compact(tensor)}
        rows.append(f"    {json.dumps(name)}: {json.dumps(entry)}")
    head: dict[str, Any] = {"schema": SCHEMA, "profile": plan.profile, "program": plan.program}
    if plan.integer_bias:
        head["integer_bias"] = True
    opening = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in head.items())
    return "{\n" + opening + ',\n  "tensors": {\n' + ",\n".join(rows) + "\n  }\n}\n"


def _compact(tensor: TensorQuant) -> dict[str, Any]:
    return {key: value for key, value in asdict(tensor).items() if value not in ((), None, "")}


def save_plan(plan: QuantPlan, path: Path) -> None:
    """Write a plan as JSON, whole or not at all."""
    write_text(path, to_json(plan))


def load_plan(path: Path) -> QuantPlan:
    """Read a saved plan.

    Raises:
        InputError: unreadable, or written by a later version.
    """
    try:
        content = json.loads(path.read_text())
        if content["schema"] != SCHEMA:
            raise InputError(
                f"{path} has plan schema {content['schema']}, this version reads {SCHEMA}", "create it again"
            )
        entries: dict[str, dict[str, Any]] = content["tensors"]
        integer = frozenset(name for name, entry in entries.items() if entry.pop("integer"))
        tensors = {name: _tensor(entry) for name, entry in entries.items()}
        return QuantPlan(content["profile"], content["program"], integer, tensors, content.get("integer_bias", False))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a quantisation plan ({error})", "give a plan.json that qexport wrote"
        ) from error


def _tensor(entry: dict[str, Any]) -> TensorQuant:
    lists: dict[str, Any] = {key: tuple(entry[key]) for key in ("scale", "zero_point") if key in entry}
    return TensorQuant(**(entry | lists))


def check_plan(plan: QuantPlan, program: Program, path: Path) -> None:
    """Refuse a plan that a program cannot obey.

    Args:
        path: where it was read from.

    Raises:
        InputError: it is of another one.
    """
    if plan.program != program.fingerprint:
        raise InputError(f"{path} is a plan of another model, image size, batch or head", "give the plan of this one")
