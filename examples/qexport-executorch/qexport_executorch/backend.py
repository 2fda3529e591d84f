"""The format "executorch": a folder with `model.pte` and Ultralytics' `metadata.yaml`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import yaml

from qexport import StoredGraph, check_precision
from qexport_executorch.info import INFO
from qexport_executorch.quiet import silence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qexport import Lowering

MODEL, METADATA, NAMES = "model.pte", "metadata.yaml", "names.json"


class ExecuTorchBackend:
    """Writes folders that ExecuTorch and Ultralytics load."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write the program, what Ultralytics reads of it, and the names of its values."""
        from qexport_executorch.write import write_program

        check_precision(self.info, request.target.precision)
        content, names = write_program(request)
        path.mkdir()
        (path / MODEL).write_bytes(content)
        (path / NAMES).write_text(json.dumps(names), encoding="utf-8")
        (path / METADATA).write_text(yaml.safe_dump(dict(request.metadata), sort_keys=False), encoding="utf-8")

    def read(self, path: Path) -> StoredGraph:
        """Read types, scales and integers from the delegates."""
        from qexport_executorch.read import read_program

        metadata = yaml.safe_load((path / METADATA).read_text(encoding="utf-8"))
        names = json.loads((path / NAMES).read_text(encoding="utf-8"))
        with silence():
            return read_program((path / MODEL).read_bytes(), names, metadata)

    def runner(self, path: Path, threads: int) -> ExecuTorchRunner:
        """Load the program."""
        return ExecuTorchRunner(path / MODEL, threads)


class ExecuTorchRunner:
    """A program in ExecuTorch's runtime."""

    def __init__(self, path: Path, threads: int) -> None:
        from qexport_executorch.threads import Loaded

        self._run = Loaded(path, threads)

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch."""
        import torch

        outputs = self._run([torch.from_numpy(np.ascontiguousarray(batch))])
        return tuple(output.numpy() for output in outputs)
