"""A `.tflite` file as a C++ array, for firmware that has no file system."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qexport.backends.tflite.file import flatbuffer_of
from qexport.backends.tflite_micro.arena import ALIGNMENT
from qexport.system.files import write_text
from qexport.system.printable import printable

ROW = 16
_BREAKS = re.compile(r"\\|[?]{2}|[*]/|/[*]")
"""What takes the next line into a comment (a trigraph does, too), and the bounds of comments of the other kind."""


_WORDS = (
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t char8_t class "
    "co_await co_return co_yield compl concept const const_cast consteval constexpr constinit continue decltype "
    "default delete do double dynamic_cast else enum explicit export extern false float for friend goto if inline int "
    "long mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register "
    "reinterpret_cast requires return short signed sizeof static static_assert static_cast struct switch template "
    "this thread_local throw true try typedef typeid typename union unsigned using virtual void volatile wchar_t "
    "while xor xor_eq main"
)
KEYWORDS = frozenset(_WORDS.split())
"""Words of C++20 (ISO/IEC 14882:2020, table 5) and the one name that only a function may have."""


def write_array(file: Path, path: Path, operators: Sequence[str], memory: Mapping[str, int]) -> tuple[Path, Path]:
    """Write a file's flatbuffer, without the metadata behind it, as a source file and its header; return both.

    Args:
        path: what they are named after.
        operators: kinds that the file uses, for the resolver.
        memory: bytes that it needs, by what for.
    """
    content = np.frombuffer(flatbuffer_of(file), dtype=np.uint8)
    name, stem = identifier(path.stem), re.sub(r"[^\w.+ -]", "_", path.stem)  # what `#include` takes in quotes
    source, header = path.with_name(f"{stem}.cc"), path.with_name(f"{stem}.h")
    lines = [
        comment(f"{path.name} for TensorFlow Lite Micro, by qexport."),
        *(comment(f"{what}: {size} bytes") for what, size in memory.items()),
        comment(f"Operators for the resolver: {', '.join(operators)}"),
        "#pragma once",
        f"constexpr unsigned int {name}_size = {len(content)};",
        f"extern const unsigned char {name}[{name}_size];",
    ]
    rows = (",".join(map(str, content[start : start + ROW])) for start in range(0, len(content), ROW))
    start = f'#include "{header.name}"\n\nalignas({ALIGNMENT}) const unsigned char {name}[{name}_size] = {{\n'
    write_text(source, start + ",\n".join(rows) + "\n};\n")
    write_text(header, "\n".join(lines) + "\n")
    return source, header


def comment(text: str) -> str:
    """One line of comment, whatever is in the text."""
    return f"// {_BREAKS.sub('_', printable(text))}"


def identifier(stem: str) -> str:
    """A C++ name for a file's stem; one that begins with an underscore is the compiler's own."""
    name = re.sub(r"\W", "_", stem, flags=re.ASCII)
    return f"model_{name}" if name in KEYWORDS or not name[:1].isalpha() else name
