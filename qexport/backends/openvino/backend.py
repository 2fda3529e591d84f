"""OpenVINO IR: Q/DQ around convolutions, read back from the IR and from the model as the CPU plugin compiled it."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qexport.backends.openvino.half import compress
from qexport.backends.protocol import LowerOptions
from qexport.compat.patches import OPENVINO_TELEMETRY, set_variables
from qexport.errors import ConversionError
from qexport.lowering.onnx.write import write_onnx
from qexport.lowering.stored import StoredGraph
from qexport.planning.profile import OPENVINO, RuntimeProfile, for_saturating_cpus
from qexport.programs.onnx.session import PACKAGES as ONNX_PACKAGES
from qexport.programs.onnx.session import check_packages
from qexport.system.machine import ANY, AVX2

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

OPSET = 18
MODEL = "model.xml"
METADATA = "metadata.yaml"
EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
"""On CPUs with AVX512-BF16, AMX or FP16 the plugin prefers those."""


class OpenVINOBackend:
    """Writes IR folders that OpenVINO and Ultralytics load."""

    name = "openvino"
    suffix = "_openvino_model"
    runtime = "OpenVINO, CPU plugin"
    profiles: Mapping[str, Mapping[str, RuntimeProfile]] = {
        "int8": {ANY: OPENVINO, AVX2: for_saturating_cpus(OPENVINO)}
    }
    precisions = frozenset({"fp32", "fp16", "int8", "int8-dynamic"})
    dynamic = True
    offloadable = False
    timed = True
    from_onnx = True
    half_scope = "constants"

    def __init__(self) -> None:
        check_packages(self.name, ("openvino", *(name for name in ONNX_PACKAGES if name != "onnxruntime")))

    def lower(
        self,
        program: Program,
        plan: QuantPlan | None,
        metadata: Mapping[str, Any],
        path: Path,
        options: LowerOptions = LowerOptions(),
    ) -> None:
        """Write a folder with the IR (model.xml, model.bin) and Ultralytics' metadata.yaml."""
        openvino, half = _openvino(), metadata.get("precision") == "fp16"
        path.mkdir()
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            graph = Path(scratch) / "graph.onnx"
            write_onnx(program, plan, metadata, graph, options.opset or OPSET, half=False)
            try:
                model = openvino.Core().read_model(graph)
                _number_operations(model)
                if half and options.float32:
                    compress(model, options.float32)
                openvino.save_model(model, path / MODEL, compress_to_fp16=half and not options.float32)
            except RuntimeError as error:
                shutil.rmtree(path)
                first = next(iter(str(error).splitlines()), "")
                raise ConversionError(f"OpenVINO cannot read the graph ({first})", "try another --opset") from error
        (path / METADATA).write_text(yaml.safe_dump(dict(metadata), sort_keys=False), encoding="utf-8")

    def float_weights(self, program: Program) -> dict[str, str]:
        """Layers that keep float weights in "int8-dynamic", with the reason."""
        return behind_split(program)

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
        )

    def runner(self, path: Path, threads: int) -> OpenVINORunner:
        """Compile the IR for the CPU."""
        return OpenVINORunner(path, threads)

    def by_default(self, path: Path, threads: int) -> tuple[str, OpenVINORunner] | None:
        """On CPUs with BF16 or FP16 the plugin computes floats in it."""
        runner = OpenVINORunner(path, threads, exact=False)
        return None if runner.float_type == "FP32" else (runner.float_type, runner)


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

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch."""
        return self.outputs(batch)[0]

    def outputs(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch and return every output, the detections first."""
        return [output.copy() for output in self._request.infer({0: batch}).to_tuple()]


def behind_split(program: Program) -> dict[str, str]:
    """Layers of 1 by 1 that read a part of a split, with the reason why they keep float weights.

    The CPU plugin of 2026.4 fails on INT8 weights there.
    Its pass ConvertWeightCompressedConv1x1ToMatmul takes any input to have one output; NNCF's own files fail alike.
    """
    from qexport.planning.weights import weight_array

    readers = (v for v in program.values.values() if v.weight and program.values[v.inputs[0]].operation == "part")
    found = (v.name for v in readers if not any(n > 1 for n in weight_array(program, v.weight).shape[2:]))
    return dict.fromkeys(found, "OpenVINO's CPU plugin fails on INT8 weights behind a split")


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
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    if _stays_exact(path) if exact is None else exact:
        settings |= EXACT
    try:
        return core.compile_model(core.read_model(next(path.glob("*.xml"))), "CPU", settings)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ConversionError(f"OpenVINO cannot compile the model ({last})", "report the model") from error


def _stays_exact(path: Path) -> bool:
    """Whether an IR, or the folder that it is in, was written as FP32."""
    metadata = (path if path.is_dir() else path.parent) / METADATA
    content = yaml.safe_load(metadata.read_text(encoding="utf-8")) if metadata.is_file() else None
    return isinstance(content, dict) and content.get("precision") == "fp32"
