"""The format OpenVINO IR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qexport.backends.info import OPSET, BackendInfo
from qexport.planning.runtime_profiles import OPENVINO, for_saturating_cpus
from qexport.system.machine import ANY, AVX2

if TYPE_CHECKING:
    from qexport.programs.program import Program


def behind_split(program: Program) -> dict[str, str]:
    """Layers of 1 by 1 that read a part of a split, with the reason why they keep float weights.

    The CPU plugin of 2026.4 fails on INT8 weights there.
    Its pass ConvertWeightCompressedConv1x1ToMatmul takes any input to have one output; NNCF's own files fail alike.
    """
    from qexport.planning.weights import weight_array

    readers = (v for v in program.values.values() if v.weight and program.values[v.inputs[0]].operation == "part")
    found = (v.name for v in readers if not any(n > 1 for n in weight_array(program, v.weight).shape[2:]))
    return dict.fromkeys(found, "OpenVINO's CPU plugin fails on INT8 weights behind a split")


INFO = BackendInfo(
    name="openvino",
    title="OpenVINO",
    suffix="_openvino_model",
    runtime="OpenVINO, CPU plugin",
    precisions=frozenset({"fp32", "fp16", "int8", "int8-dynamic"}),
    profiles={"int8": {ANY: OPENVINO, AVX2: for_saturating_cpus(OPENVINO)}},
    modules=("openvino", "onnx", "onnxscript"),
    packages=("openvino", "onnx"),
    install="qexport[openvino]",
    options=(OPSET,),
    dynamic=True,
    from_onnx=True,
    half_scope="constants",
    float_weights=behind_split,
)
