"""Values as literals of a language: whatever stands in a name, it is data in the program, in ASCII and on one line.

What could end a literal or begin an expression in any of the languages, or in a page around it, is escaped in all of
them: quotation marks, backslashes, `$` (Kotlin), `<` (HTML), `?` (trigraphs of C++), and all but printable ASCII.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Value = str | int | float | bool | tuple[str, ...] | tuple[int, ...] | Mapping[int, float] | None
"""What a constant of a program can be."""

SPECIAL = frozenset("\"'\\`$<?")
WIDTH = 100
"""Columns of a line of names."""


def is_plain(character: str) -> bool:
    """Whether a character stands for itself in a literal of every language."""
    return " " <= character <= "~" and character not in SPECIAL


def python_text(text: str) -> str:
    """A string of Python."""
    return '"' + "".join(each if is_plain(each) else _point(each) for each in text) + '"'


def _point(character: str) -> str:
    return f"\\u{ord(character):04x}" if ord(character) < 2**16 else f"\\U{ord(character):08x}"


def utf16_text(text: str) -> str:
    r"""A string of JavaScript, Kotlin or JSON: `\u` and four digits for each code unit of UTF-16."""
    return '"' + "".join(each if is_plain(each) else _units(each) for each in text) + '"'


def _units(character: str) -> str:
    encoded = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{encoded[at]:02x}{encoded[at + 1]:02x}" for at in range(0, len(encoded), 2))


def octal_text(text: str) -> str:
    """A string of C++ in UTF-8: three octal digits for each byte, which no digit behind them is taken into."""
    return '"' + "".join(each if is_plain(each) else _octets(each) for each in text) + '"'


def _octets(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode("utf-8", "replace"))


@dataclass(frozen=True)
class Notation:
    """How a language writes constants.

    Attributes:
        text: a string as its literal.
        real: a float as its literal.
        constant: name, type of the value and its literal → the declaration.
        sequence, mapping: of items that are literals already.
        comment: what a comment begins with.
    """

    text: Callable[[str], str]
    real: Callable[[float], str]
    constant: Callable[[str, Value, str], str]
    sequence: Callable[[str], str]
    mapping: Callable[[Mapping[str, str]], str]
    comment: str
    words: Mapping[Value, str]

    def literal(self, value: Value) -> str:
        """A value as the language writes it."""
        if isinstance(value, bool) or value is None:
            return self.words[value]
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, float):
            return self.real(value)
        if isinstance(value, int):
            return str(value)
        if isinstance(value, Mapping):
            return self.mapping({str(key): self.real(number) for key, number in value.items()})
        return self.sequence(_lines([self.literal(each) for each in value]))

    def declared(self, name: str, value: Value, meaning: str) -> str:
        """The declaration of a constant with what it means above it."""
        return f"{self.comment} {meaning}\n{self.constant(name, value, self.literal(value))}\n"


def _lines(items: list[str]) -> str:
    """Items with commas between them, on as many lines as they need."""
    lines = [""]
    for item in items:
        if lines[-1] and len(lines[-1]) + len(item) > WIDTH:
            lines.append("")
        lines[-1] += f"{item}, "
    if len(lines) == 1:
        return lines[0].removesuffix(", ")
    return "\n" + "".join(f"    {line.rstrip()}\n" for line in lines)
