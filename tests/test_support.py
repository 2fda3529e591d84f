"""The table of architectures: what is kept of real runs, and a few of them once more."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
support = pytest.importorskip("support")


def test_the_table_is_that_of_the_kept_results() -> None:
    text = support.PAGE.read_text(encoding="utf-8")
    table = text.split(support.BEGIN)[1].split(support.END)[0]
    rows = support._rows(support.stored()) + support._variants(support.stored())
    assert [line for line in table.splitlines() if line.startswith("|")] == rows
    for line in support._refusals(support.stored()):
        assert line in table


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov10n.yaml", "yolov8n-obb.yaml", "yolov8n-world.yaml", "yolo26n-cls.yaml"])
def test_what_runs_is_what_the_table_says(name: str) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    assert support.tried(name, "onnx", effort="none") == support.stored()[name]["onnx"]
