"""Give back its floats to what the converter made integers of against the plan.

Between integers on both sides the converter quantises a float operation, too: weights by their largest element, results
with the scale that their readers want.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.tflite.biases import AXES, layer_behind
from qexport.backends.tflite.file import VALUE, add_operator, load_file, operator_names, save_file
from qexport.programs.program import MOVES_DATA, Region

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program, Value

MOVERS = frozenset({"PAD", "PADV2", "TRANSPOSE", "RESHAPE", "SLICE", "STRIDED_SLICE", "QUANTIZE", "DEQUANTIZE"})
"""Operators that compute nothing: what they move may be integers."""


def restore_float_operators(path: Path, program: Program, plan: QuantPlan) -> int:
    """Let operators of values that the plan has in float compute in float; return how many had to be changed."""
    model, codes = load_file(path), operator_names()
    graph, operators, changed = model.subgraphs[0], [], 0
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        value = _float_value(graph, operator, kind, program, plan)
        if value is None:
            operators.append(operator)
            continue
        changed += 1
        operators += _in_float(model, operator, kind, program, value)
    if changed:
        graph.operators = operators
        save_file(model, path)
    return changed


def _float_value(graph: Any, operator: Any, kind: str, program: Program, plan: QuantPlan) -> Value | None:
    """The value that an integer operator computes and the plan has in float, if it does."""
    owner = VALUE.match(graph.tensors[operator.outputs[0]].name.decode())
    value = program.values.get(owner[1]) if owner and kind not in MOVERS else None
    if value is not None and kind in AXES:
        value = layer_behind(program, value)
    if value is None or value.name in plan.integer or value.operation in MOVES_DATA or value.region is not Region.BODY:
        return None
    return value if _is_integer(graph.tensors[operator.outputs[0]]) else None


def _is_integer(tensor: Any) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    return bool(tensor.type == schema.TensorType.INT8)


def _in_float(model: Any, operator: Any, kind: str, program: Program, value: Value) -> list[Any]:
    """The operator on floats, behind and in front of what converts them."""
    from ai_edge_litert import schema_py_generated as schema

    from qexport.planning.weights import bias_array, weight_array

    graph, before = model.subgraphs[0], []
    inputs = [int(index) for index in operator.inputs]
    weight, bias = (1, 3) if kind == "TRANSPOSE_CONV" else (1, 2)
    for position, index in enumerate(inputs):
        tensor = graph.tensors[index] if index >= 0 else None
        data = model.buffers[tensor.buffer].data if tensor is not None else None
        if kind in AXES and position == weight:
            array = weight_array(program, value.weight).transpose(AXES[kind])
            inputs[position] = _float_tensor(model, index, np.ascontiguousarray(array))
        elif kind in AXES and position == bias and tensor is not None:
            inputs[position] = _float_tensor(model, index, bias_array(program, value, int(np.prod(tensor.shape))))
        elif tensor is not None and _is_integer(tensor) and data is not None and len(data):
            real = (data.view(np.int8).astype(np.float32) - tensor.quantization.zeroPoint) * tensor.quantization.scale
            inputs[position] = _float_tensor(model, index, real.astype(np.float32))
        elif tensor is not None and _is_integer(tensor):
            inputs[position] = _float_tensor(model, index)
            before.append(add_operator(model, schema.BuiltinOperator.DEQUANTIZE, index, inputs[position]))
    result = int(operator.outputs[0])
    operator.inputs, operator.outputs = inputs, [_float_tensor(model, result)]
    return [*before, operator, add_operator(model, schema.BuiltinOperator.QUANTIZE, operator.outputs[0], result)]


def _float_tensor(model: Any, like: int, data: NDArray[np.float32] | None = None) -> int:
    """Add a float tensor of another one's shape, a constant where there is data; return its index."""
    from ai_edge_litert import schema_py_generated as schema

    graph, made = model.subgraphs[0], schema.TensorT()
    known = graph.tensors[like]
    made.shape, made.type, made.buffer, made.name = known.shape, schema.TensorType.FLOAT32, 0, known.name + b"_float"
    if data is not None:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(data.tobytes(), np.uint8)
        model.buffers.append(buffer)
        made.buffer = len(model.buffers) - 1
    graph.tensors.append(made)
    return len(graph.tensors) - 1
