"""Rules of the package's structure: what nothing uses, and what is there twice. As `architecture`."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from architecture import PACKAGE, Violation, assigned, imports, last_name, modules, names_in

SCRIPTS = ("benchmarks", "docs", "calibration_data")
"""Folders beside the package whose scripts use it."""
SETTINGS = "pyproject.toml"
"""Names entry points as `module:name`."""
TEXTS = ("Makefile", f"{PACKAGE}/**/*.html", f"{PACKAGE}/**/*.jinja")
"""Files that call the package by name without being Python: commands and the page's templates."""
TRANSPARENT = frozenset({"dataclass", "cache", "lru_cache", "contextmanager", "runtime_checkable", "singledispatch"})
"""Decorators that do not make a function known to anybody; all others, such as `app.command`, do."""
MIN_COPY = 14
"""Nodes of a body's syntax tree from which two functions are copies; shorter ones are alike by chance."""


def every_file_is_used(root: Path, public: Collection[str]) -> list[Violation]:
    """Modules that neither the package, a script beside it nor an entry point imports or names.

    Args:
        public: paths, or beginnings of paths, of what is there for users of the package.
    """
    named = {target for name, targets in imports(root).items() for target in targets if target != name}
    for tree in [*_scripts(root), *(module.tree for module in modules(root).values())]:
        named |= {name for name in names_in(tree) if name.startswith(PACKAGE)}
    named |= {*_words_beside(root), *(module for module, _ in _entry_points(root))}
    return [
        Violation(module.path, "is used by nothing")
        for name, module in modules(root).items()
        if not module.path.endswith(("__init__.py", "__main__.py")) and name not in named
        if not module.path.startswith(tuple(public))
    ]


def every_definition_is_used(root: Path, public: Collection[str]) -> list[Violation]:
    """Top-level functions, classes and constants that nothing names but themselves and tests.

    Names are compared as words: a dead function that is called like a living one is not found. `public` is that of
    `every_file_is_used`.
    """
    count = Counter([*_words_beside(root), *(name for _, name in _entry_points(root))])
    definitions = []
    for tree in _scripts(root):
        count.update(names_in(tree))
    for module in modules(root).values():
        for node in module.tree.body:
            count.update(names_in(node))
            definitions += [(module.path, name, name in names_in(node)) for name in _defined(node)]
    return [
        Violation(f"{path}: {name}", "is named by nothing")
        for path, name, names_itself in definitions
        if count[name] == int(names_itself) and not path.startswith(tuple(public))
    ]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        if all(last_name(decorator) in TRANSPARENT for decorator in node.decorator_list) and node.name[:2] != "__":
            yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            if isinstance(target, ast.Name) and not target.id.startswith("__"):
                yield target.id


@cache
def _scripts(root: Path) -> tuple[ast.Module, ...]:
    paths = [path for folder in SCRIPTS for path in sorted((root / folder).glob("*.py"))]
    return tuple(ast.parse(path.read_text(encoding="utf-8")) for path in paths)


@cache
def _words_beside(root: Path) -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for pattern in TEXTS for path in root.glob(pattern))
    return frozenset(word for text in texts for word in re.findall(r"(?=\b([\w.]+))", text))


def _entry_points(root: Path) -> list[tuple[str, str]]:
    settings = root / SETTINGS
    text = settings.read_text(encoding="utf-8") if settings.is_file() else ""
    return re.findall(r'"([\w.]+):(\w+)"', text)


def nothing_is_there_twice(root: Path) -> list[Violation]:
    """Functions of two files that do the same, and thresholds of one name and value in two files.

    Arguments may be called differently. Only numbers whose names say that they bound something are compared.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for module in modules(root).values():
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef) and (body := _body(node)):
                places[body].append(f"{module.path}: {node.name}")
        for name, value in assigned(module.tree):
            if re.search(r"MIN|MAX|TOLERANCE|SAME", name) and isinstance(value, ast.Constant):
                places[f"{name} = {value.value!r}"].append(f"{module.path}: {name}")
    twice = (where for where in places.values() if len({place.split(":")[0] for place in where}) > 1)
    return [Violation(" = ".join(where), "is there twice") for where in twice]


def _body(function: ast.FunctionDef) -> str:
    """What a function does, its arguments by their number and without its docstring; "" for a short one."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    if sum(1 for statement in statements for _ in ast.walk(statement)) < MIN_COPY:
        return ""
    numbers = {argument.arg: f"argument{i}" for i, argument in enumerate(function.args.args)}
    text = "\n".join(ast.unparse(statement) for statement in statements)
    return re.sub(r"(?<![.\w'\"])[A-Za-z_]\w*", lambda word: numbers.get(word[0], word[0]), text)
