"""The format "archive": `model.onnx` and `metadata.json` in a ZIP file, run by ONNX Runtime as it stands."""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qexport import BackendInfo, Option, OwnScale, RuntimeProfile, SharedScale, StoredGraph, check_precision

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qexport import Lowering

PROFILE = RuntimeProfile(
    "archive",
    operations={
        **dict.fromkeys(("conv", "mul", "add"), OwnScale()),
        **dict.fromkeys(("cat", "part", "max_pool", "resize", "reshape", "transpose"), SharedScale()),
    },
)
INFO = BackendInfo(
    name="archive",
    title="Archive",
    suffix=".qzip",
    runtime="ONNX Runtime, nothing fused",
    precisions=frozenset({"fp32", "int8"}),
    profiles={"int8": {"any": PROFILE}},
    modules=("onnx", "onnxruntime", "onnxscript"),
    packages=("qexport-archive", "onnxruntime"),
    install="qexport-archive",
    options=(Option("level", int, 6, "of compression, 0 to 9", tuple(range(10))),),
)
MODEL, METADATA = "model.onnx", "metadata.json"
DATE = (1980, 1, 1, 0, 0, 0)
OPSET = 18


class ArchiveBackend:
    """Writes the graph with the plan's Q/DQ pairs."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write the archive; members have no date, so that equal requests give equal files."""
        from qexport.lowering.onnx.write import write_onnx

        check_precision(self.info, request.target.precision)
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(scratch) / MODEL
            write_onnx(request.program, request.plan, {}, model, OPSET, half=False)
            members = {MODEL: model.read_bytes(), METADATA: json.dumps(dict(request.metadata)).encode()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                member = zipfile.ZipInfo(name, DATE)
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, content, compresslevel=request.options["level"])

    def read(self, path: Path) -> StoredGraph:
        """Read Q/DQ pairs and weights back."""
        import onnx
        import onnx_ir as ir

        from qexport.lowering.onnx.read import read_onnx

        found = read_onnx(ir.serde.deserialize_model(onnx.load_from_string(member(path, MODEL))))
        return StoredGraph(
            found.tensors,
            sum(found.macs[name] for name in found.integer),
            sum(found.macs.values()),
            found.operators,
            complete=True,
            metadata=json.loads(member(path, METADATA)),
        )

    def runner(self, path: Path, threads: int) -> ArchiveRunner:
        """Load the archive."""
        return ArchiveRunner(path, threads)


class ArchiveRunner:
    """An archive in ONNX Runtime, every operator as it stands."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session: Any = onnxruntime.InferenceSession(member(path, MODEL), options, ["CPUExecutionProvider"])

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch."""
        (given,) = self._session.get_inputs()
        return tuple(self._session.run(None, {given.name: np.ascontiguousarray(batch)}))


def member(path: Path, name: str) -> bytes:
    """One file of an archive."""
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)
