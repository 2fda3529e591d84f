"""Read the page back as a visitor's eyes would: figures, tables and text, with nothing of the code that made it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "image", "use", "rect", "path", "input", "link", "hr"}


@dataclass
class Element:
    """One element with its attributes, children in order, and the element around it."""

    tag: str
    attributes: dict[str, str]
    parent: Element | None = None
    children: list[Element | str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Element]:
        """Every element below it, in the order of the page."""
        for child in self.children:
            if isinstance(child, Element):
                yield child
                yield from child

    def all(self, tag: str = "", **attributes: str) -> list[Element]:
        """Elements below it with a tag and attributes; `_` stands for a hyphen, "" for any value."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [
            each
            for each in self
            if tag in ("", each.tag)
            and all(name in each.attributes and value in ("", each.attributes[name]) for name, value in wanted.items())
        ]

    @property
    def text(self) -> str:
        """Its text, blanks as one."""
        parts = [child.text if isinstance(child, Element) else child for child in self.children]
        return " ".join("".join(parts).split())


class _Builder(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {name: value or "" for name, value in attrs}, self.at)
        self.at.children.append(made)
        if tag not in VOID:
            self.at = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {name: value or "" for name, value in attrs}, self.at))

    def handle_endtag(self, tag: str) -> None:
        assert tag in VOID or self.at.tag == tag, f"<{self.at.tag}> is closed by </{tag}>"
        if tag not in VOID:
            assert self.at.parent is not None
            self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def read_page(text: str) -> Element:
    """The page as a tree; every element has to be closed where it was opened."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert builder.at is builder.root
    return builder.root


def shown_number(text: str) -> float:
    """The number that a reader sees."""
    return float(text.replace("−", "-").replace(",", "").strip("%×\u202f "))


def sections(page: Element) -> set[str]:
    """The ids of a page's sections."""
    return {each.attributes["id"] for each in page.all("section")}
