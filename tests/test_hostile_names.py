"""Names of an ONNX file's parts reach code that torch writes and runs, as those of a checkpoint's layers do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qexport.errors import QexportError
from qexport.programs.build import read_source
from qexport.programs.captured_graph import shared_copy

onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

NAMES = {
    "code": 'x" if not open("CANARY", "w") else "x',
    "code of the other quotation mark": "x' if not open('CANARY', 'w') else 'x",
    "code behind a dot": 'a.x" if not open("CANARY", "w") else "x',
    "a keyword": "class",
    "a constant": "None",
    "a letter that Python takes for others": "\ufb01",
    "two lines": "x\ny",
    "dots": "a..b",
}

PYTHONS_OWN = ("a keyword", "a constant", "a letter that Python takes for others")
"""Words that Python has another use for: the file is refused."""


def network(name: str, path: Path) -> Path:
    """Convolutions around a product, a sum and a change of shape: operators and constants of one name and a number."""
    random = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "m": (1, 4, 1, 1), "a": (1, 4, 16, 16), "v": (4, 4, 3, 3)}
    arrays = {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    arrays["s"] = np.array([1, 4, -1, 16])
    held = [onnx.numpy_helper.from_array(array, f"{name}{key}") for key, array in arrays.items()]
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["images", f"{name}w", f"{name}b"], [f"{name}1"], pads=[1] * 4, name=name),
        node("Relu", [f"{name}1"], [f"{name}2"], name=f"{name}r"),
        node("Mul", [f"{name}2", f"{name}m"], [f"{name}3"], name=f"{name}m"),
        node("Add", [f"{name}3", f"{name}a"], [f"{name}4"], name=f"{name}a"),
        node("Reshape", [f"{name}4", f"{name}s"], [f"{name}5"], name=f"{name}s"),
        node("Conv", [f"{name}5", f"{name}v"], ["output"], pads=[1] * 4, name=f"{name}v"),
    ]
    ends = [
        [onnx.helper.make_tensor_value_info(end, onnx.TensorProto.FLOAT, [1, channels, 16, 16])]
        for end, channels in (("images", 3), ("output", 4))
    ]
    graph = onnx.helper.make_graph(nodes, name, *ends, held)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.mark.parametrize("sample", NAMES)
def test_names_of_a_network_are_no_code(sample: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    program = read_source(network(NAMES[sample].replace("CANARY", str(canary)), tmp_path / "x.onnx")).program
    assert all(re.fullmatch(r"\w+", value) for value in program.values)
    if sample in PYTHONS_OWN:
        with pytest.raises(QexportError, match="torch cannot"):
            shared_copy(program)
    else:
        graph = shared_copy(program)
        assert graph(torch.zeros(1, 3, 16, 16)) is not None
        targets = [str(each.target) for each in graph.graph.nodes if each.op == "get_attr"]
        assert len(targets) > 3
        assert all(re.fullmatch(r"[\w.]+", target) for target in targets)
    assert not canary.exists()


def test_no_file_is_written_that_a_network_asks_for(tmp_path: Path) -> None:
    """With a variable that a user may have set, ONNX Runtime takes a session's options out of the file."""
    settings = '{"session_options": {"enable_profiling": 1}}'
    script = f"""
import os, sys
os.environ["ORT_LOAD_CONFIG_FROM_MODEL"] = "1"
import qexport
from pathlib import Path
from qexport.programs.build import read_source
read_source(Path({str(tmp_path / "x.onnx")!r}))
"""
    made = onnx.load(network("x", tmp_path / "x.onnx"))
    made.metadata_props.add(key="ort_config", value=settings)
    onnx.save(made, tmp_path / "x.onnx")
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path / "here", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "here").iterdir()) == []
