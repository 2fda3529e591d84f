"""What formats and precisions are called where people read of them."""

from __future__ import annotations

FORMATS = {
    "tflite": "TFLite",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "edgetpu": "Edge TPU",
}


def format_name(name: str) -> str:
    """The name of a format as its makers write it; what nobody here knows is called what it calls itself."""
    return FORMATS.get(name, name)


def precision_name(precision: str) -> str:
    """`int8-full` → INT8 full."""
    first, *rest = precision.split("-")
    return " ".join([first.upper(), *rest])
