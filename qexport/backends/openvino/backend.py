"""OpenVINO IR: Q/DQ around convolutions, read back from the IR and from the model as the CPU plugin compiled it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qexport.backends.info import check_precision
from qexport.backends.openvino.half import compress
from qexport.backends.openvino.info import INFO
from qexport.compat.patches import OPENVINO_TELEMETRY, set_variables
from qexport.errors import ConversionError, first_line
from qexport.lowering.onnx.write import write_onnx
from qexport.lowering.stored import StoredGraph
from qexport.system.yaml_form import read_yaml

if TYPE_CHECKING:
    from qexport.lowering.convolutions import ConvolutionStack
    from qexport.lowering.request import Lowering

OPSET = 18
MODEL = "model.xml"
METADATA = "metadata.yaml"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""On CPUs with AVX512-BF16, AMX or FP16 the plugin prefers those."""


class OpenVINOBackend:
    """Writes IR folders that OpenVINO and Ultralytics load."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write a folder with the IR (model.xml, model.bin) and Ultralytics' metadata.yaml."""
        check_precision(self.info, request.target.precision)
        openvino, half, float32 = _openvino(), request.target.precision == "fp16", request.float32
        opset = request.options.get("opset") or OPSET
        path.mkdir()
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            graph = Path(scratch) / "graph.onnx"
            write_onnx(request.program, request.plan, request.metadata, graph, opset, half=False, warn=request.warn)
            try:
                model = openvino.Core().read_model(graph)
                _number_operations(model)
                if half and float32:
                    compress(model, float32)
                openvino.save_model(model, path / MODEL, compress_to_fp16=half and not float32)
            except RuntimeError as error:
                shutil.rmtree(path)
                reason = f"OpenVINO cannot read the graph ({first_line(error)})"
                raise ConversionError(reason, "try another --opset") from error
        (path / METADATA).write_text(yaml.safe_dump(dict(request.metadata), sort_keys=False), encoding="utf-8")

    def read(self, path: Path) -> StoredGraph:
        """Read scales from the IR, and in which arithmetic it runs from the model that the CPU plugin compiles."""
        from qexport.backends.openvino.read import executed_macs, needs_of, stored_macs, stored_tensors

        model = _openvino().Core().read_model(path / MODEL)
        integer, total = stored_macs(model)
        return StoredGraph(
            stored_tensors(model),
            integer,
            total,
            dict(sorted(Counter(op.get_type_name() for op in model.get_ops()).items())),
            complete=True,
            arithmetic=executed_macs(compiled(path, 1), total),
            needs=needs_of((path / MODEL).read_text(encoding="utf-8")),
            metadata=read_metadata(path),
        )

    def runner(self, path: Path, threads: int) -> OpenVINORunner:
        """Compile the IR for the CPU."""
        return OpenVINORunner(path, threads)

    def by_default(self, path: Path, threads: int) -> tuple[str, OpenVINORunner] | None:
        """On CPUs with BF16 or FP16 the plugin computes floats in it."""
        runner = OpenVINORunner(path, threads, exact=False)
        return None if runner.float_type == "FP32" else (runner.float_type, runner)

    def convolutions(self, stack: ConvolutionStack, threads: int) -> dict[str, Callable[[], object]]:
        """Run the stack in FP32, in what the plugin prefers to that on this CPU, and in integers."""
        from qexport.backends.openvino.read import executed_macs
        from qexport.lowering.onnx.convolutions import convolution_model

        core, found = _openvino().Core(), dict[str, Callable[[], object]]()
        for precision, exact in (("fp32", True), ("fp32", False), ("int8", False)):
            content = convolution_model(stack, precision).SerializeToString()
            model = _compiled(core, core.read_model(content, b""), threads, exact)
            done = executed_macs(model, stack.macs)
            found.setdefault(
                max(done, key=done.__getitem__), partial(model.create_infer_request().infer, stack.batch())
            )
        return found


class OpenVINORunner:
    """An IR folder on OpenVINO's CPU plugin; FP32 ones in FP32, others as Ultralytics runs them.

    Attributes:
        float_type: what floats are computed in.
    """

    def __init__(self, path: Path, threads: int, exact: bool | None = None) -> None:
        from qexport.backends.openvino.read import float_type

        model = compiled(path, threads, exact)
        self.float_type = float_type(model)
        self._request = model.create_infer_request()

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch and return every output, the detections first."""
        return tuple(output.copy() for output in self._request.infer({0: batch}).to_tuple())


def _openvino() -> Any:
    set_variables(OPENVINO_TELEMETRY)  # read on import
    import openvino

    return openvino


def _number_operations(model: Any) -> None:
    """Name unnamed operations by their position: OpenVINO counts them through the process, and files would differ."""
    for position, op in enumerate(model.get_ordered_ops()):
        if op.get_friendly_name().startswith(f"{op.get_type_name()}_"):
            op.set_friendly_name(f"{op.get_type_name()}_{position}")


def compiled(path: Path, threads: int, exact: bool | None = None) -> Any:
    """Compile the IR in `path` for the CPU.

    Args:
        exact: compute floats in FP32 instead of in what the plugin prefers; None for FP32 files only.
    """
    core = _openvino().Core()
    exact = _stays_exact(path) if exact is None else exact
    return _compiled(core, next(path.glob("*.xml")), threads, exact)


def _compiled(core: Any, model: Any, threads: int, exact: bool) -> Any:
    """Compile a model, or the file that it is in, for the CPU."""
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **(EXACT if exact else {})}
    try:
        return core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ConversionError(f"OpenVINO cannot compile the model ({last})", "report the model") from error


def _stays_exact(path: Path) -> bool:
    """Whether an IR, or the folder that it is in, was written as FP32."""
    return read_metadata(path if path.is_dir() else path.parent).get("precision") == "fp32"


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata beside an IR; nothing where there are none."""
    file = folder / METADATA
    content = read_yaml(file) if file.is_file() else None
    return content if isinstance(content, dict) else {}
