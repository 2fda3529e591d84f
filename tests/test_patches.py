"""What is changed in other people's code: undone on every way out, thread by thread, and nowhere but in compat."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Barrier, Thread
from types import ModuleType
from typing import Any

import pytest

from qexport.compat import patches
from qexport.compat.patches import (
    NO_TELEMETRY,
    OFFLINE,
    PATCHES,
    VARIABLES,
    Absent,
    Patch,
    Variable,
    replaced,
    set_variables,
    without_variable,
)
from qexport.compat.torchvision import repair

PACKAGE = Path(patches.__file__).parents[1]
SOMEBODY = Patch("somebodys_module", "answer", "any", "a test")
GONE = Absent("QEXPORT_TEST_GONE", "any", "a test")


@pytest.fixture
def somebody(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module with a function `answer`, which says "original"."""
    module: Any = ModuleType(SOMEBODY.module)
    module.answer = lambda: "original"
    monkeypatch.setitem(sys.modules, SOMEBODY.module, module)
    return module


@pytest.mark.parametrize("way_out", [None, ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_the_original_is_back_on_every_way_out(way_out: type[BaseException] | None, somebody: Any) -> None:
    original = somebody.answer
    try:
        with replaced(SOMEBODY, lambda: "ours"):
            assert somebody.answer() == "ours"
            if way_out is not None:
                raise way_out
    except BaseException as error:
        assert type(error) is way_out  # noqa: PT017 (some of these end pytest)
    assert somebody.answer is original


def test_blocks_in_blocks_have_their_own_values(somebody: Any) -> None:
    original = somebody.answer
    with replaced(SOMEBODY, lambda: "outer"):
        with replaced(SOMEBODY, lambda: "inner"):
            assert somebody.answer() == "inner"
        assert somebody.answer() == "outer"
    assert somebody.answer is original


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_threads_that_overlap_see_their_own_values_and_the_last_restores(first_out: int, somebody: Any) -> None:
    original, seen = somebody.answer, dict[tuple[int, str], str]()
    both_in, one_out, end = Barrier(3, timeout=10), Barrier(3, timeout=10), Barrier(3, timeout=10)

    def work(number: int) -> None:
        with replaced(SOMEBODY, lambda: f"thread {number}"):
            both_in.wait()
            seen[number, "both"] = somebody.answer()
            if number != first_out:
                one_out.wait()
                seen[number, "alone"] = somebody.answer()
                end.wait()
        if number == first_out:
            one_out.wait()
            seen[number, "out"] = somebody.answer()
            end.wait()

    threads = [Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    both_in.wait()
    assert somebody.answer() == "original"  # this thread has replaced nothing
    one_out.wait()
    end.wait()
    for thread in threads:
        thread.join()
    stays = 1 - first_out
    assert seen == {
        (0, "both"): "thread 0",
        (1, "both"): "thread 1",
        (stays, "alone"): f"thread {stays}",
        (first_out, "out"): "original",
    }
    assert somebody.answer is original


def test_many_threads_at_once(somebody: Any) -> None:
    original = somebody.answer

    def work(number: int) -> list[int]:
        found = []
        for _ in range(200):
            with replaced(SOMEBODY, lambda: number):
                found.append(somebody.answer())
        return found

    with ThreadPoolExecutor(8) as pool:
        for number, found in enumerate(pool.map(work, range(8))):
            assert found == [number] * 200
    assert somebody.answer is original


def test_what_somebody_else_puts_there_meanwhile_stays_and_works(somebody: Any) -> None:
    with replaced(SOMEBODY, lambda: "ours"):
        below = somebody.answer

        def wrapped() -> str:
            return f"wrapped {below()}"

        somebody.answer = wrapped
        assert somebody.answer() == "wrapped ours"
    assert somebody.answer is wrapped
    assert somebody.answer() == "wrapped original"


def test_a_variable_is_back_behind_the_last_of_two_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GONE.name, "kept")
    inside, out = Barrier(2, timeout=10), Barrier(2, timeout=10)

    def work() -> None:
        with suppress(KeyboardInterrupt), without_variable(GONE):
            inside.wait()
            out.wait()
            raise KeyboardInterrupt

    thread = Thread(target=work)
    with without_variable(GONE):
        thread.start()
        inside.wait()
    assert GONE.name not in os.environ
    out.wait()
    thread.join()
    assert os.environ[GONE.name] == "kept"


@pytest.mark.parametrize("always", [True, False])
def test_a_users_own_setting_is_kept_where_it_may_be(always: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QEXPORT_TEST_SET", "mine")
    set_variables(Variable("QEXPORT_TEST_SET", "ours", "any", "a test", always))
    assert os.environ["QEXPORT_TEST_SET"] == ("ours" if always else "mine")


def test_the_list_is_complete_and_says_why() -> None:
    listed = [each for each in vars(patches).values() if isinstance(each, Patch)]
    assert sorted(listed, key=repr) == sorted(PATCHES, key=repr)
    variables = [each for each in vars(patches).values() if isinstance(each, Variable)]
    assert set(VARIABLES) == set(variables) | set(OFFLINE) | set(NO_TELEMETRY)
    assert all(each.versions and each.why for each in (*PATCHES, *VARIABLES))
    elsewhere = (path for path in PACKAGE.rglob("*.py") if path != Path(patches.__file__))
    assert not [path for path in elsewhere if " Patch(" in path.read_text("utf-8")]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: f"{patch.module}.{patch.name}")
def test_what_is_replaced_is_there(patch: Patch) -> None:
    if find_spec(patch.module.partition(".")[0]) is None:
        pytest.skip(f"needs {patch.module}")
    repair()  # torchvision, where it needs that
    assert callable(vars(import_module(patch.module))[patch.name])


def test_nothing_outside_compat_changes_foreign_modules_or_the_environment() -> None:
    """The folder for temporary files is the one thing that `system` tells processes that it starts."""
    trees = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    packages = {name for tree in trees.values() for module in imported(tree) if (name := foreign(module))}
    assert {"torch", "ultralytics", "openvino", "onnxruntime", "litert_torch"} <= packages
    wrong = [
        f"{path}:{line} {why}"
        for path, tree in trees.items()
        if not path.startswith("compat/")
        for line, why in changes(tree, packages)
        if not (path.startswith("system/") and why == "environment")
    ]
    assert wrong == []


PLANTED = {
    "from ultralytics.nn.backends.onnx import ONNXBackend as B\ndef f():\n    B.__init__ = g": "B.__init__",
    "def f():\n    from a.b import Loader\n    setattr(Loader, 'load_model', g)": "setattr(Loader)",
    "import torch\nvars(torch.export)['export'] = g": "vars(torch.export)",
    "import torch\ntorch.nn.Module.__dict__['forward'] = g": "torch.nn.Module.__dict__",
    "def f(openvino):\n    openvino.Core, x = g, 1": "openvino.Core",
    "from litert import Backend\nkind: Any = Backend\nkind.forward = g": "kind.forward",
    "import torchvision.ops.boxes\ndel torchvision.ops.boxes.x": "torchvision.ops.boxes.x",
    "import torch\nvars(torch).update(export=g)": "vars(torch)",
    "import os\nos.environ['A'] = 'b'": "environment",
    "import os\nos.environ.setdefault('A', 'b')": "environment",
    "import sys\nsys.modules['torch'] = None": "environment",
    "import torch\nlayer = torch.nn.Linear(1, 1)\nlayer.weight = g": "",
    "import torch\nclass A:\n    def f(self):\n        self.x = torch.zeros(1)": "",
    "import os\nhome = os.environ.get('HOME')": "",
}


@pytest.mark.parametrize("source", PLANTED)
def test_the_rule_finds_every_way_of_changing_them(source: str) -> None:
    assert [why for _, why in changes(ast.parse(source), {"openvino"})] == (
        [PLANTED[source]] if PLANTED[source] else []
    )


def foreign(module: str) -> str:
    """The package that a module belongs to; "" for our own and the standard library's."""
    package = module.partition(".")[0]
    return "" if package == "qexport" or package in sys.stdlib_module_names else package


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def changes(tree: ast.AST, packages: set[str]) -> Iterator[tuple[int, str]]:
    """Line and what is changed there: attributes of foreign modules and classes, the environment, `sys.modules`.

    A name is foreign where an import or another foreign name is bound to it, or where it is a package's own.
    """
    names = set(packages)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or foreign(alias.name) for alias in node.names if foreign(alias.name)}
        elif isinstance(node, ast.ImportFrom) and foreign(node.module or ""):
            names |= {alias.asname or alias.name for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value and root(node.value) in names:
            names |= {each.id for each in targets(node) if isinstance(each, ast.Name)}
    for node in ast.walk(tree):
        for place in (*targets(node), *called_on(node)):
            if what := changed(place, lambda each: root(each) in names):
                yield node.lineno, what  # type: ignore[attr-defined]  # statements and calls have a line


def root(node: ast.AST | None) -> str:
    """The name at the beginning of a chain of attributes, "" of anything else."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def targets(node: ast.AST) -> list[ast.expr]:
    """What a statement binds or deletes, tuples taken apart."""
    found: list[ast.expr] = list(getattr(node, "targets", ()))
    if isinstance(node, (ast.AnnAssign, ast.AugAssign)):
        found = [node.target]
    return [part for each in found for part in (each.elts if isinstance(each, (ast.Tuple, ast.List)) else [each])]


def called_on(node: ast.AST) -> list[ast.expr]:
    """What a call changes: the object of `setattr`, the mapping of `update`, as what would be assigned to."""
    if not isinstance(node, ast.Call):
        return []
    if isinstance(node.func, ast.Name) and node.func.id in ("setattr", "delattr"):
        return [node]
    changing = ("update", "setdefault", "pop", "popitem", "clear")
    if isinstance(node.func, ast.Attribute) and node.func.attr in changing:
        return [ast.Subscript(node.func.value, ast.Constant("")), node.func.value]
    return []


def changed(place: ast.expr, is_foreign: Callable[[ast.expr], bool]) -> str:
    """What is changed by an assignment to a place, "" for what is our own."""
    if isinstance(place, ast.Call) and isinstance(place.func, ast.Name) and place.func.id in ("setattr", "delattr"):
        return f"{place.func.id}({ast.unparse(place.args[0])})" if is_foreign(place.args[0]) else ""
    if isinstance(place, ast.Attribute):
        return ast.unparse(place) if is_foreign(place) else ""
    if not isinstance(place, ast.Subscript):
        return ""
    mapping = place.value
    if ast.unparse(mapping) in ("os.environ", "sys.modules"):
        return "environment"
    inner = mapping.args[0] if isinstance(mapping, ast.Call) and ast.unparse(mapping.func) == "vars" else None
    if inner is None and isinstance(mapping, ast.Attribute) and mapping.attr == "__dict__":
        inner = mapping.value
    return ast.unparse(mapping) if inner is not None and is_foreign(inner) else ""
