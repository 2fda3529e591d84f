"""Read an IR back: what is stored in integers, and in which arithmetic the CPU plugin runs what it compiled.

The plugin renames layers when it fuses them, so what runs is counted in its own graph, from the shapes that are there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.lowering.stored import StoredTensor

MAC_OPERATIONS = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
}
MAC_LAYERS = {"Convolution", "Deconvolution", "MatMul", "FullyConnected"}
"""The plugin's kinds of layers that multiply and accumulate."""
MOVERS = {
    "Concat",
    "Interpolate",
    "MaxPool",
    "Reshape",
    "Slice",
    "Split",
    "Squeeze",
    "StridedSlice",
    "Transpose",
    "Unsqueeze",
    "VariadicSplit",
}
"""Operations whose results hold only elements of their first inputs, or of all of a concatenation's."""
ARITHMETIC = {"i8": "INT8", "u8": "INT8", "bf16": "BF16", "f16": "FP16", "f32": "FP32"}
"""How the names of the plugin's kernels end → what they compute in."""
DEQUANTISED = ".dequantised"
RELEASES = {
    8: "2022.1",
    9: "2022.2",
    10: "2022.3",
    11: "2023.0",
    12: "2023.1",
    13: "2023.2",
    14: "2024.0",
    15: "2024.5",
}
"""Operation set → the first release that has it (docs.openvino.ai, "Available Operation Sets")."""
FIRST_OF_IR = 8
"""The operation set of 2022.1, which is the first to read IR version 11."""
_OPERATION_SET = re.compile(r'version="opset(\d+)"')
_VERSION = re.compile(r'<net [^>]*version="(\d+)"')


def stored_tensors(model: Any) -> dict[str, StoredTensor]:
    """Every dequantisation in the IR, by the name of the tensor that it gives back."""
    found = {}
    for op in model.get_ops():
        name = op.get_friendly_name()
        if op.get_type_name() == "Multiply" and name.endswith(DEQUANTISED):
            found[name.removesuffix(DEQUANTISED).split("/")[0]] = _dequantisation(op)
    return found


def stored_macs(model: Any) -> tuple[int, int]:
    """Multiply-accumulates for one image: of layers with an input and a constant weight in integers, and of all."""
    integer = total = 0
    for op in model.get_ops():
        if op.get_type_name() in MAC_OPERATIONS:
            macs = _macs(op)
            total += macs
            given, weight = (port.get_node() for port in op.input_values()[:2])
            if _in_integers(given) and _in_integers(weight) and _is_constant(weight):
                integer += macs
    return integer, total


def executed_macs(compiled: Any, total: int) -> dict[str, int]:
    """Type of arithmetic → multiply-accumulates for one image, counted in the graph that the plugin runs.

    Args:
        total: of the file. What the plugin has in kernels of several layers (attention) is not told apart there: it is
            the rest, and counts as the type that the model was compiled for.
    """
    found: Counter[str] = Counter()
    for op in compiled.get_runtime_model().get_ordered_ops():
        facts = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        if facts.get("layerType") in MAC_LAYERS:
            found[_arithmetic(facts)] += _layer_macs(facts["layerType"], op)
    rest = total - sum(found.values())
    if rest > 0:
        found[float_type(compiled)] += rest
    return {kind: count for kind, count in sorted(found.items()) if count}


def float_type(compiled: Any) -> str:
    """What floats are computed in where the plugin has a kernel for it."""
    return ARITHMETIC.get(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name(), "FP32")


def needs_of(xml: str) -> dict[str, str]:
    """What an IR needs, by name, from the text of its model.xml."""
    newest = max((int(number) for number in _OPERATION_SET.findall(xml)), default=1)
    version = _VERSION.search(xml)
    known = {"OpenVINO": RELEASES[max(newest, FIRST_OF_IR)]} if max(newest, FIRST_OF_IR) in RELEASES else {}
    return {**known, "operation set": f"opset{newest}", "IR version": version[1] if version else ""}


def _arithmetic(facts: Mapping[str, str]) -> str:
    kernel = facts["primitiveType"].lower().rpartition("_")[2]
    return ARITHMETIC.get(kernel) or ARITHMETIC.get(facts["runtimePrecision"].lower(), "FP32")


def _layer_macs(kind: str, op: Any) -> int:
    """Multiply-accumulates of one layer of the plugin's graph, whose inputs may be padded with fused ones."""
    given, weight, result = (_sizes(port) for port in (op.input(0), op.input(1), op.output(0)))
    if kind in ("MatMul", "FullyConnected"):
        # Either side may be transposed: (m k)(k n) / (m n) is k² all the same.
        (m_k, k_n), m_n = (int(np.prod(sizes[-2:])) for sizes in (given, weight)), int(np.prod(result[-2:]))
        depth = weight[-1] if kind == "FullyConnected" else round((m_k * k_n / m_n) ** 0.5)
        return int(np.prod(result)) * depth
    # Grouped weights have one dimension more than the image: (groups, out, in, …).
    per_element = int(np.prod(weight[2 if len(weight) > len(given) else 1 :]))
    return int(np.prod(given if kind == "Deconvolution" else result)) * per_element


def _macs(op: Any) -> int:
    """Multiply-accumulates of one operation of the IR; a dimension that is open counts as one."""
    kind = op.get_type_name()
    elements = int(np.prod(_sizes(op.input_value(0) if "Backprop" in kind else op.output(0))))
    shape = _sizes(op.input_value(0) if kind == "MatMul" else op.input_value(1))
    # Weights are (out, in, …), with groups (groups, out, in, …); transposed ones the other way round.
    depth = shape[-1] if kind == "MatMul" else int(np.prod(shape[2 if kind.startswith("Group") else 1 :]))
    if kind == "MatMul" and op.get_attributes()["transpose_a"]:
        depth = shape[-2]
    return elements * depth


def _in_integers(node: Any) -> bool:
    """Whether what a node gives is dequantised, or moved from what is."""
    if node.get_type_name() in MOVERS:
        sources = node.input_values() if node.get_type_name() == "Concat" else node.input_values()[:1]
        return all(_in_integers(port.get_node()) for port in sources)
    name = str(node.get_friendly_name()).split("/")[0]
    return str(node.get_type_name()) == "Multiply" and name.endswith(DEQUANTISED)


def _is_constant(node: Any) -> bool:
    while node.get_input_size():
        node = node.input_value(0).get_node()
    return str(node.get_type_name()) == "Constant"


def _sizes(port: Any) -> list[int]:
    return [size.get_length() if size.is_static else 1 for size in port.get_partial_shape()]


def _dequantisation(multiply: Any) -> StoredTensor:
    scale = _constant(multiply.input_value(1).get_node())
    source = multiply.input_value(0).get_node()
    zero_point = np.zeros(scale.shape, dtype=np.int64)
    if source.get_type_name() == "Subtract":
        zero_point = _constant(source.input_value(1).get_node())
        source = source.input_value(0).get_node()
    integers = source.input_value(0) if source.get_type_name() == "Convert" else source.output(0)
    constant = integers.get_node()
    return StoredTensor(
        integers.get_element_type().to_dtype().name,
        tuple(float(s) for s in scale.reshape(-1)),
        tuple(int(z) for z in zero_point.reshape(-1)),
        constant.data.copy() if constant.get_type_name() == "Constant" else None,
    )


def _constant(node: Any) -> NDArray[Any]:
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    array: NDArray[Any] = node.data.copy()
    return array
