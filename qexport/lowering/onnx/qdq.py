"""Write a plan into an ONNX graph: quantise/dequantise nodes, INT8 weights and where wanted INT32 biases.

The graph stays a float graph with explicit Q/DQ pairs; each runtime fuses those that its kernels understand.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qexport.errors import ConversionError
from qexport.lowering.onnx.values import values_of
from qexport.planning.arithmetic import INT32, quantise
from qexport.planning.coverage import reads_integers
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.weights import quantised_weight, weight_array
from qexport.programs.program import INPUT, Program, Value

DTYPES = {"int8": np.int8, "uint8": np.uint8}


def insert_qdq(model: ir.Model, program: Program, plan: QuantPlan) -> None:
    """Quantise `model`, which `onnx_graph` made of `program`, as `plan` says.

    Raises:
        ConversionError: a tensor that the plan quantises is not in the graph.
    """
    if plan.program != program.fingerprint:
        raise ConversionError("the plan was made for another program", "plan again")
    values = {value.name: value for value in values_of(model)}
    for value in program.values.values():
        if value.weight and plan.is_quantised(value.weight):
            _quantise_weight(model, program, value, plan)
    for name in program.values:
        if plan.is_quantised(name):
            if name not in values:
                raise ConversionError(f"{name} is not in the ONNX graph", "report the model")
            _quantise_activation(model, values[name], plan)
    model.graph.sort()


def _integer_readers(plan: QuantPlan, value: ir.Value) -> list[tuple[ir.Node, int]]:
    """Uses of a value that must see its integers."""
    source = INPUT if str(value.name).split("/")[0] == INPUT else str(value.name)
    return [
        (node, index)
        for node, index in value.uses()
        if node.op_type not in ("Shape", "QuantizeLinear")
        if reads_integers(plan, source, (str(output.name) for output in node.outputs))
    ]


def _quantise_activation(model: ir.Model, value: ir.Value, plan: QuantPlan) -> None:
    quant = plan.tensors[str(value.name)]
    if value.name == INPUT or not _integer_readers(plan, value):
        value = _cast_of(value)
    readers = _integer_readers(plan, value)
    real = _pair(model, value, quant)
    for node, index in readers:
        node.replace_input_with(index, real)
    if value.is_graph_output() or not readers:
        raise ConversionError(f"{value.name} is quantised but nothing reads its integers", "report the model")


def _cast_of(value: ir.Value) -> ir.Value:
    """In an FP16 graph a float32 value's integers come from its FP16 form: a cast behind them would part kernels."""
    casts = [node for node, _ in value.uses() if node.op_type == "Cast"]
    return casts[0].outputs[0] if casts else value


def _pair(model: ir.Model, value: ir.Value, quant: TensorQuant) -> ir.Value:
    """Append Q and DQ behind a value; return the dequantised one."""
    scale = np.array(quant.scale[0], dtype=_float_of(value))
    zero_point = np.array(quant.zero_point[0], dtype=DTYPES[quant.dtype])
    parameters = [
        _constant(model, f"{value.name}.scale", scale),
        _constant(model, f"{value.name}.zero_point", zero_point),
    ]
    quantised = _node(model, "QuantizeLinear", [value, *parameters], f"{value.name}.quantised")
    real = _node(model, "DequantizeLinear", [quantised, *parameters], f"{value.name}.dequantised")
    real.type, real.shape = value.type, value.shape
    return real


def _float_of(value: ir.Value) -> type[np.floating]:
    return np.float16 if value.dtype == ir.DataType.FLOAT16 else np.float32


def _quantise_weight(model: ir.Model, program: Program, value: Value, plan: QuantPlan) -> None:
    node = _writer(model, value.name)
    scales = np.array(plan.tensors[value.weight].scale, dtype=np.float32)
    node.replace_input_with(1, _dequantised_weight(model, program, node, value.weight, plan.tensors[value.weight]))
    if plan.integer_bias and len(node.inputs) > 2 and node.inputs[2] is not None:
        _quantise_bias(model, node, plan, scales)


def _dequantised_weight(model: ir.Model, program: Program, node: ir.Node, weight: str, quant: TensorQuant) -> ir.Value:
    known = model.graph.initializers.get(f"{weight}.quantised")
    if known is not None:  # a layer that is used more than once
        return next(reader for reader, _ in known.uses()).outputs[0]
    stored = node.inputs[1]
    assert stored is not None
    assert stored.const_value is not None
    # The graph's own may be FP16 already: round once, from float32.
    scales = np.array(quant.scale, dtype=np.float32)
    integers = quantised_weight(weight_array(program, weight), scales, quant)
    parameters = [
        _constant(model, f"{weight}.scale", scales.astype(stored.const_value.numpy().dtype)),
        _constant(model, f"{weight}.zero_point", np.zeros(len(scales), dtype=np.int8)),
    ]
    constant = _constant(model, f"{weight}.quantised", integers)
    real = _node(model, "DequantizeLinear", [constant, *parameters], f"{weight}.dequantised", axis=quant.axis)
    return real


def _quantise_bias(model: ir.Model, node: ir.Node, plan: QuantPlan, weight_scales: NDArray[np.float32]) -> None:
    source, bias = node.inputs[0], node.inputs[2]
    assert source is not None
    assert bias is not None
    assert bias.const_value is not None
    scales = np.float32(plan.tensors[str(source.name)].scale[0]) * weight_scales
    integers = quantise(bias.const_value.numpy(), scales.astype(np.float64), 0, INT32)
    name = f"{node.name}.bias"  # a layer that is used twice has a bias for each of its inputs' scales
    constant = _constant(model, f"{name}.quantised", integers)
    parameters = [
        _constant(model, f"{name}.scale", scales.astype(np.float32)),
        _constant(model, f"{name}.zero_point", np.zeros(len(scales), dtype=np.int32)),
    ]
    node.replace_input_with(2, _node(model, "DequantizeLinear", [constant, *parameters], f"{name}.dequantised", axis=0))


def _writer(model: ir.Model, name: str) -> ir.Node:
    for node in model.graph:
        if any(output.name == name for output in node.outputs):
            return node
    raise ConversionError(f"{name} is not in the ONNX graph", "report the model")


def _constant(model: ir.Model, name: str, array: NDArray[np.generic]) -> ir.Value:
    found = model.graph.initializers.get(name)
    if found is None:
        tensor = ir.tensor(array, name=name)
        found = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        model.graph.register_initializer(found)
    return found


def _node(model: ir.Model, kind: str, inputs: list[ir.Value], name: str, axis: int | None = None) -> ir.Value:
    attributes = {} if axis is None else {"axis": axis}
    node = ir.node(kind, inputs, attributes=attributes, name=name)
    node.outputs[0].name = name
    model.graph.append(node)
    return node.outputs[0]


def drop_unused(model: ir.Model) -> None:
    """Remove constants that nothing reads any more, such as the float weights that integers have taken the place of."""
    for name, stored in list(model.graph.initializers.items()):
        if not stored.uses():
            del model.graph.initializers[name]
