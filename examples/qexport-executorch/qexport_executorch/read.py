"""A `.pte` file read back: what its XNNPACK delegates hold in integers, and the arithmetic of both halves."""

from __future__ import annotations

import importlib.resources
import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport import StoredGraph, StoredTensor

DTYPES = {
    "fp32": "float32",
    "fp16": "float16",
    "qint8": "int8",
    "qcint8": "int8",
    "qint32": "int32",
    "qcint32": "int32",
}
"""XNNPACK's types without "xnn_datatype_" → the plan's."""
CONVOLUTIONS = {"XNNConv2d": (0, 3, 1, 2), "XNNDepthwiseConv2d": (3, 0, 1, 2), "XNNConvTranspose2d": (3, 0, 1, 2)}
"""Kernels with a filter → the file's axes in the order of the program's weight."""
MULTIPLIES = {"aten::bmm", "aten::mm"}
XVALUES, QUANTISED, PER_TENSOR = 8, 2, 2
"""In the delegate's schema: where a graph keeps its tensors, and the types of a quantised tensor and of its scale."""
NO_ID = 2**32 - 1
"""Of a bias that is not there."""


@dataclass
class Found:
    """What the delegates hold, while they are read."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    biases: dict[str, StoredTensor] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    integer_macs: int = 0
    total_macs: int = 0


def read_program(content: bytes, names: Mapping[str, Any], metadata: Mapping[str, Any]) -> StoredGraph:
    """Read a program; `names` is what `write_program` gave."""
    from executorch.exir._serialize._program import deserialize_pte_binary

    file = deserialize_pte_binary(content)
    program, data, found = file.program, file.named_data, Found()
    constants = {key: data.buffers[entry.buffer_index] for key, entry in data.pte_data.items()} if data else {}
    for plan in program.execution_plan:
        for delegate in plan.delegates:
            blob = bytes(program.backend_delegate_data[delegate.processed.index].data)
            _read_delegate(_Delegate(_decompiled(blob), constants), names, found)
        _count_portable(plan, found)
    return StoredGraph(
        found.tensors,
        found.integer_macs,
        found.total_macs,
        dict(sorted(found.operators.items())),
        metadata=metadata,
        biases=found.biases,
    )


def _decompiled(blob: bytes) -> Mapping[str, Any]:
    """A delegate's graph; in front of it is a header that says where it lies."""
    import executorch.backends.xnnpack.serialization as serialization
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(blob[: XNNHeader.EXPECTED_LENGTH])
    graph = blob[header.flatbuffer_offset : header.flatbuffer_offset + header.flatbuffer_size]
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        schema, binary = Path(scratch) / "schema.fbs", Path(scratch) / "graph.bin"
        schema.write_bytes((importlib.resources.files(serialization) / "schema.fbs").read_bytes())
        binary.write_bytes(graph)
        _flatc_decompile(scratch, str(schema), str(binary), ["--raw-binary"])
        found: dict[str, Any] = json.loads((Path(scratch) / "graph.json").read_text(encoding="utf-8"))
    for value, scale in zip(found["xvalues"], _scales(graph), strict=True):
        if scale is not None:
            value["xvalue_union"]["quant_params"]["scale"] = scale
    return found


def _scales(graph: bytes) -> Iterator[float | None]:
    """Of every tensor in turn its one scale, None where there is none: flatc writes six decimals of it."""
    from flatbuffers import encode, table
    from flatbuffers import number_types as numbers

    def inner(outer: Any, kind: int, slot: int) -> tuple[int, Any]:
        """A union of a table: which of its types it is, and that."""
        place, found = outer.Offset(kind), table.Table(graph, 0)
        if place:
            outer.Union(found, outer.Offset(slot))
        return (outer.Get(numbers.Uint8Flags, outer.Pos + place) if place else 0), found

    root = table.Table(graph, encode.Get(numbers.UOffsetTFlags.packer_type, graph, 0))
    values = root.Offset(XVALUES)
    for place in range(root.VectorLen(values)):
        value = table.Table(graph, root.Indirect(root.Vector(values) + 4 * place))
        kind, tensor = inner(value, 4, 6)
        quant, parameters = inner(tensor, 6, 8) if kind == QUANTISED else (0, value)
        scale = parameters.Offset(4) if quant == PER_TENSOR else 0
        yield parameters.Get(numbers.Float32Flags, parameters.Pos + scale) if scale else None


@dataclass(frozen=True)
class _Delegate:
    graph: Mapping[str, Any]
    constants: Mapping[str, Any]

    def nodes(self) -> Iterator[tuple[str, Mapping[str, Any], int]]:
        """Kernel, its arguments, and its debug handle."""
        for node in self.graph["xnodes"]:
            yield node["xnode_union_type"], node["xnode_union"], node["debug_handle"]

    def value(self, number: int) -> Mapping[str, Any]:
        """The tensor of an identifier, which is its place."""
        found: Mapping[str, Any] = self.graph["xvalues"][number]["xvalue_union"]
        return found

    def shape(self, number: int) -> list[int]:
        """As the kernel sees it."""
        value = self.value(number)
        dims: list[int] = value.get("tensor_value", value)["dims"]
        return dims

    def is_integer(self, number: int) -> bool:
        """Whether a tensor is quantised."""
        return "quant_params" in self.value(number)

    def tensor(self, number: int) -> StoredTensor:
        """Type, scale and zero point, and the integers of a constant in the file's order."""
        value = self.value(number)
        inner, quant = value.get("tensor_value", value), value.get("quant_params")
        dtype = DTYPES.get(inner["datatype"].removeprefix("xnn_datatype_"), inner["datatype"])
        if quant is None:
            return StoredTensor(dtype, (), ())
        if "scale_buffer_idx" in quant:
            scales = tuple(map(float, self._constant(quant["scale_buffer_idx"], np.float32)))
            zero_points = (0,) * len(scales)
        else:
            scales, zero_points = (float(np.float32(quant["scale"])),), (quant["zero_point"],)
        place = inner["constant_buffer_idx"]
        integers = self._constant(place, np.dtype(dtype)).reshape(inner["dims"]) if place else None
        return StoredTensor(dtype, scales, zero_points, integers)

    def _constant(self, place: int, dtype: Any) -> NDArray[Any]:
        content = bytes(self.constants[self.graph["constant_data"][place]["named_key"]])
        return np.frombuffer(content[: self.graph["constant_data"][place]["size"]], dtype)


def _read_delegate(delegate: _Delegate, names: Mapping[str, Any], found: Found) -> None:
    values = names["values"]
    for kind, node, handle in delegate.nodes():
        found.operators[kind] += 1
        name = values[handle - 1] if 0 < handle <= len(values) else ""
        if name and "output_id" in node:
            given = delegate.tensor(node["output_id"])
            if given.scale or name not in found.tensors:
                found.tensors[name] = given
        if "filter_id" in node:
            _read_layer(delegate, kind, node, names["layers"].get(name), found)
        macs = _macs(delegate, kind, node)
        found.total_macs += macs
        if "filter_id" in node and delegate.is_integer(node["input1_id"]) and delegate.is_integer(node["filter_id"]):
            found.integer_macs += macs


def _read_layer(
    delegate: _Delegate, kind: str, node: Mapping[str, Any], layer: tuple[str, str] | None, found: Found
) -> None:
    """The weight of a layer in the program's order of axes, and its bias."""
    if layer is None:
        return
    weight, (name, path) = delegate.tensor(node["filter_id"]), layer
    if weight.integers is not None and kind in CONVOLUTIONS:
        integers = weight.integers.transpose(CONVOLUTIONS[kind])
        weight = StoredTensor(weight.dtype, weight.scale, weight.zero_point, integers)
    found.tensors[path] = weight
    if node["bias_id"] != NO_ID:
        bias = delegate.tensor(node["bias_id"])
        if bias.integers is not None:
            found.biases[name] = bias


def _macs(delegate: _Delegate, kind: str, node: Mapping[str, Any]) -> int:
    """Multiply-accumulates for one image."""
    if kind == "XNNConvTranspose2d":  # every element of the input meets all of the rest
        return prod(delegate.shape(node["input1_id"])) * prod(delegate.shape(node["filter_id"])[:3])
    if kind in CONVOLUTIONS:
        kernel = node["kernel_height"] * node["kernel_width"] * node["group_input_channels"]
        return prod(delegate.shape(node["output_id"])) * int(kernel)
    if kind == "XNNFullyConnected":
        return prod(delegate.shape(node["output_id"])) * delegate.shape(node["filter_id"])[-1]
    if kind == "XNNBatchMatrixMultiply":
        return prod(delegate.shape(node["output_id"])) * delegate.shape(node["input1_id"])[-1]
    if kind == "XNNScaledDotProductAttention":
        query, keys, values = (delegate.shape(node[name]) for name in ("query_id", "key_id", "value_id"))
        return prod(query[:-1]) * keys[-2] * (query[-1] + values[-1])
    return 0


def _count_portable(plan: Any, found: Found) -> None:
    """Kernels beside the delegates, and what they multiply."""
    for chain in plan.chains:
        for instruction in chain.instructions:
            call = instruction.instr_args
            if not hasattr(call, "op_index"):
                continue
            operator = plan.operators[call.op_index].name
            found.operators[operator] += 1
            shapes = [list(getattr(plan.values[index].val, "sizes", [])) for index in call.args]
            if operator in MULTIPLIES:
                found.total_macs += prod(shapes[-1]) * shapes[0][-1]
            elif operator == "aten::convolution":
                found.total_macs += prod(shapes[-1]) * prod(shapes[1][1:])
