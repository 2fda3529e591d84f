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
    19: "1.15",
    20: "1.17",
    21: "1.18",
    22: "1.21",
    23: "1.23",
}
"""Operator set → the first ONNX Runtime that implements it; all run earlier ones, and read the IR version of its time.

Up to 15 as in the project's published version matrix (docs/Versioning.md); the later rows are from its release notes
and were neither looked up again nor tried.
"""
OWN = ("", "ai.onnx")


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
    known = {"ONNX Runtime": RUNTIMES[version]} if version in RUNTIMES else {}
    others = {each.domain: str(each.version) for each in proto.opset_import if each.domain not in OWN}
    return {**known, "operator set": str(version), **others, "IR version": str(proto.ir_version)}
