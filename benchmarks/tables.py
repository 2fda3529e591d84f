"""What a benchmark has measured as a table, as Markdown, and in the marked places of the documentation.

A page shows a table between two lines of its own, which stay:

    <!-- table: main-job -->
    <!-- end -->

`<!-- table: overview -->` shows which tables there are, the newest first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
BEGIN = re.compile(r"<!-- table: ?(\S*) -->")
END = "<!-- end -->"
OVERVIEW = "overview"
INTEGERS = frozenset({"AVX512-VNNI", "AVX-VNNI", "AMX-INT8"})
"""Features of x86 CPUs that INT8 is fast by: where none is there, the heading of a table says so."""
MIN_OTHERS = 0.05
"""Cores that other programs kept busy; less is what any system does by itself."""


class MarkerError(ValueError):
    """A marked place of a page that cannot be filled: where, what, and what to do."""


@dataclass(frozen=True)
class Machine:
    """What figures were measured on.

    Attributes:
        processor: as the system names it.
        features: of the CPU, those that INT8 and half precision are fast by, as `qexport doctor` calls them.
        cores: that the benchmark might use; None where nobody has written it down.
        threads: that files were timed with; None where nothing was timed, or nobody has written it down.
    """

    processor: str
    features: tuple[str, ...]
    cores: int | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Column:
    """A column's title, and how its numbers are written: for `str.format`, a field for each number of a cell."""

    title: str
    form: str = "{}"


@dataclass(frozen=True)
class Table:
    """Figures of one benchmark.

    Attributes:
        name: that markers call it by.
        about: what was measured, how, and on which data, in words that follow the date: without a full stop.
        command: that measured it.
        date: as YYYY-MM-DD.
        columns: of each row.
        rows: of words, numbers, lists of numbers (an interval, before and after), and None where there is nothing.
        bounds: that were to be held, in words.
        broken: those that were not, with what was measured; None where there were none to hold.
        remarks: further results and what limits them, as sentences.
        versions: package → version; empty where nobody has written them down.
        others: cores that other programs kept busy meanwhile, on average; None where nobody has looked.
    """

    name: str
    about: str
    command: str
    date: str
    machine: Machine
    columns: tuple[Column, ...]
    rows: tuple[tuple[Any, ...], ...]
    bounds: str = ""
    broken: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    others: float | None = None


def markdown(table: Table) -> str:
    """A table with what was measured above it, and its bounds and remarks below."""
    lines = [[cell(value, column) for value, column in zip(row, table.columns, strict=True)] for row in table.rows]
    drawn = grid([column.title for column in table.columns], lines)
    below = [each for each in (judgement(table), *table.remarks) if each]
    listed = [f"- {each}" for each in below] if len(below) > 1 else below
    return "\n\n".join([heading(table), drawn, *(["\n".join(listed)] if listed else [])])


def grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [titles, ["---"] * len(titles), *([each.replace("|", "\\|") for each in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Any, column: Column) -> str:
    """A word as it is, numbers in their column's form, a dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return column.form.format(*(value if isinstance(value, list | tuple) else [value]))


def heading(table: Table) -> str:
    """Command, date, machine and packages."""
    others = table.others if table.others and table.others >= MIN_OTHERS else None
    beside = f" Other programs kept {others:.2f} cores busy." if others else ""
    packages = ", ".join(f"{name} {version}" for name, version in table.versions.items())
    start = f"`{table.command}`, {table.date}, {computer(table.machine)}: {table.about}.{beside}"
    return f"{start} Measured with {packages}." if packages else start


def computer(machine: Machine) -> str:
    """A machine in words."""
    lacks = "AVX2" in machine.features and not INTEGERS.intersection(machine.features)
    features = [*machine.features, *(["no VNNI"] if lacks else [])]
    counted = [
        f"{count} {word}{'s' * (count != 1)}"
        for count, word in ((machine.cores, "core"), (machine.threads, "thread"))
        if count is not None
    ]
    return ", ".join([f"{machine.processor} ({', '.join(features)})" if features else machine.processor, *counted])


def judgement(table: Table) -> str:
    """Whether bounds are held; nothing where there are none."""
    if table.broken is None:
        return ""
    if not table.broken:
        return f"All bounds are held: {table.bounds}."
    return f"**Bounds that are broken**: {'; '.join(table.broken)}. The bounds are: {table.bounds}."


def state(table: Table) -> str:
    """Whether bounds are held, in a word."""
    return "–" if table.broken is None else "broken" if table.broken else "held"


def overview(tables: Mapping[str, Table], places: Mapping[str, str]) -> str:
    """The tables that pages show, the newest first.

    Args:
        places: name of a table → link to where it stands, in Markdown.
    """
    shown = sorted((tables[name] for name in places), key=lambda each: each.date, reverse=True)
    rows = [[places[each.name], each.date, computer(each.machine), f"`{each.command}`", state(each)] for each in shown]
    return grid(["what", "date", "machine", "command", "bounds"], rows)


@dataclass(frozen=True)
class Place:
    """A marked place: the numbers of its two lines from 0 on, the table's name, and the heading above it."""

    first: int
    last: int
    name: str
    under: str


def places_of(text: str, page: str) -> list[Place]:
    """The marked places of a page.

    Args:
        page: what errors call it.

    Raises:
        MarkerError: a marker without a name, without its other line, or inside another place.
    """
    found: list[Place] = []
    begun: tuple[int, str] | None = None
    under = ""
    for number, line in enumerate(text.splitlines()):
        at, begins = f"{page}:{number + 1}", BEGIN.fullmatch(line.strip())
        if begins and not begins[1]:
            raise MarkerError(f"{at}: a marker without a name: write <!-- table: NAME -->")
        if begins and begun:
            raise MarkerError(f"{at}: {line.strip()} inside <!-- table: {begun[1]} -->: write {END} before it")
        if begins:
            begun = number, begins[1]
        elif line.strip() == END:
            if begun is None:
                raise MarkerError(f"{at}: {END} without a beginning: write <!-- table: NAME --> before it")
            found.append(Place(begun[0], number, begun[1], under))
            begun = None
        elif line.startswith("#") and begun is None:
            under = line.lstrip("#").strip()
    if begun:
        raise MarkerError(f"{page}:{begun[0] + 1}: <!-- table: {begun[1]} --> has no {END}: write it below")
    return found


def filled(texts: Mapping[Path, str], tables: Mapping[str, Table]) -> dict[Path, str]:
    """Pages with what their marked places have to show.

    Args:
        texts: page → its text.

    Raises:
        MarkerError: a place that cannot be filled, or names a table that is not there.
    """
    marked = {page: places_of(text, name_of(page)) for page, text in texts.items()}
    for page, places in marked.items():
        for place in places:
            if place.name not in {*tables, OVERVIEW}:
                known = f"measure it first, known are {', '.join(sorted([*tables, OVERVIEW]))}"
                raise MarkerError(f"{name_of(page)}:{place.first + 1}: no table is called {place.name}: {known}")
    return {page: _filled(page, texts[page], marked, tables) for page in texts}


def _filled(page: Path, text: str, marked: Mapping[Path, Sequence[Place]], tables: Mapping[str, Table]) -> str:
    if not marked[page]:
        return text
    lines = text.splitlines()
    for place in reversed(marked[page]):
        shown = overview(tables, _links(page, marked)) if place.name == OVERVIEW else markdown(tables[place.name])
        lines[place.first + 1 : place.last] = ["", *shown.splitlines(), ""]
    return "\n".join(lines) + "\n"


def _links(page: Path, marked: Mapping[Path, Sequence[Place]]) -> dict[str, str]:
    """Name of a table → link, of the pages in the folder of one of them, which comes first itself."""
    return {
        place.name: f"[{place.under}]({other.name if other != page else ''}#{anchor(place.under)})"
        for other, places in sorted(marked.items(), key=lambda item: item[0] != page)
        if other.parent == page.parent
        for place in places
        if place.name != OVERVIEW
    }


def anchor(title: str) -> str:
    """A heading's name in links, as GitHub and the site make it."""
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip())


def name_of(page: Path) -> str:
    """A page as errors call it."""
    return str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else str(page)
