"""What an artifact says of itself, read from its file with nothing of its runtime."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from qexport.system.given_files import exceeded, open_given
from qexport.system.json_form import parse_json
from qexport.system.literals import literal_value

METADATA = "metadata.json"
"""In the archive behind a `.tflite` file."""
MAX_METADATA, MAX_FIELDS = 2**24, 100_000
"""Bytes of all metadata, and fields of an ONNX model: a real one has ten."""
PROPERTIES = 14
"""The field `metadata_props` of ONNX's `ModelProto`: pairs of texts, 1 and 2."""
OPENVINO = "metadata.yaml"
"""Beside an IR."""


def tflite_metadata(path: Path) -> dict[str, Any]:
    """Those in the archive behind a `.tflite` file.

    Raises:
        OSError: the file cannot be read.
        ValueError, KeyError, zipfile.BadZipFile: it has none, or none of that form.
    """
    with open_given(path) as stream, zipfile.ZipFile(stream) as archive:
        if bomb := exceeded(archive, os.fstat(stream.fileno()).st_size):
            raise ValueError(bomb)
        content: dict[str, Any] = parse_json(archive.read(METADATA))
    return content


def onnx_metadata(path: Path) -> dict[str, str]:
    """The properties of an ONNX model, whose weights are skipped and not read.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no ONNX model.
    """
    found, left = {}, MAX_METADATA
    with open_given(path) as stream:
        for number, length in _fields(stream, os.fstat(stream.fileno()).st_size):
            if number != PROPERTIES:
                stream.seek(length, os.SEEK_CUR)
                continue
            left -= length
            if left < 0:
                raise ValueError(f"its metadata have more than {MAX_METADATA:,} bytes")
            pair = _pair(stream, length)
            found[pair.get(1, "")] = pair.get(2, "")
    return found


def engine_metadata(path: Path) -> dict[str, Any]:
    """Those in front of a TensorRT engine: four bytes of length, little-endian, and JSON.

    Raises:
        OSError: the file cannot be read.
        ValueError: it has none.
    """
    with open_given(path) as stream:
        length = int.from_bytes(stream.read(4), "little")
        if length > MAX_METADATA:
            raise ValueError("it does not begin with metadata")
        content: dict[str, Any] = parse_json(stream.read(length))
    return content


def openvino_metadata(folder: Path) -> dict[str, Any]:
    """Those beside an IR, which PyYAML reads.

    Raises:
        OSError: they cannot be read.
        ValueError: they are no YAML.
        ImportError: PyYAML is not installed.
    """
    from qexport.system.yaml_form import read_yaml

    content: dict[str, Any] = read_yaml(folder / OPENVINO)
    return content


def as_values(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata as values: ONNX has texts of them, as `session.get_modelmeta().custom_metadata_map` gives them."""
    found = {}
    for key, value in metadata.items():
        try:
            found[key] = literal_value(value) if isinstance(value, str) else value
        except (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError):
            found[key] = value
    return found


def _fields(stream: BinaryIO, end: int) -> Iterator[tuple[int, int]]:
    """Number and length of each field of the protobuf message at hand that has a length; what reads on takes that many.

    Protocol Buffers' wire format: a tag is the number and three bits of type; 0 is a varint, 1 eight bytes, 5 four.
    """
    for _ in range(MAX_FIELDS):
        at = stream.tell()
        if at >= end:
            return
        tag = _varint(stream)
        kind = tag & 7
        if kind == 0:
            _varint(stream)
        elif kind in (1, 5):
            stream.seek(8 if kind == 1 else 4, os.SEEK_CUR)
        elif kind == 2:
            length = _varint(stream)
            if length > end - stream.tell():
                raise ValueError("it is cut short, or no ONNX model")
            yield tag >> 3, length
        else:
            raise ValueError("it is no ONNX model")
    raise ValueError(f"it has more than {MAX_FIELDS:,} fields")


def _pair(stream: BinaryIO, length: int) -> dict[int, str]:
    """The texts of a `StringStringEntryProto` by their numbers."""
    return {
        number: stream.read(size).decode(errors="replace") for number, size in _fields(stream, stream.tell() + length)
    }


def _varint(stream: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            raise ValueError("it is cut short, or no ONNX model")
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
    raise ValueError("it is no ONNX model")
