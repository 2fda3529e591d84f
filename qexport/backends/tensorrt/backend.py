"""TensorRT: a build-ready ONNX graph with symmetric Q/DQ pairs and FP16, and the engine where TensorRT is installed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.info import check_precision
from qexport.backends.tensorrt.info import BUILD, ENGINE, INFO
from qexport.errors import ConversionError, EngineNotBuiltError
from qexport.lowering.onnx.write import write_onnx
from qexport.lowering.stored import StoredGraph
from qexport.programs.onnx.session import OnnxRunner

if TYPE_CHECKING:
    from qexport.lowering.request import Lowering

LEAST = "10.0"
OPSET = 19
"""The first whose Q/DQ nodes take FP16 scales."""
SCRIPT = Path(__file__).with_name("build_engine.py")


class TensorRTBackend:
    """Writes `…_tensorrt.onnx` for TensorRT 10 and 11, proven on ONNX Runtime, and builds the engine if it can."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write the graph: strongly typed, FP16 where it is not integers (except for "fp32"), and check the rules."""
        import onnx_ir as ir

        from qexport.backends.tensorrt.rules import broken_rules

        check_precision(self.info, request.target.precision)
        opset, half = request.options.get("opset") or OPSET, request.target.precision != "fp32"
        program, plan, metadata = request.program, request.plan, request.metadata
        write_onnx(program, plan, metadata, path, opset, half, full=request.float32, warn=request.warn)
        floats = request.program.values.keys() - request.plan.integer if request.plan else frozenset[str]()
        broken = broken_rules(ir.load(path), floats)
        if broken:
            path.unlink()
            raise ConversionError(f"the graph breaks a rule of TensorRT: {broken[0]}", "report the model")

    def read(self, path: Path) -> StoredGraph:
        """Read scales from the file; integer arithmetic is counted by TensorRT's rules, not from an engine."""
        import onnx
        import onnx_ir as ir

        from qexport.backends.tensorrt.rules import integer_operations
        from qexport.lowering.onnx.needs import needs_of
        from qexport.lowering.onnx.read import read_onnx

        proto = onnx.load(path)
        model = ir.serde.deserialize_model(proto)
        needs = {"TensorRT": LEAST, **needs_of(proto)}
        del needs["ONNX Runtime"]
        content = read_onnx(model)
        integer = integer_operations(model)
        return StoredGraph(
            content.tensors,
            sum(macs for name, macs in content.macs.items() if name in integer),
            sum(content.macs.values()),
            content.operators,
            complete=True,
            needs=needs,
            biases=content.biases,
            metadata={entry.key: entry.value for entry in proto.metadata_props},
        )

    def runner(self, path: Path, threads: int) -> OnnxRunner | EngineRunner:
        """Load the engine into TensorRT, or the graph into ONNX Runtime, which computes the same numbers."""
        return EngineRunner(path) if path.suffix == ENGINE.suffix else OnnxRunner(path, threads, fused=False)

    def write_script(self, folder: Path) -> None:
        """Put `build_engine.py`, which needs only TensorRT, beside the graph."""
        shutil.copyfile(SCRIPT, folder / SCRIPT.name)

    def build(self, graph: Path, path: Path, metadata: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Build the engine with Ultralytics' metadata in front.

        Raises:
            EngineNotBuiltError: TensorRT or a GPU is missing, or TensorRT refused the graph.
        """
        from qexport.backends.tensorrt import build_engine

        try:
            import tensorrt
        except ImportError as error:
            raise EngineNotBuiltError(
                f"{graph.name} is ready but the engine is not built: TensorRT is not installed here",
                f"run {SCRIPT.name} {graph.name} on the target, or give --no-build",
            ) from error
        try:
            own = {option.name: options[option.name] for option in BUILD if option.name in options}
            build_engine.build(tensorrt, graph, path, metadata, build_engine.Options(**own))
        except build_engine.BuildError as error:
            raise EngineNotBuiltError(f"TensorRT did not build {path.name}: {error}", "read its log") from error


class EngineRunner:
    """An engine in TensorRT on the first GPU. Not run in this project's CI: no machine there has TensorRT."""

    def __init__(self, path: Path) -> None:
        import tensorrt
        import torch

        content = path.read_bytes()
        header = int.from_bytes(content[:4], "little")
        runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self._engine = runtime.deserialize_cuda_engine(content[4 + header :])
        self._context = self._engine.create_execution_context()
        self._stream = torch.cuda.Stream()

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch, copies to and from the GPU included."""
        import torch

        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        images = torch.from_numpy(batch).cuda()
        self._context.set_input_shape(names[0], tuple(images.shape))
        made = [torch.empty(tuple(self._context.get_tensor_shape(name)), device="cuda") for name in names[1:]]
        for name, tensor in zip(names, (images, *made), strict=True):
            self._context.set_tensor_address(name, tensor.data_ptr())
        self._context.execute_async_v3(self._stream.cuda_stream)
        self._stream.synchronize()
        return tuple(tensor.cpu().numpy() for tensor in made)
