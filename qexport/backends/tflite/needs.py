"""Which version of TFLite a file needs.

The converter counts it from its operators' versions (tensorflow/lite/tools/versioning/runtime_version.cc), and notes it
in the file. What is made of a file behind the converter has other types, and AI Edge Quantizer leaves the versions as
they were, so the types are looked at, too.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qexport.backends.tflite.file import operator_names

NOTE = b"min_runtime_version"
BY_TYPES = {
    "INT16": "2.6.0",
    "FLOAT16": "1.15.0",
    "INT8 weights of float layers": "2.4.0",
}
"""Kind of tensors → the first release with kernels for them: ADD 4 and MUL 5, DEQUANTIZE 3, CONV_2D 5."""


def needs_of(model: Any, kinds: Collection[str]) -> dict[str, str]:
    """What a parsed file needs, by name.

    Args:
        kinds: entries of `BY_TYPES` that the file has.
    """
    noted = [_text(model, entry) for entry in model.metadata or () if entry.name == NOTE]
    versions = [*filter(None, noted), *(BY_TYPES[kind] for kind in kinds)]
    names = operator_names()
    operators = sorted({(names[code.builtinCode], int(code.version)) for code in model.operatorCodes})
    return {
        **({"TFLite": max(versions, key=_numbers)} if noted else {}),
        "schema": str(model.version),
        "operators": ", ".join(f"{name} {version}" for name, version in operators),
    }


def _text(model: Any, entry: Any) -> str:
    data = model.buffers[entry.buffer].data
    return bytes(data).rstrip(b"\0").decode() if data is not None else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
