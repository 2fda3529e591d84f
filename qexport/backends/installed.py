"""Which formats this installation can write, and what the others need; no runtime is imported."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec

from qexport.backends.info import BackendInfo
from qexport.backends.registry import available_formats, find_backend, find_info
from qexport.errors import MissingExtraError
from qexport.system.machine import version_of


@dataclass(frozen=True)
class EngineState:
    """Whether what is built from a format's files can be built here.

    Attributes:
        builder: module or program that does it.
        found: it is there.
        remedy: what adds it, "" where it is there.
    """

    builder: str
    found: bool
    remedy: str = ""


@dataclass(frozen=True)
class FormatState:
    """A format, and whether it can be written here.

    Attributes:
        format, title: its name as options have it, and as people read it.
        precisions: what it can be written as.
        packages: of its runtime → version, of those that are installed.
        problem: why it cannot be written, "" where it can.
        remedy: what mends that, a command where there is one.
        engine: what is built from its files; None where they are run as they are.
    """

    format: str
    title: str
    precisions: tuple[str, ...] = ()
    packages: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    remedy: str = ""
    engine: EngineState | None = None


def format_states() -> tuple[FormatState, ...]:
    """Every registered format, those of other packages too, by name."""
    return tuple(map(_state, available_formats()))


def _state(name: str) -> FormatState:
    problem = remedy = ""
    try:
        find_backend(name)
    except MissingExtraError as error:
        problem, remedy = error.what, error.remedy
    try:
        info = find_info(name)
    except MissingExtraError:  # its package is broken: there is nothing to ask
        return FormatState(name, name, problem=problem, remedy=remedy)
    packages = {package: version for package in info.packages if (version := version_of(package))}
    return FormatState(name, info.title, tuple(sorted(info.precisions)), packages, problem, remedy, _engine_state(info))


def unbuilt(state: FormatState) -> str:
    """What a format cannot do here although its file can be written: build its engine; "" where it can."""
    if state.engine is None or state.engine.found:
        return ""
    return f"writes the file, builds no engine ({state.engine.builder} is not installed)"


def _engine_state(info: BackendInfo) -> EngineState | None:
    if info.engine is None or not info.engine.builder:
        return None
    builder = info.engine.builder
    found = shutil.which(builder) is not None or (builder.isidentifier() and find_spec(builder) is not None)
    return EngineState(builder, found, "" if found else info.engine.install)
