"""Write docs/reference.md from the program: every verb with its options, formats, targets and other names.

    make reference        (or: .venv/bin/python docs/reference.py)

`tests/test_guides.py` fails where the page is not what this writes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

from qexport.backends.info import BackendInfo, Option
from qexport.backends.registry import infos
from qexport.cli.app import VERBS, export_app
from qexport.cli.verify import checks_app
from qexport.optimisation.effort import DEFAULT_EFFORT, EFFORTS
from qexport.optimisation.registry import PASSES
from qexport.planning.registry import DEFAULT_RANGES, RANGES
from qexport.targets import TARGETS
from qexport.vocabulary import CPU_ALIASES, FORMAT_ALIASES, PRECISION_ALIASES, PRECISIONS

PAGE = Path(__file__).resolve().parent / "reference.md"
HEAD = """# Reference

Made from the program by `make reference`. What to know besides: [options](options.md) of an export, and
[those of training](training.md#options). Every verb has `--help`.
"""
FORMAT_HEADS = ("format", "also called", "precisions", "open batch", "from ONNX", "pip installs", "runs here with")
TARGET_HEADS = ("target", "device", "also called", "formats", "runs there, too", "precision", "CPU", "threads")
KINDS: dict[Any, str] = {int: "whole number", float: "number", Path: "path"}
"""Type of an option → what it takes; all others take text."""


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


def page() -> str:
    """The page as it has to be."""
    parts = [HEAD, "## Verbs\n", *(_verb(name, command) for name, command in commands().items()), *_names()]
    return "\n".join(parts)


def commands() -> dict[str, Any]:
    """Every command by its name, that of an export "" first."""
    found: dict[str, Any] = {"": typer.main.get_command(export_app)}
    for app in (*dict.fromkeys(VERBS.values()), checks_app):
        group: Any = typer.main.get_command(app)
        found |= group.commands
    return found


def _verb(name: str, command: Any) -> str:
    shown = [each for each in command.params if not getattr(each, "hidden", False) and each.name != "help"]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    words = " ".join(["qexport", *([name] if name else []), *(each.name.upper() for each in arguments), "[options]"])
    said = (command.help or "").split("\n\n")[0]
    options = [each for each in shown if each not in arguments]
    rows = [[f"`{each.name.upper()}`", "", _text(each.help)] for each in arguments]
    rows += [[", ".join(f"`{word}`" for word in each.opts), _takes(each), _text(each.help)] for each in options]
    table = f"\n{_table(('', 'takes', 'meaning'), rows)}\n" if rows else ""
    return f"### {name or 'export'}\n\n`{words}`: {_text(said)}\n{table}"


def _takes(option: Any) -> str:
    if option.is_flag:
        return ""
    default = "" if option.default is None or not option.show_default else f" ({option.default})"
    return f"{KINDS.get(option.type_descriptor.annotation, 'text')}{default}"


def _names() -> Iterator[str]:
    yield "## Formats\n"
    yield _table(FORMAT_HEADS, [_format(info) for info in _own()]) + "\n"
    yield "Options of single formats, given as above where there is such an option, else as `--option NAME=VALUE`:\n"
    options = [_option(info, option) for info in _own() for option in info.options]
    yield _table(("format", "option", "takes", "meaning"), options) + "\n"
    yield "## Precisions and CPUs\n"
    rows = [[f"`{name}`", _listed(PRECISION_ALIASES[name])] for name in PRECISIONS]
    yield _table(("precision", "also called"), rows) + "\n"
    cpus = [[f"`{name}`", _listed(others)] for name, others in CPU_ALIASES.items()]
    yield _table(("--cpu", "also called"), cpus) + "\n"
    yield "## Targets\n"
    yield _table(TARGET_HEADS, [_target(name) for name in TARGETS]) + "\n"
    yield "## Efforts, passes and ranges\n"
    efforts = [[f"`{one.name}`", f"`{one.ranges or DEFAULT_RANGES}`", _listed(one.passes)] for one in EFFORTS.values()]
    yield _table(("effort", "ranges", "passes"), efforts) + "\n"
    yield f"The default is `{DEFAULT_EFFORT}`.\n\nAll passes: {_listed(PASSES.own)}.\n"
    yield f"All range estimators: {_listed(RANGES.own)}.\n"


def _own() -> list[BackendInfo]:
    """Formats of this package, whatever else is installed."""
    return [info for info in infos() if info.name in FORMAT_ALIASES]


def _format(info: BackendInfo) -> list[str]:
    yes = {True: "yes", False: ""}
    precisions = [name for name in PRECISIONS if name in info.precisions]
    return [
        f"`{info.name}`",
        _listed(FORMAT_ALIASES[info.name]),
        _listed(precisions),
        yes[info.dynamic],
        yes[info.from_onnx],
        f"`{info.install}`",
        info.runtime,
    ]


def _option(info: BackendInfo, option: Option) -> list[str]:
    switch = option.kind is bool
    kind = _listed(map(str, option.choices)) or ("`true`, `false`" if switch else KINDS.get(option.kind, "text"))
    default = "" if option.default is None else f" ({str(option.default).lower() if switch else option.default})"
    return [f"`{info.name}`", f"`{option.name}`", f"{kind}{default}", _text(option.help)]


def _target(name: str) -> list[str]:
    device = TARGETS[name]
    others = [each for each in device.runs if each not in device.formats]
    threads = "" if device.threads is None else str(device.threads)
    names = (_listed(device.aliases), _listed(device.formats), _listed(others))
    return [f"`{name}`", device.device, *names, f"`{device.precision}`", device.cpu, threads]


def _listed(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _text(words: str | None) -> str:
    """Text of a table's cell."""
    return " ".join((words or "").split()).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])


if __name__ == "__main__":
    raise SystemExit(main())
