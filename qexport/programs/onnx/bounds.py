"""What an ONNX file may expand to, computed from what it says before anything is expanded."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx_ir as ir
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from qexport.errors import InputError

MAX_PROTO = 2**31
"""Bytes that Protocol Buffers read and write."""
MAX_SHARING = 4
"""Times its size that a file of weights may be read: several tensors may share bytes."""
MAX_NODES, MAX_NESTING = 200_000, 50
"""Operators once all functions are expanded, and functions in one another."""
Function = tuple[str, str, str]


def bound_weights(path: Path, proto: ModelProto) -> None:
    """Bound what is read from other files, and write how much it is where the file leaves it to be counted.

    Raises:
        InputError: a tensor's size is not that of its bytes, or the tensors are larger than the files that they are in.
    """
    files: dict[tuple[int, int], int] = {}
    total = 0
    for tensor in tensors_of(proto):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        length = _stored_bytes(path, tensor)
        if entries.get("length", str(length)).strip() != str(length):
            raise InputError(
                f"{path} says {entries['length'][:20]} bytes of a tensor of {length:,} ({tensor.name[:60]})",
                "export it again",
            )
        if "length" not in entries:
            tensor.external_data.add(key="length", value=str(length))
        if _note_size(path.parent / entries.get("location", ""), files):
            total += length
    if total > min(MAX_PROTO, MAX_SHARING * sum(files.values())):
        raise InputError(
            f"{path} has {total:,} bytes of weights in files of {sum(files.values()):,}", "export it again"
        )


def check_expansion(path: Path, proto: ModelProto) -> None:
    """Refuse a file that a runtime expands beyond bounds when it loads it.

    Raises:
        InputError: functions, sparse tensors or texts are to blame.
    """
    for tensor in tensors_of(proto):
        if tensor.data_type == TensorProto.STRING:
            raise _texts(path, tensor.name)
    for node in _nodes(_bodies(proto)):
        for attribute in node.attribute:
            if attribute.name in ("value_string", "value_strings") and node.op_type == "Constant":
                raise _texts(path, node.name)
            if attribute.name == "to" and attribute.i == TensorProto.STRING:
                raise _texts(path, node.name)
    sparse = next(_sparse(proto), None)
    if sparse is not None:
        raise InputError(f"{path} has sparse weights ({sparse.values.name[:60]})", "export it with dense ones")
    _check_functions(path, proto)


def check_bytes(path: Path, proto: ModelProto, most: int) -> None:
    """Refuse a graph, its constants folded and its shapes inferred, before anybody computes what it has.

    Raises:
        InputError: a tensor would have more bytes than `most`.
    """
    for value in (*proto.graph.value_info, *proto.graph.output):
        kind = value.type.tensor_type
        numbers = math.prod(max(each.dim_value, 1) for each in kind.shape.dim)
        if numbers * _itemsize(kind.elem_type) > most:
            raise InputError(
                f"{path} computes a tensor of {min(numbers, 10**18):,} numbers ({value.name[:60]})",
                "export it for smaller images, or as it was trained",
            )


def _itemsize(kind: int) -> float:
    try:
        return float(ir.DataType(kind).itemsize)
    except (TypeError, ValueError):  # of an unknown kind, which whoever computes it says
        return 1.0


def tensors_of(proto: ModelProto) -> Iterator[TensorProto]:
    """Constants of all graphs, and those in attributes of operators, of functions too."""
    yield from proto.graph.initializer
    for graph in _graphs(_bodies(proto)):
        yield from graph.initializer
    for node in _nodes(_bodies(proto)):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
    for sparse in _sparse(proto):
        yield from (sparse.values, sparse.indices)


def _bodies(proto: ModelProto) -> list[NodeProto]:
    return [*proto.graph.node, *(node for function in proto.functions for node in function.node)]


def _graphs(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Those in attributes of nodes, however deep."""
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield graph
            yield from _graphs(graph.node)


def _nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """These and those of the graphs in them."""
    there = list(nodes)
    yield from there
    for graph in _graphs(there):
        yield from graph.node


def _sparse(proto: ModelProto) -> Iterator[SparseTensorProto]:
    for graph in (proto.graph, *_graphs(_bodies(proto))):
        yield from graph.sparse_initializer
    for node in _nodes(_bodies(proto)):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.SPARSE_TENSOR or attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor
            yield from attribute.sparse_tensors


def _texts(path: Path, name: str) -> InputError:
    return InputError(f"{path} computes with texts ({name[:60]})", "export the network without them")


def _stored_bytes(path: Path, tensor: TensorProto) -> int:
    try:
        size = float(ir.DataType(tensor.data_type).itemsize)  # 0.5 of two numbers in a byte
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} has weights of an unknown type ({tensor.name[:60]})", "export it again") from error
    if min(tensor.dims, default=0) < 0:
        raise InputError(f"{path} has weights of no size ({tensor.name[:60]})", "export it again")
    stored: int = math.ceil(math.prod(tensor.dims) * size)
    return stored


def _note_size(file: Path, files: dict[tuple[int, int], int]) -> bool:
    """Add a file's size, once for all its names; False where there is no such file, which whoever reads it says."""
    try:
        state = os.stat(file)
    except (OSError, ValueError):
        return False
    if not stat.S_ISREG(state.st_mode):
        return False
    files[state.st_dev, state.st_ino] = state.st_size
    return True


def _check_functions(path: Path, proto: ModelProto) -> None:
    bodies = {(each.domain, each.name, each.overload): each.node for each in proto.functions}
    counted: dict[Function, int] = {}

    def expanded(nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > MAX_NESTING:
            raise InputError(f"{path} has functions in one another without end", "export it without functions")
        total = 0
        for node in _nodes(nodes):
            key = (node.domain, node.op_type, node.overload)
            if key in bodies and key not in counted:
                counted[key] = expanded(bodies[key], depth + 1)
            total += counted.get(key, 1)
        return total

    for nodes in (proto.graph.node, *bodies.values()):
        if (count := expanded(nodes, 0)) > MAX_NODES:
            shown = f"{count:,}" if count < 10**15 else "no end of"
            raise InputError(f"{path} has functions that expand to {shown} operators", "export it without functions")
