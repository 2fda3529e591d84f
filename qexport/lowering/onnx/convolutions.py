"""A stack of convolutions as an ONNX graph, in FP32, FP16 or between Q/DQ pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qexport.lowering.convolutions import ACTIVATION_SCALE, KERNEL, ConvolutionStack

if TYPE_CHECKING:
    import onnx

OPSET = 18
IR_VERSION = 10
"""The newest that every ONNX Runtime reads that has this operator set's kernels for integers."""
INPUT, OUTPUT = "images", "result"


def convolution_model(stack: ConvolutionStack, precision: str) -> onnx.ModelProto:
    """Build the graph; its input and output, (1, channels, height, width), are float32.

    Args:
        precision: "fp32", "fp16", or "int8": unsigned activations, signed weights with a scale for each channel.
    """
    from onnx import TensorProto, helper

    graph = _Graph()
    value = graph.add("Cast", [INPUT], to=TensorProto.FLOAT16) if precision == "fp16" else INPUT
    for integers in stack.weights():
        weight = _weight(graph, stack, integers, precision)
        given = graph.pair(value) if precision == "int8" else value
        value = graph.add("Conv", [given, weight], kernel_shape=[KERNEL] * 2, pads=[KERNEL // 2] * 4)
        value = graph.add("Relu", [value])
    value = graph.pair(value) if precision == "int8" else value
    graph.add("Cast", [value], OUTPUT, to=TensorProto.FLOAT)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, stack.batch().shape) for name in (INPUT, OUTPUT)]
    made = helper.make_graph(graph.nodes, "convolutions", ends[:1], ends[1:], graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


class _Graph:
    """Nodes and constants, named by their number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, kind: str, given: list[str], result: str = "", **attributes: Any) -> str:
        """Append a node; return the name of its result."""
        from onnx import helper

        name = result or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, given, [name], name=name, **attributes))
        return name

    def constant(self, array: Any) -> str:
        """Append a constant; return its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def pair(self, value: str) -> str:
        """Append a Q/DQ pair."""
        step = [self.constant(np.float32(ACTIVATION_SCALE)), self.constant(np.uint8(0))]
        return self.add("DequantizeLinear", [self.add("QuantizeLinear", [value, *step]), *step])


def _weight(graph: _Graph, stack: ConvolutionStack, integers: Any, precision: str) -> str:
    if precision != "int8":
        kind = np.float16 if precision == "fp16" else np.float32
        return graph.constant((integers * np.float32(stack.weight_scale)).astype(kind))
    scales = np.full(stack.channels, stack.weight_scale, dtype=np.float32)
    step = graph.constant(scales), graph.constant(np.zeros(stack.channels, dtype=np.int8))
    return graph.add("DequantizeLinear", [graph.constant(integers), *step], axis=0)
