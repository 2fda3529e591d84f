"""Python's literals as values, within bounds: what names and sizes in the metadata of ONNX files are written as."""

from __future__ import annotations

import ast
import re
from typing import Any

LITERAL_TOKEN = re.compile(
    r"""([\[({])|[\])},:\s]|-?[0-9]{1,9}(?:\.[0-9]{0,9})?(?![\w.-])|(?:True|False|None)(?!\w)"""
    r"""|[bu]?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")(?=\s*(?:[,:\])}]|$))""",
    re.DOTALL,
)
"""What names and sizes are written of: short numbers, because long ones can be chosen to collide in a dictionary."""
MAX_LITERAL, MAX_TOKENS, MAX_BRACKETS = 2**20, 400_000, 100
"""Characters, words and signs, and lists in a literal of metadata: names of 50,000 classes have less."""


def literal_value(text: str) -> Any:
    """The value of a literal; of one that nobody writes for names or sizes, whose parsing never ends, a ValueError."""
    rest = 0 if len(text) <= MAX_LITERAL else -1
    tokens = brackets = 0
    for token in LITERAL_TOKEN.finditer(text):
        if token.start() != rest or tokens > MAX_TOKENS or brackets > MAX_BRACKETS:
            break
        rest, tokens, brackets = token.end(), tokens + 1, brackets + (token[1] is not None)
    if rest != len(text) or brackets > MAX_BRACKETS:
        raise ValueError("no plain literal")
    return ast.literal_eval(text)
