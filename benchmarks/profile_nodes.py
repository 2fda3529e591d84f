"""What runtimes say of the nodes of a run, in one form: what a node does, in which arithmetic, for how long.

Operators are sorted by what they are there for, by the table below; a convolution also by its kernel, and the first one
of a run apart, as it has three channels only. An operator that is not in the table is "the rest".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDE, POINTWISE, DEPTHWISE, FIRST = "3 × 3 and wider", "1 × 1", "depthwise", "first layer"
LAYERS = "convolutions"
ATTENTION, ELEMENTS = "matrix products, softmax", "activations, sums, products"
MOVES, CONVERSIONS, REST = "moving", "conversions", "decode and the rest"
PARTS = (LAYERS, ATTENTION, ELEMENTS, MOVES, CONVERSIONS, REST)

OF_OPERATOR: Mapping[str, str] = {
    # ONNX Runtime, without the prefixes of its own variants
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm"), LAYERS),
    **dict.fromkeys(("MatMul", "Softmax"), ATTENTION),
    **dict.fromkeys(("Sigmoid", "QuickGelu", "Relu", "LeakyRelu", "Mul", "Add", "Sub", "Div", "Clip"), ELEMENTS),
    **dict.fromkeys(("Concat", "Split", "Slice", "Transpose", "Reshape", "Expand", "Resize", "MaxPool"), MOVES),
    **dict.fromkeys(("AveragePool", "Squeeze", "Unsqueeze", "Upsample"), MOVES),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "ReorderInput", "ReorderOutput", "Cast"), CONVERSIONS),
    # OpenVINO
    **dict.fromkeys(("Convolution", "GroupConvolution", "Deconvolution", "FullyConnected"), LAYERS),
    **dict.fromkeys(("ScaledDotProductAttention", "MHA"), ATTENTION),
    **dict.fromkeys(("Subgraph", "Eltwise", "Multiply", "Subtract", "Divide", "SwishCPU", "PowerStatic"), ELEMENTS),
    **dict.fromkeys(("VariadicSplit", "StridedSlice", "Interpolate", "Pooling", "AvgPool"), MOVES),
    **dict.fromkeys(("FakeQuantize", "Reorder", "Convert"), CONVERSIONS),
    # XNNPACK, as far as its names go before the types
    **dict.fromkeys(("Fully Connected",), LAYERS),
    **dict.fromkeys(("Batch Matrix Multiply",), ATTENTION),
    **dict.fromkeys(("Invalid Unary Op", "HardSwish", "Clamp"), ELEMENTS),
    **dict.fromkeys(("Copy", "Static Reshape", "Max Pooling", "RESIZE_NEAREST_NEIGHBOR", "RESHAPE"), MOVES),
    "QUANTIZE": CONVERSIONS,
    "DEQUANTIZE": CONVERSIONS,
}  # fmt: skip
_VARIANT = re.compile(r"^(QLinear|Nhwc|Fused|Q(?=Gemm))+")
"""What ONNX Runtime puts before the name of an operator that it has several kernels for."""
_OPTIMISED = re.compile(r"(_token_\d+|_nchwc|_nhwc)+$")
"""What its optimiser puts behind the name of a node."""
_TAG = re.compile(r"(?P<operator>[^(]+?)(\s*\((?P<types>[^)]*)\)\s*(?P<kernel>.*))?")
_INTEGER_TYPES = re.compile(r"\b(Q?[SUC]8|QC8W?|QS8|QU8|X8)\b")


@dataclass(frozen=True)
class Node:
    """One node of a run.

    Attributes:
        name: unlike that of any other node of the same run.
        part: one of `PARTS`.
        operator: the runtime's, without what says in which arithmetic it is.
        kernel: of convolutions which kind, such as `WIDE`; else "".
        integer: whether it computes on, or moves, bytes.
        milliseconds: the least of the runs that were looked at: what other programs do makes it longer, never shorter.
    """

    name: str
    part: str
    operator: str
    kernel: str
    integer: bool
    milliseconds: float


def part_of(operator: str) -> str:
    """What an operator is there for."""
    return OF_OPERATOR.get(operator, REST)


def with_first(nodes: Sequence[Node]) -> list[Node]:
    """The nodes of a run in their order, the first convolution marked as such."""
    first = next((i for i, node in enumerate(nodes) if node.part == LAYERS), None)
    return [
        Node(node.name, node.part, node.operator, FIRST, node.integer, node.milliseconds) if i == first else node
        for i, node in enumerate(nodes)
    ]


def of_trace(events: Iterable[Mapping[str, Any]], kernels: Mapping[str, str]) -> list[Node]:
    """Nodes of ONNX Runtime's trace (`SessionOptions.enable_profiling`), of as many runs as there are in it.

    Args:
        events: of the JSON file, durations in microseconds.
        kernels: name of a layer → kind of its kernel: a trace tells no shapes of weights that were packed.
    """
    taken: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event)
    nodes = []
    for name, runs in taken.items():
        facts = runs[0]["args"]
        operator = _VARIANT.sub("", facts["op_name"])
        part = part_of(operator)
        both = [*facts["input_type_shape"][:1], *facts["output_type_shape"][:1]]
        bytes_ = all(kind in ("uint8", "int8") for each in both for kind in each)
        milliseconds = min(event["dur"] for event in runs) / 1e3
        kernel = kernels.get(_OPTIMISED.sub("", name), "") if part == LAYERS else ""
        integer = bytes_ or facts["op_name"].startswith("QLinear")
        nodes.append(Node(name, part, operator, kernel, integer, milliseconds))
    return with_first(nodes)


def of_counters(runs: Sequence[Iterable[tuple[str, str, str, float]]]) -> list[Node]:
    """Nodes of OpenVINO's counters (`PERF_COUNT`), those that were executed.

    Args:
        runs: for each run (name, type of node, kernel, milliseconds), as in `get_profiling_info`.
    """
    taken: dict[str, list[tuple[str, str, float]]] = {}
    for run in runs:
        for name, operator, kernel, milliseconds in run:
            taken.setdefault(name, []).append((operator, kernel, milliseconds))
    nodes = []
    for name, found in taken.items():
        operator, kernel, _ = found[0]
        part, integer = part_of(operator), kernel.rpartition("_")[2] in ("I8", "U8")
        kind = ""
        if part == LAYERS:
            one = "_1x1" in kernel or operator == "FullyConnected"
            kind = DEPTHWISE if operator == "GroupConvolution" else POINTWISE if one else WIDE
            operator = "Convolution"
        nodes.append(Node(name, part, operator, kind, integer, min(each[2] for each in found)))
    return with_first(nodes)


def of_events(runs: Sequence[Iterable[tuple[str, float]]]) -> list[Node]:
    """Nodes of LiteRT's profiler, XNNPACK's among them, which have no names: they are numbered in their order.

    Args:
        runs: for each run (tag, milliseconds) of each operator, the same operators each time.
    """
    columns = list(zip(*runs, strict=True))
    nodes = []
    for number, column in enumerate(columns):
        match = _TAG.fullmatch(column[0][0])
        assert match
        assert {tag for tag, _ in column} == {column[0][0]}
        operator, types, kernel = match["operator"], match["types"] or "", match["kernel"] or ""
        part, kind = part_of(operator), ""
        if part == LAYERS:
            # XNNPACK runs a convolution of 1 by 1 as a product of two matrices.
            one = operator == "Fully Connected" or (kernel.endswith("GEMM") and not kernel.endswith("IGEMM"))
            kind = DEPTHWISE if kernel.endswith("DWConv") else POINTWISE if one else WIDE
            operator = "Convolution"
        integer = bool(_INTEGER_TYPES.search(types)) or operator == "Invalid Unary Op"
        milliseconds = min(each for _, each in column)
        nodes.append(Node(f"{number}", part, operator, kind, integer, milliseconds))
    return with_first(nodes)
