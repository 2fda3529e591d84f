"""Bring a float ONNX file into one form: fixed sizes, folded constants, plain layers, names that plans can use.

ONNX Runtime's basic optimisations fold constants and batch normalisations and change nothing else that matters here;
what they do not know is done behind them.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes.common import RemoveUnusedNodesPass

from qexport.errors import InputError, first_line
from qexport.programs.bounded_run import largest
from qexport.programs.onnx.bounds import check_bytes
from qexport.programs.onnx.file import OnnxFile, check_sizes, operator_set
from qexport.programs.program import INPUT

OPSET = 18
"""The least: what later steps write is in this one."""
RESIZE_SAYS_HOW = 11
"""The first operator set whose Resize says where pixels lie."""
OPEN = "batch"
LAYERS = ("Conv", "ConvTranspose", "Gemm")
LEARNED = (*LAYERS, "MatMul", "BatchNormalization", "LayerNormalization", "InstanceNormalization", "PRelu")
"""Operators whose constants come from training; those of others may be infinite on purpose, as limits and masks are."""
_INSERTED = re.compile(r"(_token_\d+)+$")
"""What ONNX Runtime puts behind names of nodes that it makes."""

Names = dict[str, tuple[str, ...]]


def normalised(file: OnnxFile, imgsz: tuple[int, int], batch: int, dynamic: bool) -> tuple[ir.Model, Names]:
    """Return the graph in its normal form, and for each name of the file those that stand for it now.

    Raises:
        InputError: ONNX Runtime or ONNX's converter of operator sets refuses the file.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(file.proto)
    proto = _recent(file.path, proto)
    _fix_sizes(proto, file, imgsz, batch, dynamic)
    most = largest(4 * math.prod(max(each.dim_value, 1) for each in proto.graph.input[0].type.tensor_type.shape.dim))
    folded = onnx.shape_inference.infer_shapes(_folded(file.path, proto, most))
    check_bytes(file.path, folded, most)
    folded = onnx.shape_inference.infer_shapes(folded, data_prop=True)  # computes what shapes are made of
    check_sizes(file.path, folded)
    check_bytes(file.path, folded, most)
    model = ir.serde.deserialize_model(folded)
    _strip(model)
    RemoveUnusedNodesPass()(model)
    _plain_layers(model)
    return model, _rename(model)


def learned_constants(model: ir.Model) -> Iterator[tuple[str, np.ndarray]]:
    """(name, array) of the float constants that training has made."""
    for value in (value for node in model.graph if node.op_type in LEARNED for value in node.inputs):
        array = array_of(value)
        if value is not None and array is not None and np.issubdtype(array.dtype, np.floating):
            yield str(value.name), array


def _recent(path: Path, proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same in operator set `OPSET` or a later one."""
    version = operator_set(proto)
    if version >= OPSET:
        return proto
    try:
        recent = version_converter.convert_version(proto, OPSET)
    except Exception as error:  # the converter raises whatever its checks do
        raise InputError(
            f"{path} cannot be brought from operator set {version} to {OPSET} ({first_line(error)})",
            f"export it with operator set {OPSET} or later",
        ) from error
    if version < RESIZE_SAYS_HOW:
        _say_how_to_resize(recent)
    return recent


def _say_how_to_resize(proto: onnx.ModelProto) -> None:
    """Write how older operators resize into those that took their place: the converter leaves the newer defaults.

    Upsample (7 to 9) and Resize (10): pixels lie at multiples of the scale; nearest ones are below, in shrinking above.
    """
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    made = (node for node in proto.graph.node if node.op_type == "Constant" and node.attribute[0].name == "value")
    constants |= {node.output[0]: node.attribute[0].t for node in made}
    for node in proto.graph.node:
        if node.op_type == "Resize":
            scales = constants.get(node.input[2]) if len(node.input) > 2 else None
            shrinks = scales is not None and onnx.numpy_helper.to_array(scales).min(initial=1) < 1
            how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "ceil" if shrinks else "floor"}
            kept = [each for each in node.attribute if each.name not in how]
            del node.attribute[:]
            node.attribute.extend([*kept, *(onnx.helper.make_attribute(*each) for each in how.items())])


def _fix_sizes(proto: onnx.ModelProto, file: OnnxFile, imgsz: tuple[int, int], batch: int, dynamic: bool) -> None:
    """Write the sizes into the input, and forget what was inferred from the old ones."""
    dimensions = proto.graph.input[0].type.tensor_type.shape.dim
    sizes = (batch, *imgsz, 3) if file.channels_last else (batch, 3, *imgsz)
    for dimension, size in zip(dimensions, sizes, strict=True):
        dimension.dim_value = size
    if dynamic:
        dimensions[0].dim_param = OPEN
    del proto.graph.value_info[:]
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")


def _folded(path: Path, proto: onnx.ModelProto, most: int) -> onnx.ModelProto:
    """The graph with its constants folded, except for those of more than `most` bytes."""
    import onnxruntime

    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(most))
        options.optimized_model_filepath = str(Path(scratch) / "folded.onnx")
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors share no base
            raise InputError(
                f"ONNX Runtime cannot load {path} ({first_line(error)})", "check the file, or give another --imgsz"
            ) from error
        return onnx.load(options.optimized_model_filepath)


def _strip(model: ir.Model) -> None:
    """Drop what neither computes nor is ours to keep."""
    used = {node.domain for node in model.graph} | {""}
    for domain in set(model.opset_imports) - used:
        del model.opset_imports[domain]
    model.metadata_props.clear()
    model.graph.name, model.graph.doc_string, model.doc_string = "qexport", None, None
    for node in list(model.graph):
        node.metadata_props.clear()
        node.doc_string = None
        if node.op_type == "Identity" and not node.outputs[0].is_graph_output():
            source = node.inputs[0]
            assert source is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            model.graph.remove(node, safe=True)


def _plain_layers(model: ir.Model) -> None:
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _output_first(model, node)
        elif node.op_type == "GlobalAveragePool" or _averages_map(node):
            _pool_window(model, node)
    for name, stored in list(model.graph.initializers.items()):
        if not stored.uses():
            del model.graph.initializers[name]


def array_of(value: ir.Value | None) -> np.ndarray | None:
    """A constant's array, None for what is computed."""
    if value is None or value.const_value is None or value.producer() is not None:
        return None
    array: np.ndarray = value.const_value.numpy()
    return array


def _output_first(model: ir.Model, node: ir.Node) -> None:
    """Store a layer's weight as (out, in): weights have a scale for each output."""
    weight = array_of(node.inputs[1])
    transposed: int = node.attributes.get_int("transB", 0)
    if weight is None or transposed:
        return
    assert node.inputs[1] is not None
    name = f"{node.inputs[1].name}.transposed"
    if name not in model.graph.initializers:
        _constant(model, name, np.ascontiguousarray(weight.T))
    node.replace_input_with(1, model.graph.initializers[name])
    node.attributes["transB"] = ir.AttrInt64("transB", 1)


def _averages_map(node: ir.Node) -> bool:
    source = node.inputs[0] if node.inputs else None
    if node.op_type != "ReduceMean" or source is None or source.shape is None or len(source.shape) != 4:
        return False
    axes = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return axes is not None and sorted(int(axis) % 4 for axis in axes) == [2, 3]


def _pool_window(model: ir.Model, node: ir.Node) -> None:
    """Average a whole map by a window of its size: runtimes have integer kernels for windows."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    sizes = list(source.shape or ())[2:]
    if len(sizes) != 2 or not all(isinstance(size, int) for size in sizes):
        return
    tape = ir.tape.Tape()
    made = tape.op("AveragePool", [source], {"kernel_shape": [int(size) for size in sizes if isinstance(size, int)]})
    tape.nodes[-1].name = node.name
    if node.op_type == "ReduceMean" and not node.attributes.get_int("keepdims", 1):
        made = tape.op("Flatten", [made])
        tape.nodes[-1].name = f"{node.name}_flat"
    made.name = result.name
    made.type, made.shape = result.type, result.shape
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], tape.nodes, [result], [made])


def _constant(model: ir.Model, name: str, array: np.ndarray) -> None:
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    model.graph.register_initializer(value)


def _rename(model: ir.Model) -> Names:
    """Give every tensor a name of letters, digits and underscores; the file's input and outputs keep theirs.

    Where the file's name for the input is another, a copy called `INPUT` follows it; outputs are copies, so that what
    they are copies of has a name of its own.
    """
    old: dict[str, list[ir.Value]] = {}
    taken = Counter({INPUT: 1, **dict.fromkeys((str(each.name) for each in model.graph.inputs), 1)})
    outputs = [str(each.name) for each in model.graph.outputs]
    taken.update(outputs)
    for node in model.graph:
        for number, output in enumerate(node.outputs):
            old.setdefault(str(output.name), []).append(output)
            old.setdefault(str(node.name), []).append(output)
            base = _identifier(node) + (f"_{number}" if len(node.outputs) > 1 else "")
            taken[base] += 1
            output.name = base if taken[base] == 1 else _free(base, taken)
        node.name = node.outputs[0].name
    _name_input(model)
    for index, name in enumerate(outputs):
        _copy_output(model, index, name)
    _name_constants(model)
    model.graph.sort()
    return {name: tuple(str(value.name) for value in dict.fromkeys(values)) for name, values in old.items() if name}


def _free(base: str, taken: Counter[str]) -> str:
    name = next(f"{base}_{n}" for n in range(2, len(taken) + 3) if f"{base}_{n}" not in taken)
    taken[name] += 1
    return name


def _identifier(node: ir.Node) -> str:
    name = _INSERTED.sub("", re.sub(r"\W+", "_", str(node.name or "")).strip("_"))
    return name if name[:1].isalpha() else "_".join(filter(None, (node.op_type.lower(), name.strip("_"))))


def _name_input(model: ir.Model) -> None:
    (given,) = model.graph.inputs
    if given.name == INPUT:
        return
    copy = ir.node("Identity", [given], name=INPUT)
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = INPUT, given.type, given.shape
    for node, index in given.uses():
        if node is not copy:
            node.replace_input_with(index, copy.outputs[0])
    model.graph.insert_before(next(iter(model.graph)), copy)


def _copy_output(model: ir.Model, index: int, name: str) -> None:
    output = model.graph.outputs[index]
    copy = ir.node("Identity", [output], name=name)
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, output.type, output.shape
    model.graph.append(copy)
    model.graph.outputs[index] = copy.outputs[0]


def _name_constants(model: ir.Model) -> None:
    """Name constants after what reads them first: with a dot, so that no value has the name."""
    constants = dict(model.graph.initializers)
    model.graph.initializers.clear()
    for node in model.graph:
        for number, value in enumerate(node.inputs):
            if value is not None and value.name in constants and constants[value.name] is value:
                del constants[str(value.name)]
                part = (
                    {1: "weight", 2: "bias"}.get(number) if node.op_type in ("Conv", "ConvTranspose", "Gemm") else None
                )
                value.name = f"{node.name}.{part or f'constant{number}'}"
                model.graph.register_initializer(value)
