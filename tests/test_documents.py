"""The documents name files, folders, tests and pages that are there, and the site has all of them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from guides import DOCS, GUIDES
from test_architecture import FLOORS

import qexport
from qexport import decode

ROOT = Path(__file__).resolve().parents[1]
DECISIONS = ROOT / "docs" / "decisions"
DOCUMENTS = (
    *GUIDES,
    ROOT / "ARCHITECTURE.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted(DECISIONS.glob("*.md")),
)
pytestmark = pytest.mark.skipif(not DECISIONS.is_dir(), reason="a source distribution has no documents")

FOLDERS = ("qexport", "tests", "benchmarks", "calibration_data", "docs", "examples", "locks")
NOT_FILES = {"utils.py", "_openvino_model/"}
"""Named as what must not be, and as what names of artifacts end with."""

PATHS = [path for folder in FOLDERS for path in (ROOT / folder, *(ROOT / folder).rglob("*"))]
THERE = {f"/{path.relative_to(ROOT)}" for path in PATHS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = {name for name in re.findall(r"`([\w./]+)`", text) if name.endswith((".py", "/"))} - NOT_FILES
    named |= {f"tests/{name}.py" for name in re.findall(r"`(test_\w+)`", text)}
    missing = [name for name in named if not any(path.endswith(f"/{name.rstrip('/')}") for path in THERE)]
    assert missing + [link for link in _links(text) if not _leads_somewhere(document, link)] == []


def _links(text: str) -> list[str]:
    code = re.compile(r"^```.*?^```$|`[^`\n]*`", re.M | re.S)
    links = re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", code.sub("", text))
    return [link or image for link, image in links if "://" not in link]


def _leads_somewhere(document: Path, link: str) -> bool:
    """Whether there is a file, and in it a heading of that name, as GitHub and the site call it."""
    name, _, heading = link.partition("#")
    path = document.parent / name if name else document
    return path.exists() and (not heading or heading in _headings(path))


@cache
def _headings(path: Path) -> set[str]:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    plain = [re.sub(r"[^\w\s-]", "", line.lower()) for line in re.findall(r"^#+ (.+)$", text, re.M)]
    return {re.sub(r"\s", "-", line.strip()) for line in plain}


@pytest.mark.parametrize("link", ["gone.md", "training.md#gone", "#gone", "../docs/gone.png"])
def test_a_dead_link_is_found(link: str) -> None:
    assert _links(f"[a]({link}) and [b](https://x.org/y) and `[c](d)`") == [link]
    assert not _leads_somewhere(DOCS / "training.md", link)
    assert _leads_somewhere(DOCS / "training.md", "combining.md#mixed-precision")


def test_every_page_is_in_the_menu_of_the_site() -> None:
    """`make docs` builds it with warnings as errors; this needs no tools of its own."""
    text = (DOCS / "site" / "mkdocs.yml").read_text(encoding="utf-8")
    menu = re.findall(r"^ +- .+: (\S+\.md)$", text.partition("\nnav:\n")[2], re.M)
    top = {"README.md", "ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"}
    assert sorted(menu) == sorted({*(path.name for path in DOCS.glob("*.md")), *top, "decisions/README.md"})


def test_the_api_page_has_every_public_name() -> None:
    named = re.findall(r"^::: (qexport(?:\.\w+)+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.M)
    own = {f"qexport.{name}" for name in qexport.__all__ if name != "__version__"}
    of_devices = {f"qexport.decode.{name}" for name in decode.__all__ if name not in qexport.__all__}
    assert sorted(named) == sorted(own | of_devices)


def test_every_promise_has_a_test_that_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [row for row in re.findall(r"^\| (.+) \|$", text, re.M) if row not in ("promise | test", "--- | ---")]
    proofs = [re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.partition(" | ")[2]) for row in rows]
    assert len(rows) > 30
    assert [row for row, named in zip(rows, proofs, strict=True) if not named] == []
    assert [f"{file}::{name}" for named in proofs for file, name in named if name not in _tests_in(file)] == []


@cache
def _tests_in(file: str) -> set[str]:
    path = ROOT / "tests" / file
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if path.is_file() else ()
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def test_the_index_has_every_decision() -> None:
    lines = re.findall(r"^- \[(\d+)\]\((.+)\) (.+)$", (DECISIONS / "README.md").read_text(encoding="utf-8"), re.M)
    pages = sorted(DECISIONS.glob("[0-9]*.md"))
    titles = [page.read_text(encoding="utf-8").splitlines()[0] for page in pages]
    assert [name for _, name, _ in lines] == [page.name for page in pages]
    assert [f"# {number}. {title}" for number, _, title in lines] == titles


@pytest.mark.parametrize("page", sorted(DECISIONS.glob("[0-9]*.md")), ids=lambda path: path.name)
def test_a_decision_has_a_status_with_a_date(page: Path) -> None:
    assert re.search(r"^Status: \w+, \d{4}-\d\d-\d\d", page.read_text(encoding="utf-8"), re.M)


def test_the_map_is_short() -> None:
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_picture_is_the_table_of_floors() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    picture = re.sub(r"\(.*?\)", "", text.partition("## Floors")[2].split("```")[1])
    drawn = [set(line.split()) for line in reversed(picture.strip().splitlines())]
    assert drawn == [{name or "__init__" for name in floor} for floor in FLOORS]
