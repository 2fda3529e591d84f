"""A backend that is found like an installed one."""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qexport.backends.protocol import Backend
from qexport.plugins import BACKENDS

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 0\n"


@contextmanager
def registered(backend: type[Backend], package: str = "qexport-of-a-test") -> Iterator[None]:
    """Register a class, which must be importable by its module's name, as a package would; here and in processes of
    this one that have its `sys.path`.

    Args:
        package: what registers it.
    """
    entry = f"{backend.info.name} = {backend.__module__}:{backend.__qualname__}"
    with entry_point(BACKENDS, entry, package):
        yield


@contextmanager
def entry_point(group: str, entry: str, package: str) -> Iterator[None]:
    """Let a package be installed that has one entry point, "name = module:attribute", and nothing else."""
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        info = Path(scratch) / f"{package.replace('-', '_')}-0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(METADATA.format(name=package), encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n", encoding="utf-8")
        _changed(sys.path.append, scratch)
        try:
            yield
        finally:
            _changed(sys.path.remove, scratch)


def _changed(change: Any, folder: str) -> None:
    change(folder)
    importlib.invalidate_caches()
