"""Names and messages of others in Markdown: what they say stays text, whatever is in it.

Syntax: CommonMark 0.31 with the tables and links of GitHub Flavored Markdown 0.29.
"""

from __future__ import annotations

import re

from qexport.system.printable import printable

_SYNTAX = re.compile(r"[\\`*_\[\]|~]|:(?=//)|(?<=www)\.", re.IGNORECASE)
"""What begins or ends something within a line: code, emphasis, a link (a bare address, too), a table's cell."""
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def as_text(words: object) -> str:
    """Words for any place in a line, a table's cell included."""
    escaped = _SYNTAX.sub(lambda found: f"\\{found[0]}", printable(words))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], escaped)


def as_code(name: object) -> str:
    """A name in the font of code, for any place in a line: backslashes mean nothing in a code span, so that a name
    with characters of the syntax that end one, or a table's cell, is an element instead.
    """
    shown = printable(name)
    return f"<code>{as_text(shown)}</code>" if re.search(r"[`|\\]|^\s|\s$|^$", shown) else f"`{shown}`"
