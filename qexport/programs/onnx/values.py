"""An ONNX graph in its normal form, described as the values that plans are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from qexport.programs.onnx.normal_form import array_of
from qexport.programs.program import INPUT, Region, Value, multiply_accumulates

SIMPLE = {
    "Sigmoid": "sigmoid",
    "Mul": "mul",
    "Add": "add",
    "Sub": "sub",
    "Div": "div",
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "MatMul": "matmul",
    "Gemm": "gemm",
    "Softmax": "softmax",
    "Concat": "cat",
    "Split": "part",
    "Slice": "part",
    "AveragePool": "avg_pool",
    "Reshape": "reshape",
    "Flatten": "reshape",
    "Squeeze": "reshape",
    "Unsqueeze": "reshape",
    "Transpose": "transpose",
    "Conv": "conv_of_values",
    "ConvTranspose": "conv_transpose_of_values",
}
"""ONNX operator → the plan's word; others keep their names in lower case."""
MAC_OPERATORS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "MatMul": "matmul", "Gemm": "linear"}
"""ONNX operator → what its multiply-accumulates are counted as."""
KINDS = {"Conv": "conv", "ConvTranspose": "conv_transpose", "Gemm": "linear"}
FLOAT = np.dtype(np.float32)

Shapes = Mapping[str, tuple[tuple[int, ...], np.dtype]]


def values_of(model: ir.Model, shapes: Shapes) -> dict[str, Value]:
    """Describe every tensor that is computed from the input or without it, in order of computation.

    Args:
        shapes: shape and type of each tensor, as they were when the graph ran.
    """
    values = {INPUT: Value(INPUT, "input", (), "", shapes[INPUT][0], Region.BODY, 0)}
    for node in model.graph:
        for output in node.outputs:
            name = str(output.name)
            if name == INPUT or name not in shapes:
                continue
            inputs = dict.fromkeys(str(v.name) for v in node.inputs if v is not None and v.name in values)
            shape, kind = shapes[name]
            operation = operation_of(node) if kind == FLOAT else f"{node.op_type.lower()}_{kind}"
            weight = str(node.inputs[1].name) if operation in KINDS.values() and node.inputs[1] is not None else ""
            added = node.inputs[2] if weight and len(node.inputs) > 2 else None
            region, bias = Region.BODY if kind == FLOAT else Region.SHAPE, str(added.name) if added is not None else ""
            macs = _macs(node, shape, shapes)
            joined = operation == "cat" and any(v is not None and v.name not in values for v in node.inputs)
            values[name] = Value(name, operation, tuple(inputs), weight, shape, region, macs, bias, joined)
    return values


def operation_of(node: ir.Node) -> str:
    """Return the plan's word for what a node computes."""
    special = SPECIAL.get(node.op_type)
    found = special(node) if special else ""
    return found or SIMPLE.get(node.op_type, node.op_type.lower())


def _layer(node: ir.Node) -> str:
    """A layer with a constant weight and bias, else ""; convolutions are those of images."""
    constants = [array_of(value) for value in node.inputs[1:] if value is not None]
    if any(array is None for array in constants) or constants[0] is None:
        return ""
    if node.op_type != "Gemm":
        return KINDS[node.op_type] if constants[0].ndim == 4 else ""
    get = node.attributes.get_float
    plain = get("alpha", 1.0) == get("beta", 1.0) == 1.0 and not node.attributes.get_int("transA", 0)
    return KINDS["Gemm"] if plain and all(array is not None and array.ndim < 3 for array in constants) else ""


def _clip(node: ir.Node) -> str:
    """A limit from zero on, which integers from zero on have of themselves."""
    low = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return "clip" if low is not None and float(low) == 0 else "clip_elsewhere"


def _resize(node: ir.Node) -> str:
    mode = node.attributes.get_string("mode", "nearest")
    return "resize" if mode == "nearest" else f"resize_{mode}"


def _max_pool(node: ir.Node) -> str:
    return "max_pool" if len(node.outputs) == 1 else "max_pool_with_places"


SPECIAL: Mapping[str, Callable[[ir.Node], str]] = {
    **dict.fromkeys(KINDS, _layer),
    "Clip": _clip,
    "Resize": _resize,
    "MaxPool": _max_pool,
}


def _macs(node: ir.Node, shape: tuple[int, ...], shapes: Shapes) -> int:
    if node.op_type not in MAC_OPERATORS:
        return 0
    given, kernel = (_shape_of(value, shapes) for value in node.inputs[:2])
    return multiply_accumulates(MAC_OPERATORS[node.op_type], shape, given, kernel)


def _shape_of(value: ir.Value | None, shapes: Shapes) -> tuple[int, ...]:
    array = array_of(value)
    if array is not None:
        return tuple(array.shape)
    return shapes[str(value.name)][0] if value is not None else ()


MOVERS = {
    "Concat",
    "Expand",
    "Flatten",
    "Identity",
    "MaxPool",
    "Reshape",
    "Resize",
    "Slice",
    "Split",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
"""Operators whose results hold only elements of their first inputs, or of all of a concatenation's."""
