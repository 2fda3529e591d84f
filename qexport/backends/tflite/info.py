"""The format TFLite."""

from __future__ import annotations

from qexport.backends.info import BackendInfo, Option
from qexport.detections import file_form
from qexport.detections.file_form import LAYOUTS
from qexport.planning.runtime_profiles import TFLITE, TFLITE_INT16, TFLITE_INTEGER
from qexport.system.machine import ANY

IO = Option("io", str, "int8", "type of what integer-only files take and give", ("int8", "uint8"))
LAYOUT = Option(
    file_form.LAYOUT, str, None, "order of axes of images; None for nchw, of integer-only files nhwc", LAYOUTS
)
NORMALISED = Option(file_form.NORMALISED, bool, False, "boxes in 0..1 where rows come out, too")

INFO = BackendInfo(
    name="tflite",
    title="TFLite",
    suffix=".tflite",
    runtime="LiteRT interpreter, XNNPACK where it has a kernel, built-in kernels elsewhere",
    precisions=frozenset({"fp32", "fp16", "int8", "int8-dynamic", "int8-full", "w8a16"}),
    profiles={"int8": {ANY: TFLITE}, "int8-full": {ANY: TFLITE_INTEGER}, "w8a16": {ANY: TFLITE_INT16}},
    modules=("litert_torch", "ai_edge_litert", "ai_edge_quantizer", "torchao", "flatbuffers"),
    packages=("litert-torch", "ai-edge-litert", "ai-edge-quantizer", "tflite-micro"),
    install="qexport[tflite]",
    options=(IO, LAYOUT, NORMALISED),
    family="tflite",
    offloadable=True,
    half_scope="weights",
)
