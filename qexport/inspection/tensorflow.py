"""TensorFlow's own interpreter with its reference kernels: a second opinion on `.tflite` files.

Not a format: `qexport verify --runtime tensorflow` runs files with it that the tflite backend has written.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qexport.errors import MissingExtraError


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
