"""The float program as an ONNX graph whose tensors carry the plan's names.

ONNX, OpenVINO and TensorRT files are all written from it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import singledispatch
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch

from qexport.compat.patches import ONNX_DECOMPOSITIONS, replaced
from qexport.errors import ConversionError, first_line, named_reason
from qexport.lowering import decompositions, direct_export
from qexport.lowering.onnx.half_model import halve_model
from qexport.lowering.onnx.values import values_of
from qexport.programs.capture import batch_shapes
from qexport.programs.captured_graph import CapturedGraph, copied
from qexport.programs.graph import Graph
from qexport.programs.naming import operation_of
from qexport.programs.onnx.graph import OnnxGraph
from qexport.programs.program import INPUT, Program
from qexport.programs.tags import tag_values

if TYPE_CHECKING:
    from torch.fx import GraphModule

OUTPUT = "output"
SCOPES = "pkg.torch.onnx.name_scopes"


def onnx_graph(
    program: Program,
    opset: int,
    half: bool = False,
    full: frozenset[str] = frozenset(),
    warn: Callable[[str], None] = lambda _: None,
) -> ir.Model:
    """The float program, or its FP16 form, as an ONNX graph; every call returns a copy of its own.

    Args:
        full: values that the FP16 form computes in float32 all the same.
        warn: takes what the report has to say of how it was exported.

    Raises:
        ConversionError: it cannot be exported.
    """
    return _graph_of(program.graph, program, opset, half, full, warn)


@singledispatch
def _graph_of(
    graph: Graph, program: Program, opset: int, half: bool, full: frozenset[str], warn: Callable[[str], None]
) -> ir.Model:
    raise TypeError(f"{type(graph).__name__} cannot be written as ONNX")


@_graph_of.register
def _file_of(
    graph: OnnxGraph, program: Program, opset: int, half: bool, full: frozenset[str], _: Callable[[str], None]
) -> ir.Model:
    """A file in its normal form."""
    model = graph.exported(opset)
    if half:
        halve_model(model, program, full)
    return model


@_graph_of.register
def _once(
    _: CapturedGraph, program: Program, opset: int, half: bool, full: frozenset[str], warn: Callable[[str], None]
) -> ir.Model:
    """Exported once for all formats of a run."""
    key = ("onnx", opset, half, full)
    if key not in program.exports:
        program.exports[key] = ir.serde.serialize_model(_export(program, opset, half, full, warn)).SerializeToString()
    import onnx

    return ir.serde.deserialize_model(onnx.ModelProto.FromString(program.exports[key]))


def _export(program: Program, opset: int, half: bool, full: frozenset[str], warn: Callable[[str], None]) -> ir.Model:
    graph = copied(program)
    graph.training = False  # an exported module cannot be switched, but the exporter asks
    if half:
        from qexport.lowering.onnx.half_graph import halve

        halve(graph, full)
    parts = _parts(graph)
    tag_values(graph, program)
    model = _converted(graph, program, opset, warn)
    _part_prototypes(model)
    _rename(model, program, parts)
    _clean(model)
    return model


def _converted(graph: GraphModule, program: Program, opset: int, warn: Callable[[str], None]) -> ir.Model:
    example = torch.zeros(program.values[INPUT].shape)
    if not program.input.dynamic and decompositions.is_tested("torch"):
        try:
            with _decomposed_locally():
                return _exported(direct_export.exported_program(graph, example), (), program, opset)
        except Exception as error:  # whatever passes raise: the exporter's own way decides
            warn(f"exported the slow way, because the quick one failed ({named_reason(_cause(error), 120)})")
    if program.input.dynamic:
        example = torch.zeros(2, *example.shape[1:])
    try:
        return _exported(graph, (example,), program, opset, dynamic_shapes=batch_shapes(program.input.dynamic))
    except Exception as error:  # the exporter raises whatever its passes do
        reason = f"torch.onnx cannot export this model ({first_line(_cause(error))})"
        raise ConversionError(reason, "try --format tflite") from error


def _cause(error: BaseException) -> BaseException:
    """What is behind the exporter's own error, which says in which of its three steps it was."""
    return _cause(error.__cause__) if error.__cause__ else error


@contextmanager
def _decomposed_locally() -> Iterator[None]:
    """Let torch.onnx decompose operators where they stand for the time of the block."""
    from torch.onnx._internal.exporter import _decomp

    def decompose(exported: Any, registry: Any) -> Any:
        written = set(_decomp.get_onnx_implemented_overloads(registry))
        table = _decomp.create_onnx_friendly_decomposition_table(written)
        return decompositions.run_decompositions(exported, table, decompositions.Known({}, {}))

    with replaced(ONNX_DECOMPOSITIONS, decompose):
        yield


def _exported(traced: Any, example: tuple[torch.Tensor, ...], program: Program, opset: int, **words: Any) -> ir.Model:
    with torch.no_grad():
        exported = torch.onnx.export(
            traced,
            example,
            dynamo=True,
            optimize=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[f"{OUTPUT}{number}" for number in range(2 if program.raw.prototypes else 1)],
            verbose=False,
            **words,
        )
    assert exported is not None
    model: ir.Model = exported.model
    return model


def _parts(graph: GraphModule) -> dict[tuple[str, int], str]:
    """(tensor that is split, number of the part) → the part's name: splits lose their tags on the way."""
    found = {}
    for node in graph.graph.nodes:
        if node.op == "call_function" and operation_of(node) == "part":
            split, index = node.args
            found[split.args[0].name, int(index)] = node.name
    return found


def _rename(model: ir.Model, program: Program, parts: Mapping[tuple[str, int], str]) -> None:
    """Give each tensor the name of the value that it is; helpers on the way to a value get a number behind it."""
    last: dict[str, ir.Node] = {}
    for node in model.graph:
        tag = _tag(node)
        if tag in program.values and node.op_type != "Split":
            last[tag] = node
    taken: set[str] = set()
    for index, node in enumerate(model.graph):
        tag = _tag(node)
        source = node.inputs[0].name if node.op_type == "Split" and node.inputs[0] is not None else None
        for number, output in enumerate(node.outputs):
            if output.is_graph_output():
                name = f"{OUTPUT}{model.graph.outputs.index(output)}"
            elif source is not None:
                name = parts.get((str(source), number), f"split_{index}_{number}")
            elif last.get(tag) is node and number == 0:
                name = tag
            else:
                name = f"{tag or 'program'}/{index}_{number}"
            assert name not in taken
            taken.add(name)
            output.name = name
        node.name = node.outputs[0].name


def _part_prototypes(model: ir.Model) -> None:
    """Let the second output be a copy of the value that it is, so that the value keeps its own name."""
    for index, output in list(enumerate(model.graph.outputs))[1:]:
        node = ir.node("Identity", [output])
        node.outputs[0].type, node.outputs[0].shape = output.type, output.shape
        model.graph.append(node)
        model.graph.outputs[index] = node.outputs[0]


def _tag(node: ir.Node) -> str:
    scopes = node.metadata_props.get(SCOPES)
    return str(ast.literal_eval(scopes)[0]) if scopes else ""


def _clean(model: ir.Model) -> None:
    """Drop what the exporter notes for debugging: it holds paths of this machine."""
    model.graph.name = "qexport"
    model.graph.doc_string = model.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*values_of(model), *model.graph.initializers.values()):
        value.metadata_props.clear()


def set_metadata(model: ir.Model, metadata: Mapping[str, Any]) -> None:
    """Write Ultralytics' metadata, every entry as text."""
    model.metadata_props.update({key: str(value) for key, value in metadata.items()})
    model.producer_name, model.producer_version = "qexport", str(metadata.get("version", ""))


def unname_batch(model: ir.Model) -> None:
    """Leave open dimensions without a name.

    Ultralytics takes a named first dimension of the output to mean that height and width are open, too, whatever the
    metadata say (`ONNXBackend.load_model`). ONNX Runtime would infer the output's name from any other.
    """
    for value in values_of(model):
        if value.shape is not None:
            value.shape = ir.Shape([size if isinstance(size, int) else None for size in value.shape])
