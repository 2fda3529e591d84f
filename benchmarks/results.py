"""Keep what benchmarks measure in benchmarks/results.json, and show it in the documentation.

    make tables           (or: .venv/bin/python benchmarks/results.py)

writes the tables of the documentation anew from results.json, and measures nothing. A benchmark without options keeps
its tables there and shows them; with options only where `--results` says so, as what it has measured is then something
else, or less. Into another file it writes only that.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import PAGES, Column, Machine, MarkerError, Table, filled, markdown, name_of

from qexport import __version__
from qexport.errors import QexportError
from qexport.system.capabilities import cpu_features
from qexport.system.files import write_text
from qexport.system.json_form import from_plain, parse_json, to_plain
from qexport.system.load import seconds_of_others
from qexport.system.machine import cores, default_threads, processor_name, version_of

ROOT = Path(__file__).resolve().parents[1]
KEPT = ROOT / "benchmarks" / "results.json"
SHARED = ROOT.parent / "shared"
SCHEMA = 1
PACKAGES = ("torch", "ultralytics", "onnxruntime", "openvino", "ai-edge-litert", "litert-torch")
MATTER = ("AVX2", "AVX512-VNNI", "AVX-VNNI", "AMX-INT8", "BF16", "NEON", "dotprod", "i8mm")
"""Features of the CPU that heads of tables name, of those that `qexport doctor` looks for."""
ELSEWHERE = ("shared", "results")
"""Options that say where files are: what is measured stays the same."""


@dataclass(frozen=True)
class Kept:
    """The file: a table by each name, in the order of names."""

    schema: int
    tables: Mapping[str, Table]


@dataclass(frozen=True)
class Run:
    """A benchmark under way.

    Attributes:
        command: as a heading names it.
        path: of the file that its tables go to; None for no file.
        started: seconds of `time.perf_counter`, and CPU seconds that other programs have had until then.
    """

    command: str
    path: Path | None
    started: tuple[float, float | None]


def begin(parser: argparse.ArgumentParser, target: str) -> tuple[argparse.Namespace, Run]:
    """Read the command line; end here, before anything is measured, where results or pages could not be written.

    Args:
        target: the command that runs this benchmark without options, such as "make bench".
    """
    parser.add_argument("--results", type=Path, metavar="FILE", help="keep tables there; without options: results.json")
    given = parser.parse_args()
    usual = all(value == parser.get_default(name) for name, value in vars(given).items() if name not in ELSEWHERE)
    path = given.results.resolve() if given.results else KEPT if usual else None
    with clear_errors():
        if path is not None:
            read(path)
        if path == KEPT:
            filled(texts(PAGES), read(KEPT))
    command = target if usual else " ".join([f"benchmarks/{Path(sys.argv[0]).name}", *without_places(sys.argv[1:])])
    return given, Run(command, path, (time.perf_counter(), seconds_of_others()))


def without_places(words: Sequence[str]) -> list[str]:
    """A command line without the options that say where files are."""
    options = {f"--{name}" for name in ELSEWHERE}
    return [
        word
        for before, word in zip(["", *words], words, strict=False)
        if word.partition("=")[0] not in options and before not in options
    ]


def table(
    run: Run,
    name: str,
    about: str,
    columns: Iterable[Column],
    rows: Iterable[Sequence[Any]],
    bounds: str = "",
    broken: Iterable[str] | None = None,
    remarks: Iterable[str] = (),
) -> Table:
    """A table of what was measured here and now."""
    return Table(
        name,
        about,
        run.command,
        time.strftime("%Y-%m-%d"),
        this_machine(),
        tuple(columns),
        tuple(map(tuple, rows)),
        bounds,
        None if broken is None else tuple(broken),
        tuple(remarks),
        versions(),
        others_since(run.started),
    )


def this_machine() -> Machine:
    """What is measured on."""
    found = cpu_features() or {}
    return Machine(processor_name(), tuple(name for name in MATTER if found.get(name)), cores(), default_threads())


def versions() -> dict[str, str]:
    """This package and those that figures depend on, where they are installed."""
    found = {name: version_of(name) for name in PACKAGES}
    return {"qexport": __version__, **{name: version for name, version in found.items() if version}}


def others_since(started: tuple[float, float | None]) -> float | None:
    """Cores that other programs have kept busy, on average; this one's children count with it once they have ended."""
    now = seconds_of_others()
    if now is None or started[1] is None:
        return None
    return max(0.0, round((now - started[1]) / (time.perf_counter() - started[0]), 2))


def keep(run: Run, *measured: Table) -> None:
    """Print tables, and put them where the run keeps them, each in place of the one of its name.

    Pages are written where that is results.json of this repository.
    """
    for each in measured:
        print(f"\n{markdown(each)}", flush=True)
    if run.path is None:
        print("\nnot kept, as options were given: --results FILE keeps it", flush=True)
        return
    with clear_errors(), alone(run.path.parent):
        kept = {**read(run.path), **{each.name: each for each in measured}}
        write_text(run.path, dumped(kept))
        if run.path == KEPT:
            write_pages(kept, PAGES)


def missed(what: str, value: float, least: float = -math.inf, most: float = math.inf, form: str = ".3f") -> list[str]:
    """What is said of a bound that is not held; empty where it is."""
    if least <= value <= most:
        return []
    side, bound = ("under", least) if value < least else ("over", most)
    return [f"{what} {value:{form}} is {side} {bound:{form}}"]


def ended(broken: Sequence[str]) -> int:
    """Say which bounds are broken, and return the exit code."""
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if broken else 0


@contextmanager
def clear_errors() -> Iterator[None]:
    """End with one line where a file or a page cannot be read, filled or written."""
    try:
        yield
    except (MarkerError, OSError) as error:
        raise SystemExit(str(error)) from error
    except QexportError as error:
        raise SystemExit(error.what) from error  # what to do is said of options of an export


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other benchmarks from writing to this folder meanwhile; no file is left by that."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read(path: Path) -> dict[str, Table]:
    """The tables of a file; none where it is not there.

    Raises:
        MarkerError: it is no file of results.
    """
    if not path.is_file():
        return {}
    try:
        kept = from_plain(Kept, parse_json(path.read_bytes()))
    except ValueError as error:
        raise MarkerError(f"{path} is no file of results ({error}): mend or remove it") from error
    if kept.schema != SCHEMA:
        raise MarkerError(f"{path} has schema {kept.schema}, this is {SCHEMA}: remove it")
    return dict(kept.tables)


def dumped(tables: Mapping[str, Table]) -> str:
    """The file's text: a row on a line, so that differences can be read."""
    blocks = []
    for name, each in sorted(to_plain(tables).items()):
        fields = [f"   {_word(key)}: {_lines(value)}" for key, value in each.items()]
        blocks.append(f"  {_word(name)}: {{\n" + ",\n".join(fields) + "\n  }")
    return f'{{\n "schema": {SCHEMA},\n "tables": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def _lines(value: Any) -> str:
    """A field: what each row and each column is, on a line of its own."""
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        return "[\n" + ",\n".join(f"    {_word(each)}" for each in value) + "\n   ]"
    return _word(value)


def _word(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def texts(pages: Iterable[Path]) -> dict[Path, str]:
    """Page → its text."""
    return {page: page.read_text(encoding="utf-8") for page in pages}


def write_pages(tables: Mapping[str, Table], pages: Iterable[Path]) -> list[Path]:
    """Fill the marked places of pages, and return those that have changed.

    Raises:
        MarkerError: a place cannot be filled; no page is written then.
    """
    before = texts(pages)
    after = filled(before, tables)
    changed = [page for page in before if after[page] != before[page]]
    for page in changed:
        write_text(page, after[page])
    return changed


def main() -> int:
    """Write the tables of all pages anew."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with clear_errors():
        changed = write_pages(read(KEPT), PAGES)
    print(f"wrote {', '.join(map(name_of, changed))}" if changed else "all tables are as results.json has them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
