"""The simulated program as an ONNX file with Q/DQ pairs, run by ONNX Runtime with fusion off."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qexport.lowering.onnx.write import write_onnx
from qexport.planning.plan import QuantPlan
from qexport.programs.onnx.session import OPSET, OnnxRunner
from qexport.programs.program import Program


class OnnxSimulation:
    """Callable: images to outputs, every quantised value passing through its integers and computed in float."""

    def __init__(self, program: Program, plan: QuantPlan) -> None:
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            path = Path(scratch) / "simulated.onnx"
            write_onnx(program, plan, {}, path, OPSET, half=False)
            self._runner = OnnxRunner(path, threads=1, fused=False)

    def __call__(self, images: Tensor, /) -> Any:
        """Run once."""
        found = self._runner(np.ascontiguousarray(images.numpy()))
        made = tuple(torch.from_numpy(output) for output in found)
        return made[0] if len(made) == 1 else made
