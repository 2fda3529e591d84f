"""What a runtime executes in integers and under which constraints, as data.

A profile is a table, not code: the planner reads it, golden tests print it, and a new runtime is a new table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from qexport.planning.arithmetic import INT8, INT8_NARROW, INT16, INT32, INT64, UINT8, IntegerType, Quantiser


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
class Alternative:
    """Another choice that a runtime leaves open, which may be faster on some machine.

    Attributes:
        name: in a few words.
        changes: fields of the profile, and what they are then.
    """

    name: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class RuntimeProfile:
    """Quantisation constraints of one runtime.

    Attributes:
        name: as written into plans and reports.
        operations: operations that run in integers, with the rule for their result's scale.
        kept_float: operations that stay float although the runtime could, with the reason.
        activation, weight: integer types; weights are symmetric and per output channel.
        symmetric_activations: zero point 0 for every activation.
        fused_activations: a convolution's kernel computes its SiLU too, and gives floats where no integer operation
            reads the result: only what integer kernels read is quantised, nothing in between.
        saturating_pair_accumulation: kernels add the products of two neighbouring input channels in 16 bits and
            saturate there.
        fp16_scales: scales are stored in FP16, and chosen so that they can be.
        no_qdq_after_data_movement: what only moves integers gets no pair of its own behind it: the runtime would
            quantise once more.
        integer_bias: type that biases are stored in, with the product of input and weight scales, and that products are
            added up in; None where they stay float.
        constants: a product with a number runs in integers, the number is one, too.
        levels_share_scale: the converter carries the raw outputs' integers through the decode's concatenations, in the
            scale of one level: all levels share one, or it would cut the others' range.
        float_boxes: the convolutions that write raw boxes stay float where they are at most this share of all
            multiply-accumulates: INT8 steps of a box distance are up to two pixels.
        float_extras: the same for the convolutions that write mask coefficients, keypoints or angles. (litert-torch
            0.10 would carry integer coefficients through the decode, and quantise the boxes beside them.)
        float_stem: the first convolution and its activation stay float where they are at most this share: integer
            kernels make little of three input channels, and its activations are the largest of all.
        clamps: activations that the kernel in front of them computes with the limits of its integers: nothing is
            quantised between the two.
        fuses_relu_at_any_zero_point: kernels do so at any integer that stands for zero, not at the type's least one
            only.
        alternatives: what it leaves open, for `--tune` to try.
    """

    name: str
    operations: Mapping[str, ScaleRule]
    kept_float: Mapping[str, str] = field(default_factory=dict)
    activation: IntegerType = INT8
    weight: IntegerType = INT8_NARROW
    symmetric_activations: bool = False
    fused_activations: bool = False
    no_qdq_after_data_movement: bool = False
    integer_bias: IntegerType | None = None
    saturating_pair_accumulation: bool = False
    fp16_scales: bool = False
    constants: bool = False
    levels_share_scale: bool = False
    float_boxes: float = 0.005
    float_extras: float = 0.02
    float_stem: float = 0.0
    clamps: frozenset[str] = frozenset()
    fuses_relu_at_any_zero_point: bool = False
    alternatives: tuple[Alternative, ...] = ()

    def changed(self, alternatives: Sequence[Alternative]) -> RuntimeProfile:
        """Return the profile with other choices."""
        return replace(self, **{name: value for each in alternatives for name, value in each.changes.items()})

    @property
    def quantiser(self) -> Quantiser:
        """How activations become integers."""
        return Quantiser(self.activation, self.symmetric_activations)

    def stored(self, scale: float) -> float:
        """A scale as the file can hold it; where FP16's steps are coarse for it the larger one, to clip nothing."""
        if not self.fp16_scales:
            return float(np.float32(scale))
        half = np.float16(scale)
        tiny = float(half) < scale < np.finfo(np.float16).smallest_normal
        return float(np.nextafter(half, np.float16(np.inf)) if tiny else half)


OWN, SHARED = OwnScale(), SharedScale()
LOGISTIC = FixedScale(1 / 256, -128)
"""Sigmoid's result lies in 0..1; TFLite's kernels insist on 256 steps of it, and it wastes none."""

UNIT = FixedScale(1 / 255, 0)
"""The same for unsigned integers where kernels insist on nothing: the last step is one, and no large SiLU shrinks."""

TANH = FixedScale(1 / 128, 0)
"""Hyperbolic tangent's lies in -1..1; one is the step behind the last."""

ATTENTION = "attention products are a few percent of the time and a third of the accuracy loss"

STEM_IN_INTEGERS = Alternative("first convolution in integers", {"float_stem": 0.0})

COMMON: Mapping[str, ScaleRule] = {
    "conv": OWN,
    "linear": OWN,
    "mul": OWN,
    "add": OWN,
    "sub": OWN,
    "relu": OWN,
    "avg_pool": SHARED,
    "cat": SHARED,
    "part": SHARED,
    "max_pool": SHARED,
    "resize": SHARED,
    "reshape": SHARED,
    "transpose": SHARED,
}
"""What every runtime here has integer kernels for. (ONNX Runtime has none for transposed convolutions.)"""

CLAMPS = ("relu6", "relu_n1_to_1")
"""Besides ReLU what TFLite's convolutions compute themselves."""

TFLITE = RuntimeProfile(
    name="tflite",
    operations={
        **COMMON,
        **dict.fromkeys((*CLAMPS, "clip", "clip_elsewhere", "leaky_relu", "hardswish", "gelu"), OWN),
        "conv_transpose": OWN,
        "sigmoid": LOGISTIC,
        "tanh": TANH,
    },
    kept_float={"matmul": ATTENTION, "softmax": ATTENTION},
    levels_share_scale=True,
    clamps=frozenset({"relu", *CLAMPS}),
    fuses_relu_at_any_zero_point=True,
    integer_bias=INT32,
)
"""As in LiteRT's 8-bit quantization specification."""

TFLITE_INTEGER = replace(
    TFLITE,
    name="tflite_int8-full",
    operations={**TFLITE.operations, "matmul": OWN, "softmax": LOGISTIC},
    kept_float={},
    constants=True,
    levels_share_scale=False,
    float_boxes=0.0,
    float_extras=0.0,
)
"""No float anywhere: the program ends at the raw outputs."""

WITHOUT_INT16 = ("hardswish", "gelu", "clip", "clip_elsewhere")
"""What has no kernel for INT16, or two that share their scales."""

TFLITE_INT16 = replace(
    TFLITE,
    name="tflite_w8a16",
    operations={
        **{name: rule for name, rule in TFLITE.operations.items() if name not in WITHOUT_INT16},
        **dict.fromkeys(("sigmoid", "tanh"), FixedScale(1 / 32768, 0)),
    },
    activation=INT16,
    symmetric_activations=True,
    levels_share_scale=False,
    float_boxes=0.0,
    integer_bias=INT64,
)
"""LiteRT's 16x8 quantization specification: built-in kernels run it, XNNPACK has none for it."""

ONNXRUNTIME = RuntimeProfile(
    name="onnx",
    operations={**COMMON, "sigmoid": UNIT, **dict.fromkeys(("relu6", "clip", "leaky_relu"), OWN)},
    kept_float=TFLITE.kept_float,
    activation=UINT8,
    integer_bias=INT32,
    float_stem=0.03,
    clamps=frozenset({"relu", "relu6", "clip"}),
    alternatives=(STEM_IN_INTEGERS,),
)
"""ONNX Runtime's CPU kernels: the whole chain in integers behind the first convolution.

On x86 only unsigned activations are fused with signed weights (onnxruntime/core/optimizer/qdq_transformer).
"""

SIGNED_ACTIVATIONS = Alternative(
    "signed activations", {"activation": INT8, "operations": {**ONNXRUNTIME.operations, "sigmoid": LOGISTIC}}
)
ONNXRUNTIME_ARM = replace(ONNXRUNTIME, alternatives=(SIGNED_ACTIVATIONS, *ONNXRUNTIME.alternatives))
"""ARM's kernels fuse signed activations as well (`QDQIsInt8Allowed` in the same folder)."""

OPENVINO = RuntimeProfile(
    name="openvino",
    operations=COMMON,
    kept_float=TFLITE.kept_float,
    activation=UINT8,
    fused_activations=True,
    no_qdq_after_data_movement=True,
)
"""OpenVINO's low precision transformations; signed activations give garbage on AVX2 (measured, 2026.4)."""

TENSORRT = RuntimeProfile(
    name="tensorrt",
    operations=COMMON,
    kept_float=TFLITE.kept_float,
    symmetric_activations=True,
    fused_activations=True,
    fp16_scales=True,
)
"""Explicit quantization, as in "working with quantized types" of TensorRT's developer guide."""


WEIGHTS = RuntimeProfile(name="weights", operations={})
"""No integer arithmetic at all: weights are made floats again when the file is loaded."""


def for_saturating_cpus(profile: RuntimeProfile) -> RuntimeProfile:
    """The same for CPUs whose kernels add pairs of products in 16 bits."""
    return replace(profile, saturating_pair_accumulation=True)
