"""Weights and biases of layers in a `.tflite` file: in which order their axes lie, and as which integers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.tflite.file import VALUE, operator_names, type_names
from qexport.lowering.stored import StoredTensor

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program, Value

AXES = {
    "CONV_2D": (0, 2, 3, 1),
    "DEPTHWISE_CONV_2D": (1, 2, 3, 0),
    "TRANSPOSE_CONV": (1, 2, 3, 0),
    "FULLY_CONNECTED": (0, 1),
}
"""Axes of the program's weight, (out, in, …) or for transposed convolutions (in, out, …), in the file's order."""
BIAS_TYPES = {"INT32": np.int32, "INT64": np.int64}
SAME_SCALE = 1e-5


def weight_of(kind: str, inputs: list[Any], model: Any) -> NDArray[np.integer] | None:
    """A layer's INT8 weight in the program's order of axes; None where it is not a constant of INT8."""
    data, shape = model.buffers[inputs[1].buffer].data, tuple(inputs[1].shape)
    if data is None or len(data) != int(np.prod(shape)) or len(shape) != len(AXES[kind]):
        return None
    weight: NDArray[np.integer] = data.view(np.int8).reshape(shape).transpose(np.argsort(AXES[kind]))
    return weight


def bias_of(kind: str, inputs: list[Any], model: Any) -> StoredTensor | None:
    """A layer's bias, None where there is none that is made of integers."""
    position = 3 if kind == "TRANSPOSE_CONV" else 2
    tensor = inputs[position] if len(inputs) > position else None
    stored_as = type_names()[tensor.type] if tensor is not None else ""
    if tensor is None or stored_as not in BIAS_TYPES or tensor.quantization is None:
        return None
    scale, data = tensor.quantization.scale, model.buffers[tensor.buffer].data
    if scale is None or data is None:
        return None
    scales = tuple(float(s) for s in scale)
    return StoredTensor(stored_as.lower(), scales, (0,) * len(scales), data.view(BIAS_TYPES[stored_as]))


def store_planned(model: Any, program: Program, plan: QuantPlan) -> bool:
    """Write the plan's integers over those of every layer that a quantiser gave other scales, or a clipped bias.

    Returns whether there was any.

    AI Edge Quantizer takes a weight's scale from its largest element, and stores biases of 16-bit activations as 64
    bits, but cuts them at 32.
    """
    from qexport.planning.weights import bias_array, quantised_weight, weight_array

    changed = False
    for kind, tensors, layer in _integer_layers(model, program, plan):
        quant, weight, bias = plan.tensors[layer.weight], tensors[1], tensors[3 if kind == "TRANSPOSE_CONV" else 2 :]
        scales = np.array(quant.scale, dtype=np.float32)
        steps = scales * np.float32(plan.tensors[layer.inputs[0]].scale[0])
        wanted = np.rint(bias_array(program, layer, len(scales)) / steps.astype(np.float64)).astype(np.int64)
        clipped = bool(bias) and bool((np.abs(wanted) > np.iinfo(np.int32).max).any())
        if not clipped and np.allclose(weight.quantization.scale, scales, rtol=SAME_SCALE, atol=0):
            continue
        changed = True
        integers = quantised_weight(weight_array(program, layer.weight), scales, quant)
        _store(model, weight, np.ascontiguousarray(integers.transpose(AXES[kind])), scales)
        if bias:
            _store(model, bias[0], wanted.astype(BIAS_TYPES[type_names()[bias[0].type]]), steps)
    return changed


def _store(model: Any, tensor: Any, integers: NDArray[np.integer], scales: NDArray[np.float32]) -> None:
    model.buffers[tensor.buffer].data = np.frombuffer(integers.tobytes(), np.uint8)
    tensor.quantization.scale = scales
    tensor.quantization.zeroPoint = np.zeros(len(scales), dtype=np.int64)


def _integer_layers(model: Any, program: Program, plan: QuantPlan) -> Iterator[tuple[str, list[Any], Value]]:
    """(operator, its inputs, the program's layer) for every layer that the plan has in integers."""
    graph, codes = model.subgraphs[0], operator_names()
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        owner = VALUE.match(graph.tensors[operator.outputs[0]].name.decode())
        value = program.values.get(owner[1]) if owner and kind in AXES else None
        layer = layer_behind(program, value) if value else None
        tensors = [graph.tensors[index] for index in operator.inputs if index >= 0]
        if layer is not None and layer.name in plan.integer and _has_scale(tensors[1]):
            yield kind, tensors, layer


def _has_scale(tensor: Any) -> bool:
    """Whether a quantiser made integers of it; what it left alone, coverage and plan are checked for."""
    return tensor.quantization is not None and tensor.quantization.scale is not None


def layer_behind(program: Program, value: Value) -> Value | None:
    """The layer that a kernel computes which has this value's name: an activation in the same kernel gives its own."""
    while not value.weight:
        if not value.inputs:
            return None
        value = program.values[value.inputs[0]]
    return value
