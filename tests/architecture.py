"""The rules of the package's structure: each takes a root folder, reads source text alone and returns what breaks it.

A rule imports nothing of the package: it parses the files below `root/qexport` with `ast`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

PACKAGE = "qexport"
MUTABLE = frozenset({"dict", "list", "set", "defaultdict", "OrderedDict", "Counter", "deque", "WeakKeyDictionary"})
MUTATIONS = frozenset(
    {"add", "append", "clear", "extend", "insert", "pop", "popitem", "remove", "setdefault", "update"}
)
CACHES = frozenset({"cache", "lru_cache"})


class Violation(NamedTuple):
    """Where a rule is broken, which is what exceptions are listed by, and how."""

    where: str
    what: str


@dataclass(frozen=True)
class Module:
    """One file of the package: its dotted name, its path below the root, and its syntax tree."""

    name: str
    path: str
    lines: int
    tree: ast.Module

    @property
    def folder(self) -> str:
        """Its floor's name: the first folder or file below the package, "" for the package itself."""
        return self.name.split(".")[1] if "." in self.name else ""


@cache
def modules(root: Path) -> Mapping[str, Module]:
    """Every module below `root/qexport` by its dotted name."""
    found = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        text = path.read_text(encoding="utf-8")
        found[name] = Module(name, str(path.relative_to(root)), text.count("\n"), ast.parse(text))
    return found


@cache
def imports(root: Path) -> Mapping[str, frozenset[str]]:
    """What each module imports, wherever it stands in the file: modules of the package, and foreign ones by full name.

    `from qexport import name` of a name that is no module is an import of the public face, `__version__` excepted.
    """
    return {name: frozenset(_imported(module, modules(root))) for name, module in modules(root).items()}


def _imported(module: Module, known: Collection[str]) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name != PACKAGE)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, module)
            for alias in node.names:
                if f"{source}.{alias.name}" in known:
                    yield f"{source}.{alias.name}"
                elif (source, alias.name) != (PACKAGE, "__version__"):
                    yield source
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"}:
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))


def _source(node: ast.ImportFrom, module: Module) -> str:
    if not node.level:
        return node.module or ""
    package = module.name if module.path.endswith("__init__.py") else module.name.rpartition(".")[0]
    parts = package.split(".")[: len(package.split(".")) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _called(node: ast.Call) -> str:
    return last_name(node.func)


def last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def floors_respected(root: Path, floors: Sequence[Collection[str]]) -> list[Violation]:
    """Arrows that point up: imports of a module that stands on a higher floor than the file that imports it."""
    floor = {name: number for number, names in enumerate(floors) for name in names}
    known = modules(root)
    broken = [Violation(m.path, "stands on no floor") for m in known.values() if m.folder not in floor]
    for name, targets in imports(root).items():
        for target in targets & known.keys():
            own, its = (floor.get(known[n].folder, 0) for n in (name, target))
            if its > own:
                where = f"{known[name].path} -> {known[target].path}"
                broken.append(Violation(where, f"floor {own} imports floor {its}"))
    return broken


def no_circles(root: Path) -> list[Violation]:
    """Files that import each other, directly or through others; one violation for one circle."""
    graph = {name: set(targets & modules(root).keys()) for name, targets in imports(root).items()}
    broken = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            circle: list[str] = list(reversed(error.args[1]))
            graph[circle[0]].discard(circle[1])
            paths = [modules(root)[name].path for name in circle]
            broken.append(Violation(" -> ".join(_from_first(paths)), "a circle of imports"))
        else:
            return broken


def _from_first(circle: Sequence[str]) -> list[str]:
    """The same circle, beginning and ending with the file that comes first in the alphabet."""
    ring = list(circle[:-1])
    start = ring.index(min(ring))
    return [*ring[start:], *ring[:start], ring[start]]


def runtimes_at_home(root: Path, homes: Mapping[str, Collection[str]]) -> list[Violation]:
    """Imports of a third-party package outside the folders that it belongs to (paths below `qexport/`)."""
    broken = []
    for name, targets in imports(root).items():
        path = modules(root)[name].path
        for package in sorted({target.split(".")[0] for target in targets} & homes.keys()):
            if not any(path.startswith(f"{PACKAGE}/{home}") for home in homes[package]):
                broken.append(Violation(f"{path}: {package}", f"belongs to {', '.join(homes[package])}"))
    return broken


def one_file_prints(root: Path, home: str) -> list[Violation]:
    """Calls that print, write to standard output or make what Rich prints, outside of the file `home`."""
    broken = []
    for module in modules(root).values():
        uses = (_is_print(node) for node in ast.walk(module.tree))
        if module.path != f"{PACKAGE}/{home}" and any(uses):
            broken.append(Violation(module.path, "prints"))
    return broken


STARTS = (
    r"(.*\.)?(Popen|Process|ProcessPoolExecutor|check_(call|output))|subprocess\.(run|call)"
    r"|os\.(system|popen|spawn.*|exec.*|posix_spawn.*)"
)
"""Calls that start another process."""


def one_file_starts_processes(root: Path, home: str) -> list[Violation]:
    """Files that start other programs or processes by themselves, `home` excepted, where signals are thought of."""
    broken = []
    for module in modules(root).values():
        calls = (ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call))
        if module.path != f"{PACKAGE}/{home}" and any(re.fullmatch(STARTS, call) for call in calls):
            broken.append(Violation(module.path, "starts a process"))
    return broken


def _is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and bool(
        re.fullmatch(
            r"(.*\.)?print|sys\.std(out|err)\.(write.*|buffer.*)|Text|Table|.*\.add_row",
            ast.unparse(node.func),
            re.DOTALL,
        )
    )


def job_stays_above(root: Path, allowed: Collection[str]) -> list[Violation]:
    """Files that name `ExportJob` or import a module of `qexport/job`, though their folder must not know it."""
    broken = []
    for name, module in modules(root).items():
        knows = any(target.startswith(f"{PACKAGE}.job") for target in imports(root)[name])
        if module.folder not in allowed and (knows or "ExportJob" in names_in(module.tree)):
            broken.append(Violation(module.path, "knows ExportJob"))
    return broken


def files_are_short(root: Path, most: int) -> list[Violation]:
    """Files with `most` lines or more."""
    return [Violation(m.path, f"has {m.lines} lines") for m in modules(root).values() if m.lines >= most]


def functions_are_short(root: Path, most: int) -> list[Violation]:
    """Functions of more than `most` lines, docstring and signature included."""
    broken = []
    for module in modules(root).values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > most:
                    broken.append(Violation(f"{module.path}: {node.name}", f"has {lines} lines"))
    return broken


def packages_say_what_they_are(root: Path) -> list[Violation]:
    """Folders of the package without an `__init__.py`, or whose `__init__.py` has no docstring."""
    broken = []
    for folder in sorted({path.parent for path in (root / PACKAGE).rglob("*.py")}):
        start = folder / "__init__.py"
        if not start.is_file():
            broken.append(Violation(str(folder.relative_to(root)), "has no __init__.py"))
        elif not ast.get_docstring(ast.parse(start.read_text(encoding="utf-8"))):
            broken.append(Violation(str(start.relative_to(root)), "has no docstring"))
    return broken


def no_module_state(root: Path) -> list[Violation]:
    """Names of a module that functions change, containers that are made to be filled, and cached functions."""
    broken = []
    for module in modules(root).values():
        kept = {*_empty_containers(module.tree), *_changed(module.tree), *_cached(module.tree)}
        broken += [Violation(f"{module.path}: {name}", "is state of the module") for name in sorted(kept)]
    return broken


def assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in tree.body:
        if isinstance(node, ast.Assign):
            yield from ((t.id, node.value) for t in node.targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def _empty_containers(tree: ast.Module) -> Iterator[str]:
    for name, value in assigned(tree):
        literal = isinstance(value, ast.List | ast.Dict) and not ast.unparse(value)[1:-1]
        made = isinstance(value, ast.Call) and _called(value) in MUTABLE and not value.args and not value.keywords
        if literal or made:
            yield name


def _changed(tree: ast.Module) -> Iterator[str]:
    """Top-level names that are rebound by `global`, stored into, or changed through a method, inside a function."""
    known = {name for name, _ in assigned(tree)}
    for function in (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)):
        nodes = list(ast.walk(function))
        own = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for node in nodes:
            if isinstance(node, ast.Global):
                yield from node.names
            elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                yield from {last_name(node.value)} & known - own
            elif isinstance(node, ast.Call):
                yield from {_mutated(node)} & known - own


def _mutated(call: ast.Call) -> str:
    """What a method call changes, as it is written; "" if it changes nothing."""
    method = call.func
    return ast.unparse(method.value) if isinstance(method, ast.Attribute) and method.attr in MUTATIONS else ""


def _cached(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and any(last_name(d) in CACHES for d in node.decorator_list):
            yield node.name


def nothing_imports_tests(root: Path) -> list[Violation]:
    """Files of the package that import a module of `tests/`."""
    own = {"tests", "conftest", *(path.stem for path in (root / "tests").glob("*.py"))}
    return [
        Violation(modules(root)[name].path, f"imports {target}")
        for name, targets in imports(root).items()
        for target in targets
        if target.split(".")[0] in own
    ]


def names_in(node: ast.AST) -> frozenset[str]:
    """Every name that a piece of code reads, also in strings: dotted names, `module:name`, code for another process."""
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and not isinstance(inner.ctx, ast.Store):
            found.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            found.add(inner.attr)
        elif isinstance(inner, ast.alias):
            found |= {inner.name, *inner.name.split(".")}
        elif isinstance(inner, ast.ImportFrom) and inner.module:
            found.add(inner.module)
        elif isinstance(inner, ast.Constant) and re.search(r"^[\w.]+(:\w+)?$|from qexport", str(inner.value)):
            found |= set(re.findall(r"[\w.]+", str(inner.value)))
    return frozenset(found)
