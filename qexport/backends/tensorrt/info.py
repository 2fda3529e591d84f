"""The format TensorRT: a graph that engines are built from."""

from __future__ import annotations

from pathlib import Path

from qexport.backends.info import OPSET, BackendInfo, Engine, Option
from qexport.planning.runtime_profiles import TENSORRT
from qexport.programs.onnx.session import PACKAGES
from qexport.system.machine import ANY

BUILD = (
    Option("workspace", float, None, "GiB that TensorRT may use while it builds; None for its own choice"),
    Option("timing_cache", Path, None, "file that TensorRT keeps kernel timings in"),
    Option("most_images", int, 16, "largest batch of an engine whose batch is open; the smallest is 1"),
    Option("likely_images", int, 1, "the batch that such an engine is tuned for"),
    Option("dla", int, None, "DLA core of a Jetson to build for (TensorRT 10 only)"),
)
"""Fields of `qexport.backends.tensorrt.build_engine.Options`."""

ENGINE = Engine(".engine", "TensorRT", "tensorrt", "pip install tensorrt")

INFO = BackendInfo(
    name="tensorrt",
    title="TensorRT",
    suffix="_tensorrt.onnx",
    runtime="ONNX Runtime without fusion, in place of TensorRT",
    precisions=frozenset({"fp32", "fp16", "int8"}),
    profiles={"int8": {ANY: TENSORRT}},
    modules=PACKAGES,
    packages=("onnx", "onnxruntime", "tensorrt"),
    install="qexport[tensorrt]",
    options=(OPSET, *BUILD),
    engine=ENGINE,
    dynamic=True,
    from_onnx=True,
    timed=False,
    half_scope="arithmetic",
)
