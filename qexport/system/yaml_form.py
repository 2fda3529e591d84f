"""YAML as plain values, within bounds: aliases may make a few lines stand for more than any memory holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from qexport.errors import named_reason
from qexport.system.given_files import read_text

MAX_YAML = 2**22
"""Bytes of a file."""
MAX_NODES = 50_000
"""Values, keys included, every alias counted as what it stands for: twice as many as the 21,841 classes of ImageNet."""
MAX_DEPTH = 32
MAX_DIGITS = 64
"""Characters of a number or date."""
MAX_REASON = 400
"""Characters of what is wrong: PyYAML repeats tags and names, however long they are."""
TEXT = "tag:yaml.org,2002:str"
NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What double quotes can write and no name of a file or class has."""


class _Bounded(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """A node, once it is known to stand for few enough."""
        if self.depth > MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and not alias:
            self.sizes[id(node)] = self._size(node)
        elif id(node) not in self.sizes:
            raise ValueError("a part of it is an alias of the whole that it is in")
        return node

    def _size(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            _check_scalar(node)
            return 1
        inside = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        size = 1 + sum(self.sizes[id(each)] for each in inside)
        if size > MAX_NODES:
            raise ValueError(f"it has more than {MAX_NODES:,} values")
        return size


def _check_scalar(node: yaml.ScalarNode) -> None:
    if node.tag != TEXT and len(node.value) > MAX_DIGITS:
        raise ValueError(f"{node.value[:12]}… is no number or date, it has {len(node.value):,} characters")
    if NO_TEXT.search(node.value):
        raise ValueError(f"{node.value[:40]!r} has a character that no text has")


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Raises:
        ValueError: it is none, or beyond the bounds; says where, in one line.
    """
    try:
        loader = _Bounded(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:MAX_REASON]) from error
    except ValueError:
        raise
    except Exception as error:  # of a wrong date or tag PyYAML raises anything
        raise ValueError(f"a value does not suit its tag, {named_reason(error, 80)}") from error


def read_yaml(path: Path) -> Any:
    """The plain values of a YAML file.

    Raises:
        OSError: it cannot be read, or is no file.
        ValueError: as `parse_yaml`; or it is no UTF-8.
    """
    return parse_yaml(read_text(path, most=MAX_YAML))
