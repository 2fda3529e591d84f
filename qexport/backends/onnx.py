"""ONNX for ONNX Runtime's CPU kernels: Q/DQ pairs around the whole chain, checked in the optimised graph."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends import LowerOptions, StoredGraph
from qexport.errors import ConversionError, MissingExtraError
from qexport.lowering.cpu import ANY, AVX2
from qexport.planning.profile import ONNXRUNTIME, RuntimeProfile, careful

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
OPSET = 18
"""The newest whose operators ONNX Runtime has on every execution provider (Resize-19 is missing on CUDA)."""
FLOAT_KERNELS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
_INTEGER_KERNEL = re.compile(r"(?P<value>\w+?)(_token_\d+)?$")


class OnnxBackend:
    """Writes `.onnx` files that ONNX Runtime and Ultralytics load."""

    name = "onnx"
    suffix = ".onnx"
    runtime = "ONNX Runtime, CPU execution provider"
    profiles: Mapping[str, Mapping[str, RuntimeProfile]] = {"int8": {ANY: ONNXRUNTIME, AVX2: careful(ONNXRUNTIME)}}
    precisions = frozenset({"fp32", "fp16", "int8", "int8-dynamic"})
    dynamic = True
    apart = False
    timed = True
    from_onnx = True
    half_scope = "arithmetic"

    def __init__(self) -> None:
        check_packages(self.name, PACKAGES)

    def lower(
        self,
        program: Program,
        plan: QuantPlan | None,
        metadata: Mapping[str, Any],
        path: Path,
        options: LowerOptions = LowerOptions(),
    ) -> None:
        """Write an `.onnx` file with float32 input and output and Ultralytics' metadata."""
        from qexport.backends.onnx_upsample import upsample_by_copies

        opset, lowest = options.opset or OPSET, options.opset is None
        half = metadata.get("precision") == "fp16"
        write_onnx(program, plan, metadata, path, opset, half, upsample_by_copies, lowest, options.float32)

    def float_weights(self, program: Program) -> dict[str, str]:
        """None: every layer can have INT8 weights."""
        return {}

    def read(self, path: Path) -> StoredGraph:
        """Read scales from the file, and which arithmetic is in integers from the runtime's optimised graph."""
        import onnx
        import onnx_ir as ir

        from qexport.backends.onnx_needs import needs_of
        from qexport.backends.onnx_read import read_onnx

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
        )

    def runner(self, path: Path, threads: int) -> OnnxRunner:
        """Load the file into ONNX Runtime."""
        return OnnxRunner(path, threads)

    def validation(self) -> AbstractContextManager[None]:
        """Nothing special."""
        return nullcontext()


class OnnxRunner:
    """An `.onnx` file in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int, fused: bool = True) -> None:
        self._session = session(path, threads, fused=fused)
        self._input = self._session.get_inputs()[0].name

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch."""
        return self.outputs(batch)[0]

    def outputs(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch and return every output, the detections first."""
        found: list[NDArray[np.float32]] = self._session.run(None, {self._input: batch})
        return found


def check_packages(name: str, packages: tuple[str, ...]) -> None:
    """Raise `MissingExtraError` where a package of a format is not installed."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise MissingExtraError(f"format {name} needs {', '.join(missing)}", f"pip install 'qexport[{name}]'")


def write_onnx(
    program: Program,
    plan: QuantPlan | None,
    metadata: Mapping[str, Any],
    path: Path,
    opset: int,
    half: bool,
    rewrite: Callable[[ir.Model], None] = lambda _: None,
    lowest: bool = False,
    full: frozenset[str] = frozenset(),
) -> None:
    """Export, quantise by the plan, `rewrite` what was quantised for the runtime, check and save.

    Args:
        half: in FP16, but for the values in `full`.
        lowest: label the file with the lowest operator set that its operators need.
    """
    import onnx
    import onnx_ir as ir

    from qexport.backends.onnx_graph import onnx_graph, set_metadata, unname_batch
    from qexport.backends.onnx_needs import label_ir, label_lowest
    from qexport.backends.onnx_weights import store_weights
    from qexport.backends.qdq import drop_unused, insert_qdq

    model = onnx_graph(program, opset, half, full)
    if plan is not None and plan.integer:
        insert_qdq(model, program, plan)
        rewrite(model)
    elif plan is not None:
        store_weights(model, program, plan)
    drop_unused(model)  # ONNX Runtime warns of each, whenever the file is loaded
    set_metadata(model, metadata)
    if program.dynamic and metadata.get("task"):
        unname_batch(model)
    proto = ir.serde.serialize_model(model)
    (label_lowest if lowest else label_ir)(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        first = next(iter(str(error).splitlines()), "")
        raise ConversionError(f"the ONNX graph is not valid ({first})", "try another --opset") from error
    path.write_bytes(proto.SerializeToString(deterministic=True))


def session_options(threads: int, fused: bool = True) -> Any:
    """Settings of a session; without `fused` Q/DQ pairs are computed as they stand, in float."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not fused:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    return options


def session(path: Path, threads: int, optimised: Path | None = None, fused: bool = True) -> Any:
    """Load a file into ONNX Runtime on the CPU; optionally save the graph that it really runs."""
    import onnxruntime

    options = session_options(threads, fused)
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's errors share no base
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"ONNX Runtime cannot load the graph ({first})", "try another --opset") from error


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
