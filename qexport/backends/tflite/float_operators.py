"""Give back its floats to what the converter made integers of against the plan.

Between integers on both sides the converter quantises a float operation, too: weights by their largest element, results
with the scale that their readers want. A concatenation of floats with integers gets the integers' scale, and what had
no scale is clipped to it. So whatever the plan has in float computes in float here, reads what float operations gave
as it is, and is quantised only where an operation reads integers by the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.tflite.biases import AXES, layer_behind
from qexport.backends.tflite.file import VALUE, add_operator, load_file, operator_names, save_file
from qexport.programs.program import INPUT

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program, Value

MOVERS = frozenset(
    "PAD PADV2 TRANSPOSE RESHAPE EXPAND_DIMS SQUEEZE SLICE STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK TILE BROADCAST_TO "
    "CONCATENATION GATHER GATHER_ND MAX_POOL_2D REDUCE_MAX RESIZE_NEAREST_NEIGHBOR TOPK_V2".split()
)
"""Operators whose results are elements of what they read: with one scale on both sides integers lose nothing there."""
LOWEST = -128
"""With it the converter pads what a maximum is taken of."""


@dataclass(frozen=True)
class _Rewriting:
    """A file on its way, with what is known of the tensors before the operator at hand, by their indices.

    Attributes:
        exact: integers that hold what the plan says.
        floats: integers → the floats that readers which do not compute in integers are given.
        same: floats → the floats to read in their place.
    """

    model: Any
    program: Program
    plan: QuantPlan
    exact: set[int]
    floats: dict[int, int] = field(default_factory=dict)
    same: dict[int, int] = field(default_factory=dict)

    @property
    def graph(self) -> Any:
        """The file's only subgraph."""
        return self.model.subgraphs[0]

    def value(self, index: int) -> Value | None:
        """The value that a tensor helps to compute."""
        owner = VALUE.match(self.graph.tensors[index].name.decode())
        return self.program.values.get(owner[1]) if owner else None

    def constant(self, index: int) -> Any:
        """A constant's bytes; None for anything else."""
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        return data if data is not None and len(data) else None

    def integers(self, indices: Any) -> list[int]:
        """Those of some tensors that are integers and no constants."""
        found = (int(index) for index in indices if index >= 0)
        return [index for index in found if _is_integer(self.graph.tensors[index]) and self.constant(index) is None]


def restore_float_operators(path: Path, program: Program, plan: QuantPlan) -> int:
    """Let operators of values that the plan has in float compute in float; return how many had to be changed."""
    model, codes = load_file(path), operator_names()
    graph = model.subgraphs[0]
    file = _Rewriting(model, program, plan, {int(index) for index in graph.inputs})
    operators, changed = [], 0
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        operator.inputs = [file.same.get(int(index), int(index)) for index in operator.inputs]
        if kind in ("QUANTIZE", "DEQUANTIZE"):
            operators += _conversion(file, operator, kind)
        elif _as_planned(file, operator, kind):
            file.exact.update(file.integers(operator.outputs))
            operators.append(operator)
        else:
            changed += 1
            operators += _in_float(file, operator, kind)
    if changed:
        _give_floats(file)
        graph.operators = _read(file, operators, codes)
        save_file(model, path)
    return changed


def _conversion(file: _Rewriting, operator: Any, kind: str) -> list[Any]:
    """What is left of an operator between floats and integers; readers of floats are led past it."""
    source, result = int(operator.inputs[0]), int(operator.outputs[0])
    if kind == "DEQUANTIZE" and source in file.floats:
        file.same[result] = file.floats[source]
        return []
    if kind == "DEQUANTIZE" or not _is_integer(file.graph.tensors[result]):
        return [operator]
    value = file.value(result)
    if not _is_integer(file.graph.tensors[source]):
        if value is None or value.name == INPUT or value.name in file.plan.integer:
            file.exact.add(result)
        else:
            file.floats[result] = source
        return [operator]
    before = []
    if source in file.exact and value is not None and value.name in file.plan.integer:
        file.exact.add(result)
    if result not in file.exact:
        before = _dequantised(file, source)
        file.floats[result] = file.floats[source]
    if source not in file.exact:
        operator.inputs = [file.floats[source]]
    return [*before, operator]


def _as_planned(file: _Rewriting, operator: Any, kind: str) -> bool:
    """Whether an operator computes with integers that the plan knows, or with none."""
    taken, given = file.integers(operator.inputs), file.integers(operator.outputs)
    value = file.value(int(operator.outputs[0]))
    if value is not None and kind in AXES:
        value = layer_behind(file.program, value)
    if not (taken or given) or value is None or value.name in file.plan.integer:
        return True
    if not file.exact.issuperset(taken):
        return False
    return not given or (kind in MOVERS and len({_scale_of(file.graph.tensors[each]) for each in taken + given}) == 1)


def _is_integer(tensor: Any) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    return bool(tensor.type == schema.TensorType.INT8)


def _scale_of(tensor: Any) -> tuple[float, int]:
    return float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0])


def _dequantised(file: _Rewriting, index: int) -> list[Any]:
    """What it takes to have a tensor's floats, which are in `file.floats` then."""
    from ai_edge_litert import schema_py_generated as schema

    if index in file.floats:
        return []
    file.floats[index] = _float_tensor(file.model, index)
    return [add_operator(file.model, schema.BuiltinOperator.DEQUANTIZE, index, file.floats[index])]


def _in_float(file: _Rewriting, operator: Any, kind: str) -> list[Any]:
    """The operator on floats, behind and in front of what converts them."""
    from ai_edge_litert import schema_py_generated as schema

    before: list[Any] = []
    inputs = [int(index) for index in operator.inputs]
    for position, index in enumerate(inputs):
        if index < 0:
            continue
        constant = _float_constant(file, operator, kind, position)
        if constant is not None:
            inputs[position] = _float_tensor(file.model, index, constant)
        elif _is_integer(file.graph.tensors[index]):
            before += _dequantised(file, index)
            inputs[position] = file.floats[index]
    results = file.integers(operator.outputs)
    for index in results:
        file.floats[index] = _float_tensor(file.model, index)
    operator.inputs, operator.outputs = inputs, [file.floats.get(int(index), int(index)) for index in operator.outputs]
    quantise = schema.BuiltinOperator.QUANTIZE
    return [*before, operator, *(add_operator(file.model, quantise, file.floats[index], index) for index in results)]


def _float_constant(file: _Rewriting, operator: Any, kind: str, position: int) -> NDArray[np.float32] | None:
    """What a constant that the converter made integers of stands for; None for what is no such constant."""
    from qexport.planning.weights import bias_array, weight_array

    index = int(operator.inputs[position])
    tensor, data = file.graph.tensors[index], file.constant(index)
    weight, bias = (1, 3) if kind == "TRANSPOSE_CONV" else (1, 2)
    if kind in AXES and position in (weight, bias):
        value = file.value(int(operator.outputs[0]))
        layer = layer_behind(file.program, value) if value else None
        assert layer is not None
        if position == bias:
            return bias_array(file.program, layer, int(np.prod(tensor.shape))).astype(np.float32)
        return np.ascontiguousarray(weight_array(file.program, layer.weight).transpose(AXES[kind]))
    if data is None or not _is_integer(tensor):
        return None
    integers = data.view(np.int8)
    if kind == "PADV2" and (integers == LOWEST).all():
        return np.full(integers.shape, np.finfo(np.float32).min, np.float32)
    real: NDArray[np.float32] = (integers.astype(np.float32) - tensor.quantization.zeroPoint) * tensor.quantization.scale
    return real.astype(np.float32)


def _give_floats(file: _Rewriting) -> None:
    """Let the file give what float operators computed, and not what it is rounded to."""
    given = {**{index: real for index, real in file.floats.items() if index not in file.exact}, **file.same}
    file.graph.outputs = [given.get(int(index), int(index)) for index in file.graph.outputs]
    for signature in file.model.signatureDefs or ():
        for output in signature.outputs:
            output.tensorIndex = given.get(int(output.tensorIndex), int(output.tensorIndex))


def _read(file: _Rewriting, operators: list[Any], codes: dict[int, str]) -> list[Any]:
    """Leave out conversions whose results nothing reads."""
    return list(_backwards(file, operators, codes))[::-1]


def _backwards(file: _Rewriting, operators: list[Any], codes: dict[int, str]) -> Iterator[Any]:
    wanted = {int(index) for index in file.graph.outputs}
    for operator in reversed(operators):
        kind = codes[file.model.operatorCodes[operator.opcodeIndex].builtinCode]
        if kind in ("QUANTIZE", "DEQUANTIZE") and int(operator.outputs[0]) not in wanted:
            continue
        wanted.update(int(index) for index in operator.inputs)
        yield operator


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
