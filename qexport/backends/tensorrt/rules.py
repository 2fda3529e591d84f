"""What TensorRT asks of an explicitly quantised, strongly typed graph, as checks on the graph.

Source: NVIDIA TensorRT documentation, "Working with Quantized Types" (Q/DQ placement) and "Strongly Typed Networks".
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

ACTIVATIONS = {"Sigmoid", "Relu", "LeakyRelu", "HardSwish"}
WEIGHTED = {"Conv", "ConvTranspose", "Gemm"}
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
PORTS = {ir.DataType.FLOAT, ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64}
"""Types of inputs and outputs: an index stays one."""


def broken_rules(model: ir.Model, floats: Collection[str] = ()) -> list[str]:
    """One line for every rule that a node breaks; empty for a graph that TensorRT can build as it is meant.

    Args:
        floats: names of nodes that are computed in float by plan: their sums are not meant for a convolution's kernel.
    """
    found = []
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _symmetry(node)
        if node.op_type in WEIGHTED:
            found += _weighted(node) + _activation(node)
        if node.op_type == "Add" and node.name not in floats:
            found += _sum(node)
    for port in (*model.graph.inputs, *model.graph.outputs):
        if port.dtype not in PORTS:
            found.append(f"{port.name} is {port.dtype}, inputs and outputs stay float32")
    return found


def integer_operations(model: ir.Model) -> frozenset[str]:
    """Results of the operations that TensorRT fuses into INT8 kernels: both factors come from DequantizeLinear."""
    return frozenset(
        str(node.outputs[0].name) for node in model.graph if node.op_type in WEIGHTED and _is_integer(node)
    )


def _is_integer(node: ir.Node) -> bool:
    return all(_from(value, "DequantizeLinear") for value in node.inputs[:2])


def _from(value: ir.Value | None, kind: str) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == kind


def _array(value: ir.Value | None) -> np.ndarray | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _symmetry(node: ir.Node) -> list[str]:
    scale, zero_point = _array(node.inputs[1]), _array(node.inputs[2] if len(node.inputs) > 2 else None)
    broken = []
    if zero_point is None or zero_point.dtype != np.int8 or np.any(zero_point):
        broken.append(f"{node.name}: the zero point is not an INT8 0")
    if scale is None or not np.all(scale > 0):
        broken.append(f"{node.name}: a scale is not positive")
    if scale is not None and scale.ndim and _array(node.inputs[0]) is None:
        broken.append(f"{node.name}: activations have one scale for the tensor")
    return broken


def _weighted(node: ir.Node) -> list[str]:
    activation, weight = (_from(value, "DequantizeLinear") for value in node.inputs[:2])
    if activation != weight:
        return [f"{node.name}: of input and weight only one is quantised"]
    if not weight:
        return []
    broken = []
    stored = node.inputs[1]
    dequantise = stored.producer() if stored is not None else None
    assert dequantise is not None
    scale = _array(dequantise.inputs[1])
    axis = dequantise.attributes.get_int("axis", 1)
    if scale is None or scale.ndim != 1 or axis != (1 if node.op_type == "ConvTranspose" else 0):
        broken.append(f"{node.name}: weights have one scale for each output channel")
    if len(node.inputs) > 2 and node.inputs[2] is not None and _array(node.inputs[2]) is None:
        broken.append(f"{node.name}: the bias is not a float constant")
    if node.outputs[0].dtype not in (None, *FLOATS):
        broken.append(f"{node.name}: the result is not a float")
    return broken


def _activation(node: ir.Node) -> list[str]:
    """Between a convolution and its activation there is no Q/DQ pair: they are one kernel."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    pairs = [reader for reader in readers if reader.op_type == "QuantizeLinear"]
    for pair in pairs:
        behind = [reader for step, _ in pair.outputs[0].uses() for reader, _ in step.outputs[0].uses()]
        if any(reader.op_type in ACTIVATIONS for reader in behind):
            return [f"{node.name}: quantised between the convolution and its activation"]
    return []


def _sum(node: ir.Node) -> list[str]:
    """A sum whose result is quantised takes both inputs quantised, so that it fuses into a convolution's kernel.

    Sums of one tensor (with a constant, with itself) are no shortcut past a convolution.
    """
    if node.inputs[0] is node.inputs[1] or any(_array(value) is not None for value in node.inputs):
        return []
    if not any(reader.op_type == "QuantizeLinear" for reader, _ in node.outputs[0].uses()):
        return []
    quantised = [_from(value, "DequantizeLinear") for value in node.inputs]
    return [] if all(quantised) else [f"{node.name}: not both inputs of the sum are quantised"]
