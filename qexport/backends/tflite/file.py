"""A `.tflite` file as it lies on disk: its flatbuffer, what it takes and gives, and the metadata behind it."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qexport.decode.metadata import METADATA
from qexport.errors import ConversionError
from qexport.programs.program import INPUT

if TYPE_CHECKING:
    from qexport.programs.program import Program

VALUE = re.compile(r"qexport_(\w+)")
"""How the name of a tensor begins that helps to compute a value of the program; "a;;b": of b, merged into a."""
BARRIER = "float_barrier"
"""What barriers own in place of a value, so that a file's tensors tell them from a program's own operators."""


def append_metadata(path: Path, metadata: Mapping[str, Any]) -> None:
    """Put metadata behind a file, as Ultralytics does: a zip archive of one JSON file."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        # A fixed date keeps equal exports byte-identical.
        archive.writestr(zipfile.ZipInfo(METADATA, (1980, 1, 1, 0, 0, 0)), json.dumps(dict(metadata)))


def flatbuffer_of(path: Path) -> bytes:
    """A file's content without the metadata behind it."""
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return content[: min(entry.header_offset for entry in archive.infolist())]


def operator_names() -> dict[int, str]:
    """Code → name of the built-in operators."""
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def type_names() -> dict[int, str]:
    """Code → name of the tensor types."""
    from ai_edge_litert import schema_py_generated as schema

    return {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}


def load_file(path: Path) -> Any:
    """Parse a file into the schema's objects."""
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
    for buffer in model.buffers:
        # AI Edge Quantizer puts large constants behind the flatbuffer; an offset of 1 stands for nothing.
        if buffer.offset > 1:
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    return model


def new_file() -> Any:
    """The schema's objects of a file with one graph, in which nothing is yet."""
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    graph.tensors, graph.operators = [], []
    model.version, model.operatorCodes, model.subgraphs = 3, [], [graph]
    model.buffers = [schema.BufferT()]  # the first one stands for nothing
    return model


def save_file(model: Any, path: Path) -> None:
    """Write the schema's objects over a file."""
    import flatbuffers

    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def add_float_input(path: Path) -> None:
    """Put a QUANTIZE operator before an INT8 input: the converter folds the program's own into the signature.

    Float in, float out is what consumers of these files feed.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = load_file(path)
    graph = model.subgraphs[0]
    if graph.tensors[int(graph.inputs[0])].type == schema.TensorType.INT8:
        _convert_input(model, schema.TensorType.FLOAT32)
        save_file(model, path)


def add_float_outputs(path: Path) -> None:
    """Put a DEQUANTIZE operator behind each INT8 output: the converter folds the program's own into the signature."""
    from ai_edge_litert import schema_py_generated as schema

    model = load_file(path)
    graph = model.subgraphs[0]
    types = [graph.tensors[int(index)].type for index in graph.outputs]
    for position in (number for number, kind in enumerate(types) if kind == schema.TensorType.INT8):
        _convert_output(model, position, schema.TensorType.FLOAT32)
    if schema.TensorType.INT8 in types:
        save_file(model, path)


def convert_io_to_uint8(path: Path) -> None:
    """Let an integer-only file take and give UINT8: the same steps, 128 higher."""
    from ai_edge_litert import schema_py_generated as schema

    model = load_file(path)
    _convert_input(model, schema.TensorType.UINT8)
    for position in range(len(model.subgraphs[0].outputs)):
        _convert_output(model, position, schema.TensorType.UINT8)
    save_file(model, path)


def _convert_input(model: Any, kind: int) -> None:
    """Let the file take tensors of another type, with a QUANTIZE operator behind."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    inner = int(graph.inputs[0])
    outer = _like(model, inner, kind)
    graph.tensors[outer].name = graph.tensors[inner].name
    graph.tensors[inner].name = f"qexport_{INPUT};integers".encode()
    graph.operators.insert(0, add_operator(model, schema.BuiltinOperator.QUANTIZE, outer, inner))
    graph.inputs = [outer]
    for signature in model.signatureDefs or ():
        signature.inputs[0].tensorIndex = outer


def _convert_output(model: Any, position: int, kind: int) -> None:
    """Let the file give tensors of another type, with a QUANTIZE or DEQUANTIZE operator before."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    inner = int(graph.outputs[position])
    outer = _like(model, inner, kind)
    graph.tensors[outer].name = b"output_%d" % position
    real = kind == schema.TensorType.FLOAT32
    builtin = schema.BuiltinOperator.DEQUANTIZE if real else schema.BuiltinOperator.QUANTIZE
    graph.operators.append(add_operator(model, builtin, inner, outer))
    graph.outputs = [outer if index == inner else index for index in graph.outputs]
    for signature in model.signatureDefs or ():
        for given in signature.outputs:
            given.tensorIndex = outer if given.tensorIndex == inner else given.tensorIndex


def _like(model: Any, index: int, kind: int) -> int:
    """Add a tensor of another type with the shape of an INT8 one; unsigned ones have its scale. Return its index."""
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    known, made = graph.tensors[index], schema.TensorT()
    made.shape, made.type, made.buffer = known.shape, kind, 0
    if kind == schema.TensorType.UINT8:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale = known.quantization.scale
        made.quantization.zeroPoint = known.quantization.zeroPoint + 128
    graph.tensors.append(made)
    return len(graph.tensors) - 1


def add_operator(model: Any, builtin: int, source: int, result: int) -> Any:
    """Return a new operator of one input and one result, tensors by index, which is in no graph yet."""
    from ai_edge_litert import schema_py_generated as schema

    operator = schema.OperatorT()
    operator.opcodeIndex = opcode(model, builtin)
    operator.inputs, operator.outputs = [source], [result]
    return operator


def name_outputs(path: Path, values: Sequence[str]) -> None:
    """Give a file's outputs the names of the values that they are: the converter gives them numbers."""
    model = load_file(path)
    graph = model.subgraphs[0]
    for index, value in zip(graph.outputs, values, strict=True):
        graph.tensors[int(index)].name = f"qexport_{value};".encode()
    save_file(model, path)


def name_prototypes(path: Path, value: str) -> None:
    """Give the output of four axes the name of the value that it is, by which it is quantised and verified."""
    model = load_file(path)
    graph = model.subgraphs[0]
    for tensor in (graph.tensors[int(index)] for index in graph.outputs):
        if len(tensor.shape) == 4:
            tensor.name = f"qexport_{value};".encode()
    save_file(model, path)


def check_integers(path: Path, program: Program) -> None:
    """Raise `ConversionError` where any tensor of the file is made of floats."""
    from ai_edge_litert import schema_py_generated as schema

    floats = (schema.TensorType.FLOAT32, schema.TensorType.FLOAT16, schema.TensorType.FLOAT64)
    graph = load_file(path).subgraphs[0]
    found = [tensor.name.decode() for tensor in graph.tensors if tensor.type in floats]
    if found:
        owners = (VALUE.match(name) for name in found)
        values = [program.values[owner[1]] for owner in owners if owner and owner[1] in program.values]
        first = f"{values[0].name} ({values[0].operation})" if values else found[0]
        raise ConversionError(
            f"{len(found)} tensors are not made of integers, the first belongs to {first}",
            "this model cannot be integer-only yet: report it, or use --precision int8",
        )


def first_integer_layer(path: Path, out: Path) -> str:
    """Write a file that ends at the first convolution whose result is integers; return its tensor's name, or ""."""
    from ai_edge_litert import schema_py_generated as schema

    model = load_file(path)
    graph = model.subgraphs[0]
    convolution = opcode(model, schema.BuiltinOperator.CONV_2D)
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


def opcode(model: Any, builtin: int) -> int:
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
