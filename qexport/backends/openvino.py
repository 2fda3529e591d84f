"""OpenVINO IR: Q/DQ around convolutions, read back from the IR and from the model as the CPU plugin compiled it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qexport.backends import LowerOptions, StoredGraph, StoredTensor
from qexport.backends.onnx import PACKAGES as ONNX_PACKAGES
from qexport.backends.onnx import check_packages, write_onnx
from qexport.errors import ConversionError
from qexport.lowering.cpu import ANY, AVX2
from qexport.planning.profile import OPENVINO, RuntimeProfile, careful

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

OPSET = 18
MODEL = "model.xml"
METADATA = "metadata.yaml"


class OpenVINOBackend:
    """Writes IR folders that OpenVINO and Ultralytics load."""

    name = "openvino"
    suffix = "_openvino_model"
    runtime = "OpenVINO, CPU plugin"
    profiles: Mapping[str, Mapping[str, RuntimeProfile]] = {"int8": {ANY: OPENVINO, AVX2: careful(OPENVINO)}}
    precisions = frozenset({"fp32", "fp16", "int8", "int8-dynamic"})
    dynamic = True
    apart = False
    timed = True
    from_onnx = True

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
        from qexport.planning.planner import weights_only

        if metadata.get("precision") == "int8-dynamic":
            plan = weights_only(program, behind_split(program))
        openvino = _openvino()
        path.mkdir()
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            graph = Path(scratch) / "graph.onnx"
            write_onnx(program, plan, metadata, graph, options.opset or OPSET, half=False)
            try:
                model = openvino.Core().read_model(graph)
                _number_operations(model)
                openvino.save_model(model, path / MODEL, compress_to_fp16=metadata.get("precision") == "fp16")
            except RuntimeError as error:
                shutil.rmtree(path)
                first = next(iter(str(error).splitlines()), "")
                raise ConversionError(f"OpenVINO cannot read the graph ({first})", "try another --opset") from error
        (path / METADATA).write_text(yaml.safe_dump(dict(metadata), sort_keys=False), encoding="utf-8")

    def read(self, path: Path) -> StoredGraph:
        """Read scales from the IR, and in which arithmetic it runs from the model that the CPU plugin compiles."""
        from qexport.backends.openvino_read import executed_macs, stored_macs, stored_tensors

        model = _openvino().Core().read_model(path / MODEL)
        integer, total = stored_macs(model)
        return StoredGraph(
            stored_tensors(model),
            integer,
            total,
            dict(sorted(Counter(op.get_type_name() for op in model.get_ops()).items())),
            complete=True,
            arithmetic=executed_macs(compiled(path, 1), total),
        )

    def runner(self, path: Path, threads: int) -> OpenVINORunner:
        """Compile the IR for the CPU."""
        return OpenVINORunner(path, threads)

    def validation(self) -> AbstractContextManager[None]:
        """Nothing special."""
        return nullcontext()


class OpenVINORunner:
    """An IR folder on OpenVINO's CPU plugin, as Ultralytics runs it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._request = compiled(path, threads).create_infer_request()

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch."""
        return self.outputs(batch)[0]

    def outputs(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch and return every output, the detections first."""
        return [output.copy() for output in self._request.infer({0: batch}).to_tuple()]


def behind_split(program: Program) -> frozenset[str]:
    """Layers of 1 by 1 that read a part of a split: the CPU plugin of 2026.4 fails on INT8 weights there.

    Its pass ConvertWeightCompressedConv1x1ToMatmul takes any input to have one output; NNCF's own files fail alike.
    """
    from qexport.planning.planner import weight_array

    readers = (v for v in program.values.values() if v.weight and program.values[v.inputs[0]].operation == "part")
    return frozenset(v.name for v in readers if not any(n > 1 for n in weight_array(program, v.weight).shape[2:]))


def _openvino() -> Any:
    # Set before the import: the package reports its use to its maker otherwise.
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    import openvino

    return openvino


def _number_operations(model: Any) -> None:
    """Name unnamed operations by their position: OpenVINO counts them through the process, and files would differ."""
    for position, op in enumerate(model.get_ordered_ops()):
        if op.get_friendly_name().startswith(f"{op.get_type_name()}_"):
            op.set_friendly_name(f"{op.get_type_name()}_{position}")


def compiled(path: Path, threads: int) -> Any:
    """Compile the IR in `path` for the CPU."""
    core = _openvino().Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    try:
        return core.compile_model(core.read_model(next(path.glob("*.xml"))), "CPU", settings)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ConversionError(f"OpenVINO cannot compile the model ({last})", "report the model") from error
