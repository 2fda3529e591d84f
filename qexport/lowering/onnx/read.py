"""Read an ONNX file with Q/DQ pairs back: which tensors are integers, with which scales, and what the arithmetic is."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qexport.lowering.stored import StoredTensor
from qexport.programs.onnx.values import MAC_OPERATORS, MOVERS


@dataclass(frozen=True)
class OnnxContent:
    """What a Q/DQ graph says.

    Attributes:
        tensors: by plan name; weights as `<value>.weight`.
        macs: multiply-accumulates for one image, by the name of the value that they compute.
        integer: names of those whose weight is a constant of integers, and whose input comes from integers.
        operators: kind → how often it occurs.
        biases: those that are integers, by the name of the value that their layer computes.
    """

    tensors: Mapping[str, StoredTensor]
    macs: Mapping[str, int]
    integer: frozenset[str]
    operators: Mapping[str, int]
    biases: Mapping[str, StoredTensor]


def read_onnx(model: ir.Model) -> OnnxContent:
    """Collect types, scales and INT8 weights from the graph's structure, not from its names."""
    tensors: dict[str, StoredTensor] = {}
    biases: dict[str, StoredTensor] = {}
    macs: dict[str, int] = {}
    integer: set[str] = set()
    for node in model.graph:
        if node.op_type == "QuantizeLinear":
            source = node.inputs[0]
            assert source is not None
            name = str(source.name).split("/")[0]  # an FP16 graph quantises the input behind its cast
            tensors[name] = _stored(node)
        if node.op_type in MAC_OPERATORS:
            name = str(node.outputs[0].name)
            macs[name] = _macs(node)
            weight, bias = _constant(node, 1), _constant(node, 2)
            if weight is not None:
                tensors[f"{name}.weight"] = weight
                if _in_integers(node.inputs[0]):
                    integer.add(name)
            if bias is not None:
                biases[name] = bias
    operators = Counter(node.op_type for node in model.graph)
    return OnnxContent(tensors, macs, frozenset(integer), dict(sorted(operators.items())), biases)


def _in_integers(value: ir.Value | None) -> bool:
    """Whether a value is dequantised, or moved from what is."""
    node = value.producer() if value is not None else None
    if node is None:
        return False
    if node.op_type in MOVERS:
        return all(_in_integers(each) for each in (node.inputs if node.op_type == "Concat" else node.inputs[:1]))
    return node.op_type == "DequantizeLinear"


def _constant(node: ir.Node, index: int) -> StoredTensor | None:
    """A layer's weight or bias, where it is stored as integers."""
    value = node.inputs[index] if len(node.inputs) > index else None
    made = value.producer() if value is not None else None
    if made is None:
        return None
    if made.op_type == "DequantizeLinear" and _array(made.inputs[0]) is not None:
        return _stored(made)
    return _folded(made) if made.op_type == "Mul" else None


def _folded(product: ir.Node) -> StoredTensor | None:
    """Integers behind a cast and a product with their scales: see `onnx_weights`."""
    cast = product.inputs[0].producer() if product.inputs[0] is not None else None
    integers = _array(cast.inputs[0]) if cast is not None and cast.op_type == "Cast" else None
    scale = _array(product.inputs[1])
    if integers is None or scale is None:
        return None
    scales = tuple(float(s) for s in scale.reshape(-1))
    return StoredTensor(str(integers.dtype), scales, (0,) * len(scales), integers)


def _stored(node: ir.Node) -> StoredTensor:
    """Type and scale of a Q node's result, or of a DQ node's constant."""
    integers = _array(node.inputs[0])
    scale, zero_point = _array(node.inputs[1]), _array(node.inputs[2])
    assert scale is not None
    assert zero_point is not None
    return StoredTensor(
        str(zero_point.dtype),
        tuple(float(s) for s in scale.reshape(-1)),
        tuple(int(z) for z in zero_point.reshape(-1)),
        integers,
    )


def _array(value: ir.Value | None) -> np.ndarray | None:
    if value is None or value.const_value is None:
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def _macs(node: ir.Node) -> int:
    """Multiply-accumulates for one image; a dimension that is open counts as one."""
    elements = math.prod(_sizes(node.inputs[0] if node.op_type == "ConvTranspose" else node.outputs[0]))
    if node.op_type in ("Conv", "ConvTranspose"):
        return elements * math.prod(_sizes(node.inputs[1])[1:])
    return elements * _sizes(node.inputs[0])[-1]


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    assert value is not None
    if value.shape is None:
        producer = value.producer()
        assert producer is not None
        return _sizes(producer.inputs[0])  # a dequantised constant has its integers' shape
    return tuple(size if isinstance(size, int) else 1 for size in value.shape)
