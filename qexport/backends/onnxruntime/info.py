"""The format ONNX."""

from __future__ import annotations

from qexport.backends.info import OPSET, BackendInfo
from qexport.planning.runtime_profiles import ONNXRUNTIME, ONNXRUNTIME_ARM, for_saturating_cpus
from qexport.programs.onnx.session import PACKAGES
from qexport.system.machine import ANY, ARM, AVX2

INFO = BackendInfo(
    name="onnx",
    title="ONNX",
    suffix=".onnx",
    runtime="ONNX Runtime, CPU execution provider",
    precisions=frozenset({"fp32", "fp16", "int8", "int8-dynamic"}),
    profiles={"int8": {ANY: ONNXRUNTIME, ARM: ONNXRUNTIME_ARM, AVX2: for_saturating_cpus(ONNXRUNTIME)}},
    modules=PACKAGES,
    packages=("onnx", "onnxruntime"),
    install="qexport[onnx]",
    options=(OPSET,),
    dynamic=True,
    from_onnx=True,
    half_scope="arithmetic",
)
