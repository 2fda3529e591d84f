"""What a runtime executes in integers and under which constraints, as data.

A profile is a table, not code: the planner reads it, golden tests print it, and a new runtime is a new table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qexport.arithmetic import INT8, INT8_NARROW, IntegerType


@dataclass(frozen=True)
class OwnScale:
    """The result has a scale of its own, from calibration."""


@dataclass(frozen=True)
class SharedScale:
    """The kernel only moves integers: inputs and result must share one scale."""


@dataclass(frozen=True)
class FixedScale:
    """The kernel prescribes the result's scale and zero point."""

    scale: float
    zero_point: int


ScaleRule = OwnScale | SharedScale | FixedScale


@dataclass(frozen=True)
class RuntimeProfile:
    """Quantisation constraints of one runtime.

    Attributes:
        name: as written into plans and reports.
        operations: operations that run in integers, with the rule for their result's scale.
        kept_float: operations that stay float although the runtime could, with the reason.
        activation, weight: integer types; weights are symmetric and per output channel.
        symmetric_activations: zero point 0 for every activation.
        float_boxes: the convolutions that write raw boxes stay float where they are at most this share of all
            multiply-accumulates: INT8 steps of a box distance are up to two pixels.
        source: where the constraints are documented.
    """

    name: str
    operations: Mapping[str, ScaleRule]
    kept_float: Mapping[str, str] = field(default_factory=dict)
    activation: IntegerType = INT8
    weight: IntegerType = INT8_NARROW
    symmetric_activations: bool = False
    float_boxes: float = 0.005
    source: str = ""


OWN, SHARED = OwnScale(), SharedScale()
LOGISTIC = FixedScale(1 / 256, -128)
"""Sigmoid's result lies in 0..1; TFLite's kernels insist on 256 steps of it, and it wastes none."""

ATTENTION = "attention products are a few percent of the time and a third of the accuracy loss"

TFLITE = RuntimeProfile(
    name="tflite",
    operations={
        "conv": OWN,
        "conv_transpose": OWN,
        "linear": OWN,
        "mul": OWN,
        "add": OWN,
        "sub": OWN,
        "relu": OWN,
        "avg_pool": SHARED,
        "sigmoid": LOGISTIC,
        "cat": SHARED,
        "part": SHARED,
        "max_pool": SHARED,
        "resize": SHARED,
        "reshape": SHARED,
        "transpose": SHARED,
    },
    kept_float={"matmul": ATTENTION, "softmax": ATTENTION},
    source="LiteRT 8-bit quantization specification",
)
