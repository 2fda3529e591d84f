"""TensorFlow's own interpreter with its reference kernels: a second opinion on `.tflite` files.

Not a format: `qexport verify --runtime tensorflow` runs files with it that the tflite backend has written.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.backends.tflite.backend import interpreter, layer_output, runner_of
from qexport.backends.tflite.file import first_integer_layer
from qexport.decode.metadata import tflite_metadata
from qexport.errors import MissingExtraError


def reference_runner(path: Path) -> Runner:
    """What runs a file of qexport on the reference kernels.

    Raises:
        MissingExtraError: TensorFlow is not installed.
    """
    return runner_of(reference_interpreter(path), tflite_metadata(path))


def first_layer_steps(path: Path, batch: NDArray[np.float32], threads: int) -> tuple[str, int]:
    """Run a file up to its first convolution in integers, on LiteRT and on the reference kernels.

    Args:
        batch: (1, channels, height, width) in 0..1.

    Returns:
        The layer's name, "" where there is none, and by how many steps the two sides' integers differ at most.
    """
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        cut = Path(scratch) / "first.tflite"
        name = first_integer_layer(path, cut)
        if not name:
            return "", 0
        one, other = (layer_output(load, batch) for load in (interpreter(cut, threads), reference_interpreter(cut)))
    return name, int(np.abs(one.astype(np.int64) - other.astype(np.int64)).max())


def reference_interpreter(path: Path) -> Any:
    """Load a file into TensorFlow's interpreter, without XNNPACK.

    Raises:
        MissingExtraError: TensorFlow is not installed.
    """
    lite = _lite()
    reference = lite.experimental.OpResolverType.BUILTIN_REF
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is to be replaced by LiteRT's, which is what it is compared with
        loaded = lite.Interpreter(str(path), experimental_op_resolver_type=reference, num_threads=2)
    loaded.allocate_tensors()
    return loaded


def gpu_delegate_findings(path: Path) -> str:
    """What TensorFlow's analyzer says of the GPU delegate and the file: "" where it takes the whole graph.

    Raises:
        MissingExtraError: TensorFlow is not installed.
    """
    lite = _lite()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        lite.experimental.Analyzer.analyze(model_path=str(path), gpu_compatibility=True)
    lines = [line.strip() for line in printed.getvalue().splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if "GPU COMPATIBILITY WARNING" in line))


def _lite() -> Any:
    if find_spec("tensorflow") is None:
        raise MissingExtraError("the runtime tensorflow is not installed", "pip install 'qexport[tensorflow]'")
    import tensorflow

    return tensorflow.lite
