"""What MkDocs does besides: the documents of the repository's top level are pages, too, and nothing is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md", "action.yml")
"""Of the repository's top level; links to them from docs/ begin with ../, and those from them with docs/."""
FROM_DOCS = re.compile(rf"\]\((?:\.\./)+({'|'.join(map(re.escape, TOP))})(?=[#)])")
FROM_TOP = re.compile(r"(\]\(|src=\")docs/")
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*\bhref=\"?(?:https?:)?//"
)
"""What a browser would fetch from another place; a canonical address is none, and is not written."""


def on_files(files: Files, config: Any) -> Files:
    """Add the top level's documents; decisions that only their index names are in no menu, on purpose."""
    for name in TOP:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links between docs/ and the top level lead to pages."""
    if page.file.src_uri in TOP:
        return FROM_TOP.sub(r"\1", markdown)
    up = "../" * page.file.src_uri.count("/")
    return FROM_DOCS.sub(rf"]({up}\1", markdown)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that would load something from elsewhere.

    Raises:
        PluginError: naming it.
    """
    if found := ELSEWHERE.search(output):
        raise PluginError(f"{page.file.src_uri} loads something from elsewhere: {found[0]}")
    return output
