"""Change what a converted `.tflite` file takes and gives, in its flatbuffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qexport.errors import ConversionError


def load_file(path: Path) -> Any:
    """Parse a file into the schema's objects."""
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def save_file(model: Any, path: Path) -> None:
    """Write the schema's objects over a file."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def take_float_input(path: Path) -> None:
    """Put a QUANTIZE operator before an INT8 input: the converter folds the program's own into the signature.

    Float in, float out is what consumers of these files feed.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = load_file(path)
    graph = model.subgraphs[0]
    integers = int(graph.inputs[0])
    if graph.tensors[integers].type != schema.TensorType.INT8:
        return
    given = schema.TensorT()
    given.name, given.shape = graph.tensors[integers].name, graph.tensors[integers].shape
    given.type, given.buffer = schema.TensorType.FLOAT32, 0
    graph.tensors[integers].name = given.name + b"_integers"
    graph.tensors.append(given)
    operator = schema.OperatorT()
    operator.opcodeIndex = _opcode(model, schema.BuiltinOperator.QUANTIZE)
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [integers]
    graph.operators.insert(0, operator)
    graph.inputs = [len(graph.tensors) - 1]
    for signature in model.signatureDefs or ():
        signature.inputs[0].tensorIndex = len(graph.tensors) - 1
    save_file(model, path)


def check_integers(path: Path) -> None:
    """Raise `ConversionError` where any tensor of the file is made of floats."""
    from ai_edge_litert import schema_py_generated as schema

    floats = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16, schema.TensorType.FLOAT64)
    graph = load_file(path).subgraphs[0]
    found = [tensor.name.decode() for tensor in graph.tensors if tensor.type in floats]
    if found:
        raise ConversionError(
            f"{len(found)} tensors are not made of integers, the first is {found[0]}",
            "this model cannot be integer-only yet: report it, or use --precision int8",
        )


def first_integer_layer(path: Path, out: Path) -> str:
    """Write a file that ends at the first convolution whose result is integers; return its tensor's name, or ""."""
    from ai_edge_litert import schema_py_generated as schema

    model = load_file(path)
    graph = model.subgraphs[0]
    convolution = _opcode(model, schema.BuiltinOperator.CONV_2D)
    for number, operator in enumerate(graph.operators):
        result = graph.tensors[operator.outputs[0]]
        if operator.opcodeIndex == convolution and result.type in (schema.TensorType.INT8, schema.TensorType.INT16):
            graph.operators = graph.operators[: number + 1]
            graph.outputs = [operator.outputs[0]]
            model.signatureDefs = []
            save_file(model, out)
            name: str = result.name.decode()
            return name
    return ""


def _opcode(model: Any, builtin: int) -> int:
    """Index of an operator code, added where the model does not have it."""
    from ai_edge_litert import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1
