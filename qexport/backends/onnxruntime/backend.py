"""ONNX for ONNX Runtime's CPU kernels: Q/DQ pairs around the whole chain, checked in the optimised graph."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qexport.backends.info import check_precision
from qexport.backends.onnxruntime.info import INFO
from qexport.lowering.onnx.write import write_onnx
from qexport.lowering.stored import StoredGraph
from qexport.programs.onnx.session import OPSET, OnnxRunner, session

if TYPE_CHECKING:
    import onnx

    from qexport.lowering.convolutions import ConvolutionStack
    from qexport.lowering.request import Lowering

FLOAT_KERNELS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_INTEGER_KERNEL = re.compile(r"(?P<value>\w+?)(_token_\d+)?$")


class OnnxBackend:
    """Writes `.onnx` files that ONNX Runtime and Ultralytics load."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write an `.onnx` file with float32 input and output and Ultralytics' metadata."""
        from qexport.lowering.onnx.upsample import upsample_by_copies

        check_precision(self.info, request.target.precision)
        opset, half = request.options.get("opset"), request.target.precision == "fp16"
        write_onnx(
            *(request.program, request.plan, request.metadata, path, opset or OPSET, half),
            rewrite=upsample_by_copies,
            lowest=opset is None,
            full=request.float32,
            warn=request.warn,
        )

    def read(self, path: Path) -> StoredGraph:
        """Read scales from the file, and which arithmetic is in integers from the runtime's optimised graph."""
        import onnx
        import onnx_ir as ir

        from qexport.lowering.onnx.needs import needs_of
        from qexport.lowering.onnx.read import read_onnx

        proto = onnx.load(path)
        content = read_onnx(ir.serde.deserialize_model(proto))
        return StoredGraph(
            content.tensors,
            sum(content.macs[name] for name in content.integer),
            sum(content.macs.values()),
            content.operators,
            complete=True,
            arithmetic=executed_macs(path, content.macs),
            needs=needs_of(proto),
            biases=content.biases,
            metadata={entry.key: entry.value for entry in proto.metadata_props},
        )

    def runner(self, path: Path, threads: int) -> OnnxRunner:
        """Load the file into ONNX Runtime."""
        return OnnxRunner(path, threads)

    def convolutions(self, stack: ConvolutionStack, threads: int) -> dict[str, Callable[[], object]]:
        """Run the stack in FP32, in FP16 where there are kernels for it, and in integers."""
        import onnx

        from qexport.lowering.onnx.convolutions import convolution_model

        found: dict[str, Callable[[], object]] = {}
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            for precision in ("fp32", "fp16", "int8"):
                path = Path(scratch) / f"{precision}.onnx"
                onnx.save(convolution_model(stack, precision), path)
                nodes, half = optimised(path)
                kind = "INT8" if integer_kernels(nodes) else "FP16" if half else "FP32"
                found.setdefault(kind, partial(OnnxRunner(path, threads), stack.batch()))
        return found


def executed_macs(path: Path, macs: Mapping[str, int]) -> dict[str, int]:
    """Type of arithmetic → multiply-accumulates, from the graph that ONNX Runtime makes of a file on this machine.

    Floats are FP32 on x86 whatever the file stores: casts stand around kernels that have no FP16. On ARM the products
    of FP32 matrices could be BF16, but `mlas.enable_gemm_fastmath_arm64_bfloat16` is off unless someone sets it.

    Args:
        macs: of each layer, by the name of its value.
    """
    nodes, half = optimised(path)
    integer = integer_kernels(nodes)
    done = sum(count for name, count in macs.items() if name in integer)
    return {kind: n for kind, n in {"INT8": done, "FP16" if half else "FP32": sum(macs.values()) - done}.items() if n}


def integer_kernels(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    """Names of the values that integer kernels of an optimised graph compute."""
    names = (_INTEGER_KERNEL.match(node.name) for node in nodes if node.op_type.startswith(("QLinear", "QGemm")))
    return frozenset(match["value"] for match in names if match)


def optimised(path: Path) -> tuple[list[onnx.NodeProto], bool]:
    """The nodes that a session really runs, and whether most of its float layers multiply FP16."""
    import onnx

    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        saved = Path(scratch) / "optimised.onnx"
        session(path, 1, saved)
        graph = onnx.load(saved, load_external_data=False).graph
    halves = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT16}
    layers = [node for node in graph.node if node.op_type in FLOAT_KERNELS and len(node.input) > 1]
    return list(graph.node), 2 * sum(node.input[1] in halves for node in layers) > len(layers)
