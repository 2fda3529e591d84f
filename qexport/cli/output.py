"""The only way to the terminal: names and messages come from files and libraries, and none of them is a command to it.

What is printed passes `printable` here, whoever prints it, and Rich's markup is never read.
"""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from typing import IO

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from qexport.system.printable import printable


def say(line: object, stream: IO[str] | None = None, wrapped: bool = False) -> None:
    """Print one line, on stdout if nothing else is said; elsewhere at once.

    Args:
        wrapped: between words on a terminal; what it goes on with is indented, so that it never looks like a line.
    """
    stream, text = stream or sys.stdout, _inert(line)
    if wrapped and stream.isatty():
        width = shutil.get_terminal_size().columns
        text = textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    print(text, file=stream, flush=stream is not sys.stdout)  # stdout, which may be full, is flushed at the end


def say_json(content: str) -> None:
    """Print JSON in ASCII, as `json.dumps` makes it, on as many lines as it has."""
    for line in content.rstrip("\n").split("\n"):
        say(line.replace("\x7f", "\\u007f"))


def _inert(line: object) -> str:
    """A line that neither the terminal nor a CI service takes for a command (GitHub: `::name::`, `##[name]`)."""
    return re.sub(r"^(\s*)(::|##\[)", r"\1\\\2", printable(line))


def sentence(text: object, style: str = "") -> Text:
    """A line to `show`."""
    return Text(_inert(text), style=style)


class Rows(Table):
    """A table whose cells are text and no markup.

    Args:
        gap: columns between two columns.
        title: what stands above it.
    """

    def __init__(self, gap: int = 1, title: str = "") -> None:
        super().__init__(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap, 0, 0), title_justify="left")
        self.title = sentence(title) if title else None

    def add(self, *cells: str, style: str | None = None) -> None:
        """Append a row."""
        self.add_row(*map(sentence, cells), style=style)


def show(console: Console, shown: Text | Rows | Group, whole_lines: bool = False) -> None:
    """Print what was made here.

    Args:
        whole_lines: do not break lines in a file or a pipe.
    """
    console.print(shown, soft_wrap=whole_lines and not console.is_terminal)
