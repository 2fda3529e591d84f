"""Small float ONNX graphs, one for each way in which runtimes fuse layers, split them, or give them other names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIZE = 16
PIXELS = (1, 3, SIZE, SIZE)


@dataclass
class Graph:
    """Nodes one after the other; `x` is what the next one reads."""

    x: str = "images"
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def constant(self, array: np.ndarray, name: str = "") -> str:
        name = name or f"constant{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weight(self, *shape: int, scale: float = 0.3) -> str:
        return self.constant((self.random.standard_normal(shape) * scale).astype(np.float32))

    def add(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        name = name or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name, **attributes))
        self.x = name
        return name

    def conv(self, channels: int, given: int, kernel: int, source: str = "", bias: bool = True, **kw: Any) -> str:
        group: int = kw.get("group", 1)
        weights = [self.weight(channels, given // group, kernel, kernel)] + ([self.weight(channels)] if bias else [])
        return self.add("Conv", source or self.x, *weights, kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4, **kw)


def picture(*shape: int, seed: int = 5) -> NDArray[np.float32]:
    """An image of random pixels, `PIXELS` by default."""
    made: NDArray[np.float32] = np.random.default_rng(seed).random(shape or PIXELS, dtype=np.float32)
    return made


def saved(graph: Graph, path: Path, opset: int = 18, ir_version: int = 8, outputs: Sequence[str] = ()) -> Path:
    """Write a graph."""
    made = helper.make_graph(
        graph.nodes,
        "made",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, PIXELS)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs or [graph.x]],
        graph.constants,
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    onnx.save(model, path)
    return path


def stem(graph: Graph) -> None:
    graph.conv(16, 3, 3)
    graph.add("Relu", graph.x)


def multiplied(graph: Graph) -> None:
    """PP-LCNet, MobileNetV3: a product with a number for each channel behind the convolution."""
    graph.conv(16, 16, 3)
    graph.add("Mul", graph.x, graph.constant(np.linspace(0.5, 1.5, 16, dtype=np.float32).reshape(1, 16, 1, 1)))


def layer_scale(graph: Graph) -> None:
    """ConvNeXt: a branch is scaled and added."""
    source = graph.x
    graph.conv(16, 16, 3, group=16)
    graph.conv(32, 16, 1)
    graph.add("Relu", graph.x)
    graph.conv(16, 32, 1)
    graph.add("Mul", graph.x, graph.constant(np.full((1, 16, 1, 1), 0.1, np.float32)))
    graph.add("Add", source, graph.x)


def branches(graph: Graph) -> None:
    """RepVGG as it is trained: a 3 by 3, a 1 by 1 and the input, summed."""
    source = graph.x
    three, one = graph.conv(16, 16, 3, source), graph.conv(16, 16, 1, source)
    graph.add("Add", graph.add("Add", three, one), source)
    graph.add("Relu", graph.x)


def scaled_branches(graph: Graph) -> None:
    """The same with a learned factor on each branch, PP-LCNetV4's blocks."""
    source = graph.x
    scaled = [
        graph.add("Mul", graph.conv(16, 16, k, source), graph.constant(np.full((1,), 0.5 + k, np.float32)))
        for k in (3, 1)
    ]
    graph.add("Add", *scaled)
    graph.add("Relu", graph.x)


def strided_point(graph: Graph) -> None:
    """ResNet's projection: 1 by 1 with a stride of 2."""
    graph.conv(32, 16, 1, strides=[2, 2])


def grouped(graph: Graph) -> None:
    graph.conv(32, 16, 3, group=4)
    graph.add("Relu", graph.x)


def depthwise(graph: Graph) -> None:
    graph.conv(16, 16, 5, group=16)
    graph.add("Clip", graph.x, graph.constant(np.array(0, np.float32)), graph.constant(np.array(6, np.float32)))


def transposed(graph: Graph) -> None:
    graph.add("ConvTranspose", graph.x, graph.weight(16, 8, 2, 2), kernel_shape=[2, 2], strides=[2, 2])


def residual(graph: Graph) -> None:
    source = graph.x
    graph.conv(16, 16, 3)
    graph.add("Relu", graph.x)
    graph.conv(16, 16, 3)
    graph.add("Relu", graph.add("Add", source, graph.x))


def classifier(graph: Graph) -> None:
    graph.add("GlobalAveragePool", graph.x)
    graph.add("Flatten", graph.x)
    graph.add("Gemm", graph.x, graph.weight(10, 16), graph.weight(10), transB=1)


def matrix_head(graph: Graph) -> None:
    """TensorFlow's exports: MatMul and Add in place of Gemm."""
    graph.add("GlobalAveragePool", graph.x)
    graph.add("Flatten", graph.x)
    graph.add("MatMul", graph.x, graph.weight(16, 10))
    graph.add("Add", graph.x, graph.weight(10))


def used_twice(graph: Graph) -> None:
    """RetinaNet's heads: one layer reads two levels."""
    weight, bias = graph.weight(8, 16, 3, 3), graph.weight(8)
    one = graph.x
    two = graph.add("MaxPool", one, kernel_shape=[2, 2], strides=[2, 2])
    made = [graph.add("Conv", x, weight, bias, kernel_shape=[3, 3], pads=[1] * 4) for x in (one, two)]
    flat = [graph.add("Reshape", x, graph.constant(np.array([1, 8, -1]))) for x in made]
    graph.add("Concat", *flat, axis=2)


def attention(graph: Graph) -> None:
    """A product of two computed matrices, which nobody plans in integers."""
    flat = graph.add("Reshape", graph.x, graph.constant(np.array([1, 16, -1])))
    rotated = graph.add("Transpose", flat, perm=[0, 2, 1])
    weights = graph.add("Softmax", graph.add("MatMul", flat, rotated), axis=-1)
    graph.add("Reshape", graph.add("MatMul", weights, flat), graph.constant(np.array([1, 16, SIZE, SIZE])))
    graph.conv(16, 16, 1)


def squeeze_excite(graph: Graph) -> None:
    source = graph.x
    graph.add("GlobalAveragePool", source)
    graph.conv(8, 16, 1)
    graph.add("Relu", graph.x)
    graph.conv(16, 8, 1)
    graph.add("Mul", source, graph.add("Sigmoid", graph.x))


def unbiased(graph: Graph) -> None:
    graph.conv(16, 16, 3, bias=False)
    graph.add("Sigmoid", graph.x)


BLOCKS: dict[str, Callable[[Graph], None]] = {
    each.__name__: each
    for each in (
        multiplied,
        layer_scale,
        branches,
        scaled_branches,
        strided_point,
        grouped,
        depthwise,
        transposed,
        residual,
        classifier,
        matrix_head,
        used_twice,
        attention,
        squeeze_excite,
        unbiased,
    )
}


def block(name: str, path: Path) -> Path:
    """A stem, one of `BLOCKS`, and where it still is an image a last layer."""
    graph = Graph()
    stem(graph)
    graph.conv(16, 16, 3)
    graph.add("Relu", graph.x)
    BLOCKS[name](graph)
    if name not in ("classifier", "matrix_head", "used_twice"):
        channels = {"strided_point": 32, "grouped": 32, "transposed": 8}.get(name, 16)
        graph.conv(8, channels, 3)
    return saved(graph, path)
