"""Arrays by name as bytes, and back: an `.npz` archive that is read as data, whatever is in it."""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qexport.system.given_files import exceeded

Array = NDArray[Any]
HEAD = "head"
DTYPES = ("float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "bool")


class DamagedError(ValueError):
    """Bytes are no archive that `pack` has made; the message says what is wrong."""


def pack(head: Mapping[str, Any], arrays: Mapping[str, Array], compressed: bool = True) -> bytes:
    """Arrays with what is said of them; equal ones give equal bytes.

    Args:
        head: of JSON's types.
        arrays: of `DTYPES`, under any names.
    """
    text = json.dumps({**head, "names": list(arrays)}).encode()
    numbered = {f"array_{number}": np.asarray(each, order="C") for number, each in enumerate(arrays.values())}
    stream, save = io.BytesIO(), np.savez_compressed if compressed else np.savez
    save(stream, **{HEAD: np.frombuffer(text, np.uint8), **numbered})  # type: ignore[arg-type]  # no name is allow_pickle
    return stream.getvalue()


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """The head and the arrays that `pack` was given; nothing is unpickled, and no more is allocated than is there.

    Raises:
        DamagedError: they are not what it wrote.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if bomb := exceeded(archive, len(data)):
                raise DamagedError(bomb)
            entries = archive.infolist()
            found = {each.filename: _array(archive.read(each)) for each in entries}
        head = json.loads(found.pop(f"{HEAD}.npy").tobytes())
        names = head.pop("names")
        arrays = {str(name): found[f"array_{number}.npy"] for number, name in enumerate(names)}
    except DamagedError:
        raise
    except Exception as error:  # of a hostile archive zipfile, zlib and NumPy raise anything
        raise DamagedError(" ".join(f"{type(error).__name__}: {error}".split())[:120]) from error
    if len(arrays) != len(found):
        raise DamagedError("it holds other arrays than it says")
    return head, arrays


def _array(data: bytes) -> Array:
    """An array whose bytes are as many as its header says."""
    stream = io.BytesIO(data)
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise DamagedError(f"an array of NumPy's format {version}")
    shape, by_columns, dtype = npy.read_array_header_1_0(stream)
    rest = data[stream.tell() :]
    if dtype.name not in DTYPES or (by_columns and len(shape) > 1) or len(rest) != math.prod(shape) * dtype.itemsize:
        raise DamagedError(f"an array of {dtype} and shape {shape} in {len(rest)} bytes")
    return np.frombuffer(rest, dtype).reshape(shape).copy()
