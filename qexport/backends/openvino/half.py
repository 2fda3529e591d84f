"""OpenVINO's compression to FP16, but for the constants of some layers.

OpenVINO 2026.4 itself keeps a constant in FP32 where three quarters of it do not fit, and cuts what does not fit at
65504 in all others without a word. Its mark for constants that are to be left alone cannot be set from Python.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

BARE = "/WithoutBiases"
"""What OpenVINO's ONNX reader puts behind the name of a layer whose bias is an operation of its own."""


def compress(model: Any, full: frozenset[str]) -> None:
    """Compress the float constants of a model, read from ONNX, that no operation in `full` has."""
    from openvino import opset13
    from openvino._offline_transformations import compress_model_transformation

    kept = {constant.get_friendly_name(): constant.data.copy() for constant in _constants(model, full)}
    compress_model_transformation(model)
    for op in model.get_ordered_ops():
        if op.get_type_name() != "Convert" or op.input_value(0).get_node().get_type_name() != "Constant":
            continue
        name = op.input_value(0).get_node().get_friendly_name().removesuffix("_compressed")
        if name in kept:
            constant = opset13.constant(kept[name])
            constant.set_friendly_name(name)
            op.output(0).replace(constant.output(0))


def _constants(model: Any, full: frozenset[str]) -> Iterator[Any]:
    for op in model.get_ordered_ops():
        if op.get_friendly_name().removesuffix(BARE) in full:
            for port in op.input_values():
                yield from _behind(port.get_node())


def _behind(node: Any) -> Iterator[Any]:
    """The constant that a node is, or is made of without arithmetic."""
    if node.get_type_name() == "Constant" and node.get_element_type().to_string() == "f32":
        yield node
    elif node.get_type_name() in ("Reshape", "Unsqueeze", "Squeeze", "Transpose", "Convert"):
        yield from _behind(node.input_value(0).get_node())
