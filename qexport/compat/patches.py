"""Everything that qexport changes in other people's code and in the environment: the list, and the one way to do it.

Nothing outside `qexport.compat` assigns to a foreign module (`tests/test_patches.py` holds that). A replaced function
is put back on every way out of the block that replaces it, and is seen by the block's own thread only.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Patch:
    """A function of a foreign module that is replaced.

    Attributes:
        module, name: where it is.
        versions: of which packages that is known to be needed and to work.
        why: what for.
        lasting: it stays replaced until the process ends.
    """

    module: str
    name: str
    versions: str
    why: str
    lasting: bool = False


@dataclass(frozen=True)
class Variable:
    """An environment variable that is set for this process and those that it starts.

    Attributes:
        versions: of which packages that was tried.
        always: also where the user has set it.
    """

    name: str
    value: str
    versions: str
    why: str
    always: bool = False


@dataclass(frozen=True)
class Absent:
    """An environment variable that is taken out for a while."""

    name: str
    versions: str
    why: str


FONT_CHECK = Patch(
    "ultralytics.data.utils", "check_font", "ultralytics 8.4", "it downloads a font for plots that are not drawn"
)
TORCH_EXPORT = Patch(
    "torch.export",
    "export",
    "litert-torch 0.10 with torch 2.13",
    "the converter traces a graph that was traced already, which takes seconds (lowering/direct_export.py)",
)
DECOMPOSITIONS = Patch(
    "litert_torch.fx_infra._safe_run_decompositions",
    "safe_run_decompositions",
    "litert-torch 0.10 with torch 2.13",
    "it traces the whole graph to rewrite a tenth of it, four times (lowering/decompositions.py)",
)
DECOMPOSITIONS_AS_IMPORTED = Patch(
    "litert_torch.fx_infra", DECOMPOSITIONS.name, DECOMPOSITIONS.versions, "the same function under its other name"
)
ONNX_DECOMPOSITIONS = Patch(
    "torch.onnx._internal.exporter._fx_passes",
    "decompose_with_registry",
    "torch 2.13",
    "it traces the whole graph to rewrite a tenth of it (lowering/decompositions.py)",
)
TRACED_MODULES = Patch(
    "torch.fx._lazy_graph_module",
    "_make_graph_module",
    "torch 2.13",
    "what is traced is written as Python and compiled, which nobody runs (lowering/decompositions.py)",
)
OPERATOR_CHECK = Patch(
    "torchvision.ops.boxes",
    "_assert_has_ops",
    "torchvision beside another build of torch, whose operators do not load",
    "it refuses although the operator is declared anew (compat/torchvision.py)",
    lasting=True,
)
PLOT_SETTINGS = Patch(
    "os.path",
    "exists",
    "matplotlib 3.9 and later",
    "on its import matplotlib takes settings from the working directory, or waits for a pipe there (compat/plots.py)",
)
PATCHES = (
    FONT_CHECK,
    TORCH_EXPORT,
    DECOMPOSITIONS,
    DECOMPOSITIONS_AS_IMPORTED,
    ONNX_DECOMPOSITIONS,
    TRACED_MODULES,
    OPERATOR_CHECK,
    PLOT_SETTINGS,
)

_ULTRALYTICS, _OPENMP = "ultralytics 8.4", "every build of torch and of the runtimes with OpenMP"
OFFLINE = (
    Variable("YOLO_AUTOINSTALL", "false", _ULTRALYTICS, "it installs packages"),
    Variable("YOLO_OFFLINE", "true", _ULTRALYTICS, "it reports its use to its maker"),
    Variable("YOLO_VERBOSE", "false", _ULTRALYTICS, "it logs"),
)
NO_TELEMETRY = (
    Variable("ORT_DISABLE_TELEMETRY", "1", "onnxruntime 1.31", "its library reports from compiled code once imported"),
    Variable("DO_NOT_TRACK", "1", "any", "the switch that many heed"),
)
MODEL_SETTINGS = Variable(
    "ORT_LOAD_CONFIG_FROM_MODEL",
    "0",
    "onnxruntime 1.31",
    "with it a file's metadata take the place of a session's options, and let it write files",
    True,
)
OPENVINO_TELEMETRY = Variable("OPENVINO_TELEMETRY_DISABLE", "1", "openvino 2026.4", "it reports its use to its maker")
ONE_THREAD = Variable(
    "OMP_NUM_THREADS", "1", _OPENMP, "two were slow and erratic beside busy processes; whole images are spread instead"
)
LITERT_PROGRESS = Variable("LITERT_TORCH_SHOW_PROGRESS", "n", "litert-torch 0.10", "it draws bars into ours", True)
TENSORFLOW_LOG = Variable("TF_CPP_MIN_LOG_LEVEL", "3", "tensorflow 2, ai-edge-litert 2.3", "compiled code logs")
TENSORFLOW_NOTES = Variable("TF_CPP_MIN_LOG_LEVEL", "2", TENSORFLOW_LOG.versions, "the same, but for errors")
VARIABLES = (
    *OFFLINE,
    *NO_TELEMETRY,
    MODEL_SETTINGS,
    OPENVINO_TELEMETRY,
    ONE_THREAD,
    LITERT_PROGRESS,
    TENSORFLOW_LOG,
    TENSORFLOW_NOTES,
)

TORCH_LOADERS = Absent(
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    "torch 2.6 and later",
    "with it torch refuses every other unpickler, and does not see that ours allows less than its own",
)
WORLD_SIZE = Absent(
    "WORLD_SIZE",
    "ultralytics 8.4",
    "with it Ultralytics waits for other processes where it reads settings, and they wait for it elsewhere",
)

HIDDEN_MODULES = {
    "openvino_telemetry": "openvino has no other switch, but a stub of its own where its telemetry package is missing"
}
"""Modules whose import fails in this process → why."""


def set_variables(*variables: Variable) -> None:
    """Set them for this process, where the user has not."""
    for each in variables:
        if each.always or each.name not in os.environ:
            os.environ[each.name] = each.value


def hide_modules() -> None:
    """Let `HIDDEN_MODULES` that nobody has imported fail to import."""
    modules: dict[str, Any] = sys.modules  # None there makes an import fail
    for name in HIDDEN_MODULES:
        modules.setdefault(name, None)


@contextmanager
def without_variable(variable: Absent) -> Iterator[None]:
    """Take a variable out of the environment for the time of the block; the last block out puts it back."""
    entered = False
    try:
        with _lock:
            if not _taken_out[variable]:
                _values[variable] = os.environ.pop(variable.name, None)
            _taken_out[variable] += 1
            entered = True
        yield
    finally:
        with _lock:
            _taken_out[variable] -= entered
            value = None if _taken_out[variable] else _values.pop(variable, None)
            if value is not None:
                os.environ[variable.name] = value


@dataclass(frozen=True)
class _Use:
    """A function that is replaced at present.

    Attributes:
        original: what was there.
        shared: what is there, which calls each thread's own value.
        values: thread → what it has replaced the function by, the innermost last.
    """

    original: Callable[..., Any]
    shared: Callable[..., Any]
    values: dict[int, list[Callable[..., Any]]]


_lock = threading.Lock()
_uses: dict[Patch, _Use] = {}
_taken_out: Counter[Absent] = Counter()
_values: dict[Absent, str | None] = {}


@contextmanager
def replaced(patch: Patch, value: Callable[..., Any]) -> Iterator[None]:
    """Let this thread's calls of the patch's function be calls of `value` for the time of the block.

    Other threads go on with the original, or with values of their own; the last one out puts the original back.
    """
    thread = threading.get_ident()
    namespace = vars(import_module(patch.module))
    try:
        with _lock:
            if patch not in _uses:
                _uses[patch] = _Use(namespace[patch.name], *_dispatch(namespace[patch.name]))
                namespace[patch.name] = _uses[patch].shared
            _uses[patch].values.setdefault(thread, []).append(value)
        yield
    finally:
        with _lock:
            _leave(patch, namespace, thread, value)


def _dispatch(original: Callable[..., Any]) -> tuple[Callable[..., Any], dict[int, list[Callable[..., Any]]]]:
    """A function that calls the calling thread's own value, or the original; and the values by thread."""
    values: dict[int, list[Callable[..., Any]]] = {}

    @functools.wraps(original)
    def shared(*args: Any, **kwargs: Any) -> Any:
        own = values.get(threading.get_ident())
        return (own[-1] if own else original)(*args, **kwargs)

    return shared, values


def _leave(patch: Patch, namespace: dict[str, Any], thread: int, value: Callable[..., Any]) -> None:
    """Take back a thread's innermost value; put the original back behind the last thread."""
    use = _uses.get(patch)
    if use is None:  # interrupted before anything was replaced
        return
    own = use.values.get(thread, [])
    if own and own[-1] is value:
        own.pop()
    if not own:
        use.values.pop(thread, None)
    if not use.values:
        del _uses[patch]
        if namespace[patch.name] is use.shared:  # otherwise somebody has wrapped it, and calls the original through it
            namespace[patch.name] = use.original


def replace_for_good(patch: Patch, value: Callable[..., Any]) -> None:
    """Replace a function until the process ends; only for what does not work at all before."""
    assert patch.lasting
    vars(import_module(patch.module))[patch.name] = value
