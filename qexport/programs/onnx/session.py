"""ONNX Runtime sessions: how ONNX files are run, as programs and as artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.errors import ConversionError, first_line

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


OPSET = 18
"""The newest whose operators ONNX Runtime has on every execution provider (Resize-19 is missing on CUDA)."""


class OnnxRunner:
    """An `.onnx` file in ONNX Runtime on the CPU."""

    def __init__(self, path: Path, threads: int, fused: bool = True) -> None:
        self._session = session(path, threads, fused=fused)
        self._input = self._session.get_inputs()[0].name

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch and return every output, the detections first."""
        return tuple(self._session.run(None, {self._input: batch}))


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
        reason = f"ONNX Runtime cannot load the graph ({first_line(error)})"
        raise ConversionError(reason, "try another --opset") from error
