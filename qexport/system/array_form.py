"""Frozen nouns that hold NumPy arrays as JSON and one block of bytes, and back to the last digit; without pickle."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from qexport.system.json_form import from_plain, to_plain

Noun = TypeVar("Noun")
ARRAY = "/array"
"""Key of what stands for an array: type, shape, and where in the block it begins."""
KINDS = "biuf"
"""Types of elements, as NumPy calls them: truth, integers and floats."""


def packed(noun: Any) -> tuple[Any, bytes]:
    """A noun as JSON's types, and the bytes of its arrays."""
    block = bytearray()

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            start = len(block)
            block.extend(value.tobytes())
            return {ARRAY: [value.dtype.str, list(value.shape), start]}
        if isinstance(value, dict):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, list) else value

    return plain(to_plain(noun)), bytes(block)


def unpacked(kind: type[Noun], content: Any, block: bytes) -> Noun:
    """The noun that `packed` was given.

    Raises:
        ValueError, TypeError: it is of another kind, or an array does not lie within the block.
    """

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return (
                _array(value[ARRAY], block) if ARRAY in value else {name: filled(each) for name, each in value.items()}
            )
        return [filled(each) for each in value] if isinstance(value, list) else value

    return from_plain(kind, filled(content))


def _array(written: Any, block: bytes) -> Any:
    dtype, shape, start = written
    kind, sizes = np.dtype(str(dtype)), [int(each) for each in shape]
    if kind.kind not in KINDS or min(sizes, default=0) < 0 or start < 0:
        raise ValueError("an array that nothing writes")
    if not (count := math.prod(sizes)):
        return np.zeros(sizes, kind)
    return np.frombuffer(block, kind, count, start).reshape(sizes).copy()
