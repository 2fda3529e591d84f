"""The package for ExecuTorch in examples/: its own tests, and how it is registered."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from qexport import BackendInfo

PACKAGE = Path(__file__).resolve().parents[1] / "examples" / "qexport-executorch"
NEEDS_RUNTIME = 5
"""Of its own tests: they are skipped where ExecuTorch is not installed."""


def test_its_entry_point_is_a_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE))
    lines = (PACKAGE / "pyproject.toml").read_text(encoding="utf-8").splitlines()
    (entry,) = lines[lines.index('[project.entry-points."qexport.backends"]') + 1 :]
    name, place = entry.replace('"', "").split(" = ")
    module, kind = place.split(":")
    info = getattr(importlib.import_module(module), kind).info
    assert isinstance(info, BackendInfo)
    assert info.name == name
    assert "executorch" not in sys.modules


def test_what_needs_no_runtime_holds() -> None:
    """In a process that cannot import ExecuTorch."""
    without = "import sys; sys.modules['executorch'] = None; import importlib.util as u; found = u.find_spec; "
    without += "u.find_spec = lambda name, *rest: None if name == 'executorch' else found(name, *rest); "
    start = f"{without}import pytest; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', 'tests']))"
    path = f"import sys; sys.path[:0] = [{str(PACKAGE)!r}, {str(PACKAGE.parents[1])!r}]; "
    done = subprocess.run([sys.executable, "-c", path + start], capture_output=True, text=True, cwd=PACKAGE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"3 passed, {NEEDS_RUNTIME} skipped" in done.stdout
