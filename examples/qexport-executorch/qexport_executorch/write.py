"""A graph as a `.pte` file: to the edge dialect, to XNNPACK as far as it goes, and to ExecuTorch's flatbuffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qexport.compat.patches import Patch, replaced
from qexport.errors import ConversionError, first_line
from qexport_executorch.quiet import silence

if TYPE_CHECKING:
    from torch.fx import GraphModule

    from qexport import Lowering

VISITORS = Patch(
    "executorch.backends.xnnpack.xnnpack_preprocess",
    "get_node_visitors",
    "executorch 1.5",
    "convolutions that compute in FP16 would store their weights in FP32",
)
CONVOLUTION = "aten.convolution.default"
Names = dict[str, Any]
"""What `read` needs: "values", the names of debug handles 1, 2, …, and "layers", see `graph.layers`."""


def write_program(request: Lowering) -> tuple[bytes, Names]:
    """Return the file's bytes and the names of what its delegates compute.

    Raises:
        ConversionError: ExecuTorch refuses the program, or it would leave integers to kernels that the runtime lacks.
    """
    import torch

    from qexport.lowering.direct_export import exported_program
    from qexport_executorch.graph import example, layers, prepare

    graph = _graph(request)
    prepare(graph, request.program)
    names: Names = {"values": list(request.program.values), "layers": layers(graph, request.program)}
    try:
        with torch.no_grad(), silence():
            exported = exported_program(graph, example(request.program))
            signature = exported.module_call_graph[0].signature
            signature.inputs.clear(), signature.outputs.clear()  # by names that ExecuTorch's passes change
            return _lowered(exported, names["values"]), names
    except ConversionError:
        raise
    except Exception as error:  # its passes raise whatever they do
        reason = f"ExecuTorch cannot convert this model ({first_line(error)})"
        raise ConversionError(reason, "report the model") from error


def _graph(request: Lowering) -> GraphModule:
    from qexport.lowering.onnx.half_graph import halve
    from qexport.programs.captured_graph import copied
    from qexport_executorch.graph import integer_graph

    if request.plan is not None:
        return integer_graph(request.program, request.plan)
    graph = copied(request.program)
    if request.target.precision == "fp16":
        halve(graph, request.float32)
    return graph


def _lowered(exported: Any, values: list[str]) -> bytes:
    from executorch.backends.xnnpack._passes.remove_noop_expand_copy_pass import RemoveNoopExpandCopyPass
    from executorch.exir import to_edge_transform_and_lower

    def numbered(graph: GraphModule) -> Any:
        from torch.fx.passes.infra.pass_base import PassResult

        from qexport_executorch.graph import number

        number(graph, values)
        return PassResult(graph, True)

    passes = [RemoveNoopExpandCopyPass(), numbered]
    with replaced(VISITORS, _visitors):
        edge = to_edge_transform_and_lower(exported, transform_passes=passes, partitioner=[_partitioner()])
    left = sorted({str(node.target).partition(">")[0] for node in edge.exported_program().graph.nodes if _is_qdq(node)})
    if left:
        raise ConversionError(f"XNNPACK leaves integers to {', '.join(left)}", "keep that layer in float: --keep-float")
    return bytes(edge.to_executorch().buffer)


def _is_qdq(node: Any) -> bool:
    return node.op == "call_function" and "quantized_decomposed" in str(node.target)


def _partitioner() -> Any:
    """XNNPACK's with integers for sigmoid: its own table lists it for floats only."""
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import SigmoidConfig
    from executorch.backends.xnnpack.partition.config.xnnpack_config import ConfigPrecisionType
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    class IntegerSigmoid(SigmoidConfig):  # type: ignore[misc]
        def supported_precision_types(self) -> list[Any]:
            return [ConfigPrecisionType.FP32, ConfigPrecisionType.STATIC_QUANT]

    return XnnpackPartitioner([IntegerSigmoid if each is SigmoidConfig else each for each in ALL_PARTITIONER_CONFIGS])


def _visitors(*given: Any) -> dict[str, Any]:
    """What writes the delegate's operators; constants of a convolution in the type that they have."""
    from executorch.backends.xnnpack.operators.node_visitor import get_node_visitors

    known: dict[str, Any] = get_node_visitors(*given)
    kind: Any = type(known[CONVOLUTION])

    class Convolution(kind):  # type: ignore[misc]
        def define_tensor(self, *args: Any, **options: Any) -> None:
            super().define_tensor(*args, **{**options, "force_fp32": False})

    return {**known, CONVOLUTION: Convolution(*given)}
