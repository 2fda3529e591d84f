"""Which operator sets versions of ONNX Runtime run, against the table that files are labelled by.

`benchmarks/interop.py --rows --python PYTHON …`, of environments from the oldest to the newest version: each first
version of the table and one before it, so that both sides of a row are seen.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OPERATORS: Mapping[int, tuple[str, Mapping[str, Any], Mapping[str, Any]]] = {
    11: ("Clip", {}, {}),
    12: ("MaxPool", {"kernel_shape": [2, 2]}, {}),
    13: ("Softmax", {"axis": 1}, {}),
    14: ("Relu", {}, {}),
    15: ("BatchNormalization", {}, dict.fromkeys("abcd", [1.0] * 4)),
    16: ("LeakyRelu", {}, {}),
    17: ("LayerNormalization", {}, {"a": [1.0] * 8}),
    18: ("ReduceMax", {}, {"axes": [1]}),
    19: ("AveragePool", {"kernel_shape": [2, 2], "dilations": [2, 2]}, {}),
    20: ("Gelu", {}, {}),
    21: ("Reshape", {}, {"shape": [1, 4, 64]}),
    22: ("Conv", {}, {"weights": [[[[1.0]]] * 4] * 2}),
    23: ("Reshape", {}, {"shape": [1, 4, 64]}),
}
"""Operator set → an operator that changed or came with it, its attributes, and its constants."""
RUN = """
import sys
import numpy as np
import onnxruntime
version, options = onnxruntime.__version__, onnxruntime.SessionOptions()
options.log_severity_level = 4
named = {"providers": ["CPUExecutionProvider"]} if hasattr(onnxruntime, "get_available_providers") else {}
ran = []
for path in sys.argv[1:]:
    try:
        onnxruntime.InferenceSession(path, options, **named).run(None, {"x": np.ones((1, 4, 8, 8), np.float32)})
        ran.append("1")
    except Exception:  # versions refuse in many ways: that they do is what is asked
        ran.append("0")
print(version, "".join(ran))
"""


def tried(pythons: Sequence[str]) -> int:
    """Print a line for each version; return 1 where one runs what the table denies, or not what it promises."""
    from packaging.version import Version

    from qexport.lowering.onnx.needs import RUNTIMES

    wrong = 0
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        paths = [saved(number, Path(scratch)) for number in RUNTIMES]
        for python in pythons:
            done = subprocess.run([python, "-c", RUN, *map(str, paths)], capture_output=True, text=True, check=True)
            version, ran = done.stdout.split()
            runs = {number for number, each in zip(RUNTIMES, ran, strict=True) if each == "1"}
            says = {number for number, first in RUNTIMES.items() if Version(version) >= Version(first)}
            differ = sorted(runs ^ says)
            print(f"ONNX Runtime {version}: runs {min(runs)} to {max(runs)}, but for the table: {differ or 'nothing'}")
            wrong += bool(differ)
    return 1 if wrong else 0


def saved(number: int, folder: Path) -> Path:
    """A file of one operator of a set, with the IR version of its time."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind, attributes, constants = OPERATORS[number]
    arrays = {name: np.array(values) for name, values in constants.items()}
    held = [
        numpy_helper.from_array(each.astype(np.float32) if each.dtype == np.float64 else each, name)
        for name, each in arrays.items()
    ]
    node = helper.make_node(kind, ["x", *arrays], ["y"], **attributes)
    ends = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])]
    given = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    sets = [helper.make_opsetid("", number)]
    graph = helper.make_graph([node], "g", ends, [given], held)
    ir_version = helper.find_min_ir_version_for(sets)
    model = onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=sets, ir_version=ir_version))
    onnx.save(model, folder / f"{number}.onnx")
    return folder / f"{number}.onnx"
