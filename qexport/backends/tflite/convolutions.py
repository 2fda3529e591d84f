"""A stack of convolutions as a `.tflite` file, written with the schema's own objects: no converter is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from qexport.backends.tflite.file import new_file, opcode, save_file
from qexport.lowering.convolutions import ACTIVATION_SCALE, ConvolutionStack

LEAST, CONV_VERSION = -128, 3
"""The integer that stands for 0 behind a ReLU; the version of CONV_2D that has a scale for each channel."""


def write_convolutions(stack: ConvolutionStack, path: Path, integers: bool) -> None:
    """Write a file that takes and gives (1, height, width, channels).

    Args:
        integers: INT8 from input to output; float32 otherwise.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = new_file()
    graph = model.subgraphs[0]
    code = opcode(model, schema.BuiltinOperator.CONV_2D)
    model.operatorCodes[code].version = CONV_VERSION
    value = _activation(model, stack, integers)
    graph.inputs = [value]
    for weights in stack.weights():
        operator = schema.OperatorT()
        operator.opcodeIndex = code
        operator.builtinOptionsType, operator.builtinOptions = schema.BuiltinOptions.Conv2DOptions, _options()
        operator.inputs = [value, *_constants(model, stack, weights.transpose(0, 2, 3, 1), integers)]
        value = _activation(model, stack, integers)
        operator.outputs = [value]
        graph.operators.append(operator)
    graph.outputs = [value]
    save_file(model, path)


def _options() -> Any:
    from ai_edge_litert import schema_py_generated as schema

    made = schema.Conv2DOptionsT()
    made.padding = schema.Padding.SAME
    made.strideW = made.strideH = made.dilationWFactor = made.dilationHFactor = 1
    made.fusedActivationFunction = schema.ActivationFunctionType.RELU
    return made


def _activation(model: Any, stack: ConvolutionStack, integers: bool) -> int:
    from ai_edge_litert import schema_py_generated as schema

    kind = schema.TensorType.INT8 if integers else schema.TensorType.FLOAT32
    shape = 1, stack.size, stack.size, stack.channels
    return _tensor(model, kind, shape, [ACTIVATION_SCALE] if integers else [], LEAST)


def _constants(model: Any, stack: ConvolutionStack, weights: Any, integers: bool) -> tuple[int, int]:
    """Weights and bias, which is zero."""
    from ai_edge_litert import schema_py_generated as schema

    types, count = schema.TensorType, stack.channels
    if not integers:
        real = weights * np.float32(stack.weight_scale)
        weight = _tensor(model, types.FLOAT32, weights.shape, content=real)
        return weight, _tensor(model, types.FLOAT32, (count,), content=np.zeros(count, np.float32))
    scales = [stack.weight_scale] * count
    weight = _tensor(model, types.INT8, weights.shape, scales, content=weights)
    products = [ACTIVATION_SCALE * scale for scale in scales]
    return weight, _tensor(model, types.INT32, (count,), products, content=np.zeros(count, np.int32))


def _tensor(
    model: Any, kind: int, shape: tuple[int, ...], scales: list[float] | None = None, zero: int = 0, content: Any = None
) -> int:
    """Add a tensor, quantised along its first dimension where there are scales; return its index."""
    from ai_edge_litert import schema_py_generated as schema

    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = b"tensor", list(shape), kind, 0
    if scales:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = np.array(scales, np.float32)
        made.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
    if content is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(content.tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.buffer = len(model.buffers) - 1
    tensors = model.subgraphs[0].tensors
    tensors.append(made)
    return len(tensors) - 1
