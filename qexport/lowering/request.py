"""What a backend is asked to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.system.machine import ANY

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.planning.runtime_profiles import RuntimeProfile
    from qexport.programs.program import Program


@dataclass(frozen=True)
class Target:
    """What is built: there is one for each artifact.

    Attributes:
        format: the backend's name.
        precision: of weights and activations, one that the backend lists.
        cpu: kind of CPU that integer types are chosen for, see `qexport.system.machine`.
        profile: the runtime's rules for integers; None where nothing becomes integers.
    """

    format: str
    precision: str
    cpu: str = ANY
    profile: RuntimeProfile | None = None


@dataclass(frozen=True)
class Lowering:
    """One artifact to write: the one argument of `Backend.lower` beside the path.

    Attributes:
        plan: what becomes integers, and how; None for float files. The backend obeys it or raises, it decides nothing.
        metadata: what Ultralytics and `qexport` read from the file; nothing is decided by it.
        options: the backend's own, by name, such as ONNX's `opset` or TFLite's `io`; defaults for what is missing.
        float32: values whose operation stays FP32, weights included, where others are FP16.
        warn: takes what the report has to say of how the file was written.
    """

    program: Program
    target: Target
    metadata: Mapping[str, Any]
    plan: QuantPlan | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    float32: frozenset[str] = frozenset()
    warn: Callable[[str], None] = lambda _: None
