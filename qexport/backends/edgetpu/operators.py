"""What the Edge TPU's compiler documents about the operators that it maps, as a table.

Whatever is not listed, or breaks a rule, runs on the CPU, and so does everything behind it: the compiler makes one
piece for the Edge TPU, from the start. Rules that only the compiler can decide ("may not be mapped for large
tensors") are not in here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qexport.backends.tflite.operators import FileOperator

SOURCE = "coral.ai/docs/edgetpu/models-intro, supported operations, compiler 16"
MAX_SOFTMAX = 16_000


@dataclass(frozen=True)
class Rule:
    """A limit of an operator: in words, and as a check."""

    words: str
    holds: Callable[[FileOperator], bool]


def _no_fused_activation(operator: FileOperator) -> bool:
    return not getattr(operator.options, "fusedActivationFunction", 0)


def _same_dilation(operator: FileOperator) -> bool:
    return bool(operator.options.dilationWFactor == operator.options.dilationHFactor)


def _no_batch_padding(operator: FileOperator) -> bool:
    padding = operator.inputs[1].integers
    return padding is not None and len(operator.inputs[0].shape) in (3, 4) and not padding[:-3].any()


def _innermost_only(operator: FileOperator) -> bool:
    *outer, inner = operator.inputs[0].shape
    return all(size == 1 for size in outer) and inner <= MAX_SOFTMAX


def _one_dimensional_output(operator: FileOperator) -> bool:
    return all(size == 1 for size in operator.outputs[0].shape[:-1])


def _unit_strides(operator: FileOperator) -> bool:
    strides = operator.inputs[3].integers
    return strides is not None and bool((strides == 1).all()) and not operator.options.ellipsisMask


def _not_over_batch(operator: FileOperator) -> bool:
    axes = operator.inputs[1].integers
    rank = len(operator.inputs[0].shape)
    return axes is not None and not any(axis % rank == 0 and rank > 3 for axis in axes.reshape(-1))


def _zero_padding_only(operator: FileOperator) -> bool:
    constants = [tensor.data for tensor in operator.inputs if tensor.data is not None]
    return not constants or (len(operator.inputs) == 2 and not any(data.any() for data in constants))


def _depth_of_four(operator: FileOperator) -> bool:
    axes = operator.inputs[1].integers
    shape = operator.inputs[0].shape
    deepest = axes is not None and any(axis % len(shape) == len(shape) - 1 for axis in axes.reshape(-1))
    return not deepest or shape[-1] % 4 == 0


def _one_dimensional_alpha(operator: FileOperator) -> bool:
    return all(size == 1 for size in operator.inputs[1].shape[:-1])


def _packs_no_batch(operator: FileOperator) -> bool:
    return bool(operator.options.axis)


NO_FUSED_ACTIVATION = Rule("no fused activation", _no_fused_activation)
SAME_DILATION = Rule("the same dilation in x and y", _same_dilation)
NO_BATCH_PADDING = Rule("no padding of the batch dimension", _no_batch_padding)
INNERMOST_ONLY = Rule(f"one dimension of at most {MAX_SOFTMAX} elements", _innermost_only)
ONE_DIMENSIONAL_OUTPUT = Rule("a result of one dimension", _one_dimensional_output)
UNIT_STRIDES = Rule("strides of 1 and no ellipsis", _unit_strides)
ZERO_PADDING_ONLY = Rule("two inputs where one is constant, and zeros in it", _zero_padding_only)
DEPTH_OF_FOUR = Rule("a depth that is a multiple of 4 where it is reduced", _depth_of_four)
ONE_DIMENSIONAL_ALPHA = Rule("an alpha of one dimension", _one_dimensional_alpha)
PACKS_NO_BATCH = Rule("no packing of the batch dimension", _packs_no_batch)
NOT_OVER_BATCH = Rule("no reduction of the batch dimension", _not_over_batch)

OPERATORS: Mapping[str, tuple[Rule, ...]] = {
    "ADD": (),
    "AVERAGE_POOL_2D": (NO_FUSED_ACTIVATION,),
    "CONCATENATION": (NO_FUSED_ACTIVATION, ZERO_PADDING_ONLY),
    "CONV_2D": (SAME_DILATION,),
    "DEPTHWISE_CONV_2D": (SAME_DILATION,),
    "EXPAND_DIMS": (),
    "FULLY_CONNECTED": (ONE_DIMENSIONAL_OUTPUT,),
    "L2_NORMALIZATION": (),
    "LOGISTIC": (),
    "MAXIMUM": (),
    "MAX_POOL_2D": (NO_FUSED_ACTIVATION,),
    "MEAN": (NOT_OVER_BATCH, DEPTH_OF_FOUR),
    "MINIMUM": (),
    "MUL": (),
    "PACK": (PACKS_NO_BATCH,),
    "PAD": (NO_BATCH_PADDING,),
    "PRELU": (ONE_DIMENSIONAL_ALPHA,),
    "QUANTIZE": (),
    "REDUCE_MAX": (NOT_OVER_BATCH,),
    "REDUCE_MIN": (NOT_OVER_BATCH,),
    "RELU": (),
    "RELU6": (),
    "RELU_N1_TO_1": (),
    "RESHAPE": (),
    "RESIZE_BILINEAR": (),
    "RESIZE_NEAREST_NEIGHBOR": (),
    "RSQRT": (),
    "SLICE": (),
    "SOFTMAX": (INNERMOST_ONLY,),
    "SPACE_TO_DEPTH": (),
    "SPLIT": (),
    "SQUARED_DIFFERENCE": (),
    "SQUEEZE": (),
    "STRIDED_SLICE": (UNIT_STRIDES,),
    "SUB": (),
    "SUM": (NOT_OVER_BATCH,),
    "TANH": (),
    "TRANSPOSE": (),
    "TRANSPOSE_CONV": (),
}

MAX_DIMENSIONS = Rule(
    "only the three innermost dimensions may be larger than 1",
    lambda operator: all(size == 1 for tensor in operator.outputs for size in tensor.shape[:-3]),
)


def why_not(operator: FileOperator) -> str:
    """Why the Edge TPU does not run an operator, "" if nothing speaks against it."""
    if operator.kind not in OPERATORS:
        return "not among its operators"
    broken = next((rule for rule in (MAX_DIMENSIONS, *OPERATORS[operator.kind]) if not rule.holds(operator)), None)
    return f"it wants {broken.words}" if broken else ""
