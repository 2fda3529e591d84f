"""Which versions an ONNX file needs, and the lowest that it can be labelled with."""

from __future__ import annotations

import onnx

from qexport.programs.onnx.file import operator_set

RUNTIMES = {
    11: "1.0",
    12: "1.3",
    13: "1.6",
    14: "1.8",
    15: "1.9",
    16: "1.11",
    17: "1.12",
    18: "1.14",
    19: "1.16",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
}
"""Operator set → the first ONNX Runtime that implements it; all run earlier ones, and read the IR version of its time.

`benchmarks/interop.py --rows` tries each: that version runs an operator of the set, the one before it does not.
"""
OWN = ("", "ai.onnx")
HALF_BY_DEFINITION = frozenset(
    {
        "LayerNormalization",
        "LogSoftmax",
        "ReduceL1",
        "ReduceL2",
        "ReduceLogSumExp",
        "ReduceSumSquare",
        "Softmax",
    }
)
"""Operators that ONNX Runtime has no kernel in FP16 for on CPUs, and computes by their definitions.

Before 1.17 it took the reductions in them to have their axes as attributes, which are inputs from operator set 18 on.
"""
AXES_AS_INPUTS, DEFINITIONS_MENDED = 18, 20
"""Operator sets: the one in which those reductions changed, and that of ONNX Runtime 1.17."""


def label_lowest(proto: onnx.ModelProto) -> None:
    """Write the lowest operator set in which every operator is what it is now, and the IR version of its time."""
    now = operator_set(proto)
    own = (node.op_type for node in proto.graph.node if node.domain in OWN)
    least = max((onnx.defs.get_schema(kind, now, "").since_version for kind in own), default=now)
    for each in proto.opset_import:
        if each.domain in OWN:
            each.version = min(now, max(least, min(RUNTIMES)))
    label_ir(proto)


def label_ir(proto: onnx.ModelProto) -> None:
    """Write the IR version that the operator sets came with: runtimes refuse newer ones than they know."""
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)


def needs_of(proto: onnx.ModelProto) -> dict[str, str]:
    """What a file needs, by name."""
    version = operator_set(proto)
    runs = max(version, DEFINITIONS_MENDED) if version >= AXES_AS_INPUTS and _half_by_definition(proto) else version
    known = {"ONNX Runtime": RUNTIMES[runs]} if runs in RUNTIMES else {}
    others = {each.domain: str(each.version) for each in proto.opset_import if each.domain not in OWN}
    return {**known, "operator set": str(version), **others, "IR version": str(proto.ir_version)}


def _half_by_definition(proto: onnx.ModelProto) -> bool:
    """Whether an operator without a kernel computes in FP16."""
    halves = {
        each.name
        for each in (*proto.graph.value_info, *proto.graph.output)
        if each.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    }
    return any(
        node.op_type in HALF_BY_DEFINITION and halves.intersection(node.output)
        for node in proto.graph.node
        if node.domain in OWN
    )
