"""An ONNX graph in FP16: the body computes in half precision, input, outputs and the tail stay float32.

As `half_graph` does it with a captured program, and for the same reason: from 512 on FP16 has steps of half
a pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from qexport.lowering.onnx.values import values_of
from qexport.programs.onnx.normal_form import array_of
from qexport.programs.program import INPUT, Region

if TYPE_CHECKING:
    from qexport.programs.program import Program

HALF = ir.DataType.FLOAT16
FULL = ir.DataType.FLOAT
KEPT = {("Resize", 2)}
"""Constants that stay float32 beside FP16 values: operator and number of the input."""


def halve_model(model: ir.Model, program: Program, full: frozenset[str] = frozenset()) -> None:
    """Change the graph: cast the input, compute the body in FP16, cast what the tail reads back.

    Args:
        full: values of the body that are computed in float32 all the same.
    """
    full |= _without_half(model)
    body = {name for name, value in program.values.items() if value.region is Region.BODY and name not in full}
    # An operation computes in one type: outputs of its that nobody reads, or the tail alone, are in it, too.
    body |= {str(each.name) for node in model.graph if _in_body(node, body) for each in node.outputs} - full
    for value in [value for value in values_of(model) if value.name in full]:
        _cast(model, value, HALF, [use for use in value.uses() if _in_body(use[0], body)])
    values = [value for value in values_of(model) if value.name in body]
    for value in values:
        if value.name == INPUT:
            _cast(model, value, HALF, [use for use in value.uses() if _in_body(use[0], body)])
            continue
        _cast(model, value, FULL, [use for use in value.uses() if not _in_body(use[0], body)])
        value.type = ir.TensorType(HALF)
    for node in model.graph:
        if _in_body(node, body) and node.name != INPUT:
            _halve_constants(model, node)


def _without_half(model: ir.Model) -> frozenset[str]:
    """What operators give that the model's operator set defines for float32 alone, such as Celu in 12 to 27."""
    return frozenset(
        str(output.name) for node in model.graph if not _takes_half(model, node) for output in node.outputs
    )


def _takes_half(model: ir.Model, node: ir.Node) -> bool:
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get(node.domain, 1), node.domain)
    except onnx.defs.SchemaError:  # a runtime's own operator: nobody says what it takes
        return True
    allowed = {each.type_param_str: each.allowed_type_strs for each in schema.type_constraints}
    types = [allowed.get(output.type_str, [output.type_str]) for output in schema.outputs]
    return not any("tensor(float)" in each and "tensor(float16)" not in each for each in types)


def _in_body(node: ir.Node, body: set[str]) -> bool:
    return any(output.name in body for output in node.outputs)


def _cast(model: ir.Model, value: ir.Value, kind: ir.DataType, uses: list[tuple[ir.Node, int]]) -> None:
    """Let some readers see a value in another type."""
    if not uses:
        return
    name = f"{value.name}/cast"
    node = ir.node("Cast", [value], {"to": kind}, name=name)
    made = node.outputs[0]
    made.name, made.type, made.shape = name, ir.TensorType(kind), value.shape
    for reader, index in uses:
        reader.replace_input_with(index, made)
    producer = value.producer()
    if producer is None:
        model.graph.insert_before(next(iter(model.graph)), node)
    else:
        model.graph.insert_after(producer, node)


def _halve_constants(model: ir.Model, node: ir.Node) -> None:
    for index, value in enumerate(node.inputs):
        array = array_of(value)
        if value is None or array is None or array.dtype != np.float32 or (node.op_type, index) in KEPT:
            continue
        name = f"{value.name}.half"
        if name not in model.graph.initializers:
            tensor = ir.tensor(array.astype(np.float16), name=name)
            made = ir.Value(name=name, type=ir.TensorType(HALF), shape=ir.Shape(array.shape), const_value=tensor)
            model.graph.register_initializer(made)
        node.replace_input_with(index, model.graph.initializers[name])
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == FULL:
        node.attributes["to"] = ir.AttrInt64("to", HALF)
