"""Read a float ONNX file of any origin, and refuse by name what cannot be quantised from it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from qexport.detections.layout import HeadLayout
from qexport.errors import InputError
from qexport.programs.onnx.bounds import MAX_PROTO, bound_weights, check_expansion
from qexport.system.given_files import UnfitFileError, read_bytes
from qexport.system.literals import literal_value
from qexport.system.whole import whole
from qexport.tasks import SCORING, extras_of

QUANTISED = re.compile(
    r"(Dynamic)?Quantize|Dequantize|QLinear|Q(Gemm|Attention|MoE|EmbedLayer|Ordered)|(Conv|MatMul)Integer|MatMul(NBits|Bnb4)"
    r"|TRT_\w*QuantizeLinear|GatherBlockQuantized"
)
"""How names of operators begin that ONNX and the runtimes' own domains have for integers."""
INTEGERS = frozenset({onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4})
OTHER_FLOATS = frozenset({onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE})
OPEN_SIZE = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})
"""Operators whose results have as many rows as the image has objects."""
CONTROL = frozenset({"If", "Loop", "Scan", "SequenceMap"})
OWN = frozenset({"task", "names", "imgsz", "stride"})
"""What all metadata of Ultralytics have."""
UNREADABLE = (
    "what the file says of its task, classes, stride and image size cannot be read: it is taken for a file without"
)
COLOURS = 3
MAX_SIDE, MAX_NUMBERS = 2**15, 2**30
"""Of an input: pixels or images, and numbers in all."""
OLDEST = 7
"""The first operator set that ONNX Runtime has kernels for."""
CONSTANTS_APART = 4
"""The first IR version in which constants need not be inputs, too."""


@dataclass(frozen=True)
class OnnxFile:
    """A float model as its file has it.

    Attributes:
        proto: the parsed file.
        batch, imgsz: of its input, 0 where a dimension is open.
        channels_last: its input is (batch, height, width, channels).
        metadata: the file's own, text to text.
        fingerprint: SHA-256 of the model, weights in other files included.
    """

    path: Path
    proto: onnx.ModelProto
    batch: int
    imgsz: tuple[int, int]
    channels_last: bool
    metadata: dict[str, str]
    fingerprint: str


@dataclass(frozen=True)
class UltralyticsMetadata:
    """What Ultralytics' metadata say of a model."""

    task: str
    names: dict[int, str]
    stride: int
    imgsz: tuple[int, int]
    end2end: bool
    kpt_shape: tuple[int, int]

    def layout(self, imgsz: tuple[int, int]) -> HeadLayout:
        """What the model's output means at a size."""
        detector = "end2end" if self.end2end else "one2many"
        return HeadLayout(
            strides=(),
            imgsz=imgsz,
            classes=len(self.names),
            end2end=self.end2end,
            extras=extras_of(self.task),
            shape=self.kpt_shape,
            head="classifier" if self.task == "classify" else detector,
        )


def read_file(path: Path) -> OnnxFile:
    """Parse an ONNX file and check that it is a float network of one colour image.

    Raises:
        InputError: it is not, with the reason.
    """
    proto = parsed(path)
    check_expansion(path, proto)
    fingerprint = hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()
    _check_operators(path, proto)
    _separate_constants(proto)
    given = _image_input(path, proto)
    sizes = [max(each.dim_value, 0) for each in given.type.tensor_type.shape.dim]
    if max(sizes) > MAX_SIDE or math.prod(max(size, 1) for size in sizes) > MAX_NUMBERS:
        raise InputError(f"{path} takes {'x'.join(map(str, sizes))} ({given.name})", "export it for smaller images")
    last = sizes[1] != COLOURS and sizes[3] == COLOURS
    if not last and sizes[1] not in (0, COLOURS):
        shown = "x".join(str(size or "?") for size in sizes)
        raise InputError(f"{path} takes {shown} ({given.name})", "models of one colour image can be quantised")
    return OnnxFile(
        path=path,
        proto=proto,
        batch=sizes[0],
        imgsz=(sizes[1], sizes[2]) if last else (sizes[2], sizes[3]),
        channels_last=last,
        metadata={entry.key: entry.value for entry in proto.metadata_props},
        fingerprint=fingerprint,
    )


def parsed(path: Path) -> onnx.ModelProto:
    """Parse a file, and read its weights where they lie in another file beside it.

    Raises:
        InputError: it is not ONNX, cut short, or its weights are missing or larger than their files.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        proto = onnx.load_model_from_string(read_bytes(path, MAX_PROTO))
    except UnfitFileError as error:
        raise InputError(f"{path} cannot be read ({error})", "give a float .onnx file") from error
    except (OSError, DecodeError) as error:
        raise InputError(
            f"{path} is not an ONNX file that can be read", "it may be cut short, or not ONNX at all"
        ) from error
    if not proto.graph.node or not proto.graph.output:
        raise InputError(f"{path} has no ONNX graph in it", "it may be cut short, or not ONNX at all")
    bound_weights(path, proto)
    try:
        onnx.external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"the weights of {path} cannot be read ({_outside(proto)})", "put that file beside it"
        ) from error
    return proto


def _outside(proto: onnx.ModelProto) -> str:
    """The file that weights are in which are not in the model's own."""
    entries = (entry for tensor in proto.graph.initializer for entry in tensor.external_data)
    return next((entry.value for entry in entries if entry.key == "location"), "no file is named")


def _check_operators(path: Path, proto: onnx.ModelProto) -> None:
    local = {(each.domain, each.name) for each in proto.functions}
    found = next(_quantised(proto), "")
    if found:
        raise InputError(f"{path} is quantised already ({found})", "give the float model that it was made from")
    for tensor in proto.graph.initializer:
        if tensor.data_type in OTHER_FLOATS and len(tensor.dims) > 1:
            name = _type_name(tensor.data_type)
            raise InputError(f"{path} has {name} weights ({tensor.name})", "give the float32 model")
    for node in proto.graph.node:
        kind = node.op_type
        if kind == "Constant" and not (node.attribute and node.output):
            raise InputError(f"{path} has a Constant without a value ({node.name[:60]})", "export it again")
        if node.domain not in ("", "ai.onnx", "com.microsoft") and (node.domain, kind) not in local:
            raise InputError(f"{path} has the operator {node.domain}.{kind}", "export it with ONNX's own operators")


def _type_name(kind: int) -> str:
    names: dict[str, int] = dict(onnx.TensorProto.DataType.items())
    return next((name.lower() for name, number in names.items() if number == kind), f"type {kind}")


def _quantised(proto: onnx.ModelProto) -> Iterator[str]:
    """Operators that compute with integers or make them, those in functions too, and weights stored as integers."""
    for node in (*proto.graph.node, *(node for each in proto.functions for node in each.node)):
        if QUANTISED.match(node.op_type):
            yield str(node.op_type)
    weights = {t.name for t in proto.graph.initializer if t.data_type in INTEGERS and len(t.dims) > 1}
    for node in proto.graph.node:
        if node.op_type == "Cast" and weights.intersection(node.input[:1]):
            yield f"weights of integers, {node.input[0]}"


def operator_set(proto: onnx.ModelProto) -> int:
    """Version of ONNX's own operators that a file is in."""
    versions = {each.domain: each.version for each in proto.opset_import}
    return int(versions.get("", versions.get("ai.onnx", 0)))


def _separate_constants(proto: onnx.ModelProto) -> None:
    """Up to IR version 3 constants are listed among the inputs, as defaults: leave them out, and say so."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    inputs = [each for each in proto.graph.input if each.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = max(proto.ir_version, CONSTANTS_APART)


def check_sizes(path: Path, proto: onnx.ModelProto) -> None:
    """Refuse a graph, its constants folded, whose tensors have no fixed size.

    Raises:
        InputError: with the operator that is to blame.
    """
    for node in proto.graph.node:
        if node.op_type in OPEN_SIZE:
            raise InputError(
                f"{path} has {node.op_type} in it, whose result has no fixed size", "export it without NMS"
            )
        if node.op_type in CONTROL:
            raise InputError(f"{path} has control flow in it ({node.op_type})", "export it without NMS or branches")


def _image_input(path: Path, proto: onnx.ModelProto) -> onnx.ValueInfoProto:
    inputs = list(proto.graph.input)
    if len(inputs) != 1:
        names = ", ".join(each.name for each in inputs) or "none"
        raise InputError(f"{path} has {len(inputs)} inputs ({names})", "models of one image can be quantised")
    given: onnx.ValueInfoProto = inputs[0]
    kind = given.type.tensor_type.elem_type
    if kind != onnx.TensorProto.FLOAT:
        name = _type_name(kind)
        raise InputError(f"{path} takes {name} ({given.name})", "export it with a float32 input")
    if len(given.type.tensor_type.shape.dim) != 4:
        dimensions = len(given.type.tensor_type.shape.dim)
        raise InputError(
            f"{path} takes {dimensions} dimensions ({given.name}), not an image",
            "models of one image (batch, channels, height, width) can be quantised",
        )
    return given


def described(metadata: dict[str, str]) -> UltralyticsMetadata | None:
    """Read Ultralytics' metadata; None where there are none, not of a task that can be scored, or of another form."""
    return None if OWN - metadata.keys() else _described(metadata)


def unreadable(metadata: dict[str, str]) -> str:
    """What is to be told of metadata that are Ultralytics', and of another form; "" of others."""
    if OWN - metadata.keys() or metadata["task"] not in SCORING or _described(metadata):
        return ""
    return UNREADABLE


def _described(metadata: dict[str, str]) -> UltralyticsMetadata | None:
    try:
        task, names = metadata["task"], literal_value(metadata["names"])
        size = literal_value(metadata["imgsz"])
        if task not in SCORING or not isinstance(names, dict):
            return None
        height, width = size if isinstance(size, list | tuple) else (size, size)
        points, values = literal_value(metadata.get("kpt_shape", "(0, 0)"))
        return UltralyticsMetadata(
            task=task,
            names={whole(number): str(name) for number, name in names.items()},
            stride=_count(metadata["stride"]),
            imgsz=(_count(height), _count(width)),
            end2end=bool(literal_value(metadata.get("end2end", "False"))),
            kpt_shape=(whole(points), whole(values)),
        )
    except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
        return None


def _count(value: Any) -> int:
    found = whole(value)
    if not 0 < found <= MAX_SIDE:
        raise ValueError(f"{found} pixels")
    return found
