"""Names and messages of others as text that can only be read: the ground that every border's own escaping stands on."""

from __future__ import annotations

import unicodedata

BLANK = "Zs"
"""Unicode's category of blanks, which have no shape, but take part in nothing else."""


def printable(text: object) -> str:
    r"""Text as one line in which everything has a shape.

    What Unicode calls not printable (`str.isprintable`: control characters, line ends of all kinds, marks that turn
    the direction of writing, code points that are no characters) becomes Python's escape: `\x1b`, `\n`, `\u202e`.
    """
    words = str(text)
    if words.isprintable():
        return words
    return "".join(
        each if each.isprintable() or unicodedata.category(each) == BLANK else _escape(each) for each in words
    )


def printable_lines(text: str) -> str:
    """The same of each of its lines, which are told apart by line feeds alone."""
    return "\n".join(map(printable, text.split("\n")))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
