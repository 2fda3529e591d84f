"""Devices that are not here: what their documentation says of a file, and what is prepared for them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import demo_checkpoint, demo_images, lowering
from small_models import saved, small_model

from qexport.backends.device_fit import DeviceFit, Lacking
from qexport.backends.edgetpu.backend import EdgeTPUBackend
from qexport.backends.edgetpu.operators import OPERATORS, why_not
from qexport.backends.tflite.operators import FileOperator, FileTensor, read_graph
from qexport.backends.tflite_micro.backend import OPERATORS as MICRO_OPERATORS
from qexport.backends.tflite_micro.backend import allocated, fit_microcontroller
from qexport.errors import EngineNotBuiltError
from qexport.programs.program import Program
from qexport.reporting.warnings import device_warning

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
pytestmark = pytest.mark.slow

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
QEXPORT = str(Path(sys.executable).with_name("qexport"))


@pytest.fixture(scope="module")
def integer_file(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The end-to-end demo model at 96 pixels without floats."""
    from qexport.calibration.calibrate import calibrate
    from qexport.lowering.metadata import artifact_metadata
    from qexport.planning.planner import make_plan
    from qexport.planning.runtime_profiles import TFLITE_INTEGER

    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, TFLITE_INTEGER)
    path = tmp_path_factory.mktemp("devices") / "demo_int8-full.tflite"
    metadata = artifact_metadata(demo_checkpoint(), demo_program, "int8-full", plan)
    EdgeTPUBackend().lower(lowering(demo_program, "int8-full", plan, metadata), path)
    return path


def activation(*shape: int) -> FileTensor:
    return FileTensor(0, shape, "INT8", None)


def constant(values: Any) -> FileTensor:
    array = np.array(values, dtype=np.int32)
    return FileTensor(1, array.shape, "INT32", array.reshape(-1).view(np.uint8))


IMAGE = activation(1, 8, 8, 4)


def operator(kind: str, *inputs: FileTensor, output: FileTensor = IMAGE, **options: int) -> FileOperator:
    """An operator whose options are the schema's defaults, but for those given."""
    defaults = {"fusedActivationFunction": 0, "dilationWFactor": 1, "dilationHFactor": 1, "ellipsisMask": 0}
    return FileOperator(kind, SimpleNamespace(**defaults | options), inputs or (IMAGE,), (output,))


def test_the_edge_tpu_runs_what_it_documents() -> None:
    fitting = [
        operator("CONV_2D", dilationWFactor=2, dilationHFactor=2),
        operator("MAX_POOL_2D"),
        operator("PAD", IMAGE, constant([[0, 0], [1, 1], [1, 1], [0, 0]])),
        operator("SOFTMAX", activation(1, 1, 10), output=activation(1, 1, 10)),
        operator("FULLY_CONNECTED", output=activation(1, 10)),
        operator("MEAN", IMAGE, constant([1, 2])),
        operator("STRIDED_SLICE", IMAGE, constant([0]), constant([1]), constant([1, 1, 1, 1])),
        operator("CONCATENATION", IMAGE, constant([0, 0])),
        operator("MEAN", IMAGE, constant([3])),
        operator("PACK", axis=1),
        operator("PRELU", IMAGE, activation(1, 1, 4)),
    ]
    assert [why_not(each) for each in fitting] == [""] * len(fitting)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (operator("BATCH_MATMUL"), "not among its operators"),
        (operator("CONV_2D", dilationWFactor=2), "it wants the same dilation in x and y"),
        (operator("MAX_POOL_2D", fusedActivationFunction=1), "it wants no fused activation"),
        (operator("PAD", IMAGE, constant([[1, 0], [1, 1], [1, 1], [0, 0]])), "it wants no padding of the batch"),
        (operator("SOFTMAX", activation(1, 2, 400, 400)), "it wants one dimension of at most 16000 elements"),
        (operator("SOFTMAX", activation(1, 16_001)), "it wants one dimension of at most 16000 elements"),
        (operator("FULLY_CONNECTED", output=activation(3, 10)), "it wants a result of one dimension"),
        (operator("MEAN", IMAGE, constant([0, 1])), "it wants no reduction of the batch dimension"),
        (
            operator("STRIDED_SLICE", IMAGE, constant([0]), constant([1]), constant([1, 2, 1, 1])),
            "it wants strides of 1 and no ellipsis",
        ),
        (operator("CONCATENATION", IMAGE, constant([0, 1])), "it wants two inputs where one is constant"),
        (operator("CONCATENATION", IMAGE, IMAGE, constant([0, 0])), "it wants two inputs where one is constant"),
        (operator("MEAN", activation(1, 8, 8, 6), constant([3])), "it wants a depth that is a multiple of 4"),
        (operator("PACK", axis=0), "it wants no packing of the batch dimension"),
        (operator("PRELU", IMAGE, activation(2, 1, 4)), "it wants an alpha of one dimension"),
        (operator("ADD", output=activation(2, 8, 8, 4)), "it wants only the three innermost dimensions"),
    ],
)
def test_the_edge_tpu_leaves_the_rest_to_the_cpu(given: FileOperator, reason: str) -> None:
    assert why_not(given).startswith(reason)


def test_a_file_is_checked_operator_by_operator(integer_file: Path) -> None:
    """The demo model has attention: its products and its softmax are what an Edge TPU has no kernel for."""
    found = EdgeTPUBackend().fit(integer_file, integer_file)
    kinds = [operator.kind for operator in read_graph(integer_file).operators]
    products = "BATCH_MATMUL" if "BATCH_MATMUL" in kinds else "FULLY_CONNECTED"  # the converter's choice, by shape
    assert {each.kind: each.count for each in found.lacking} == {
        kind: kinds.count(kind) for kind in (products, "SOFTMAX")
    }
    assert kinds.count("SOFTMAX") >= 1
    assert found.operators == len(kinds)
    assert found.in_front == min(kinds.index(products), kinds.index("SOFTMAX"))
    assert set(kinds) - {products} <= set(OPERATORS)


def test_what_a_device_lacks_becomes_one_line() -> None:
    lacking = (Lacking("SOFTMAX", 2, "no kernel"), Lacking("DIV", 1, "too large"))
    line = device_warning(DeviceFit("Edge TPU", 10, lacking, in_front=4)).text
    assert line.startswith("Edge TPU leaves 6 of 10 operators to the CPU")
    assert line.endswith("2 SOFTMAX (no kernel); 1 DIV (too large)")
    assert device_warning(DeviceFit("TFLM", 10, lacking)).text.startswith("TFLM lacks operators: 2 SOFTMAX")


def compiler(folder: Path, body: str) -> None:
    """Put an `edgetpu_compiler` that is a shell script into a folder."""
    script = folder / "edgetpu_compiler"
    script.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    script.chmod(0o755)


def build(graph: Path, out: Path) -> None:
    EdgeTPUBackend().build(graph, out, {"imgsz": [96, 96], "precision": "int8-full"}, {})


def test_without_the_compiler_the_file_is_left_ready(
    integer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineNotBuiltError, match=r"ready but not compiled: edgetpu_compiler is not installed here"):
        build(integer_file, tmp_path / "x_edgetpu.tflite")
    assert not (tmp_path / "x_edgetpu.tflite").exists()


def test_the_compiler_gets_the_bare_file_and_its_result_gets_the_metadata(
    integer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # --show_operations --out_dir DIR FILE
    compiler(tmp_path, 'echo 385 mapped; cp "$4" "$3/$(basename "$4" .tflite)_edgetpu.tflite"')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "demo_edgetpu.tflite"
    build(integer_file, out)
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["metadata.json"]
        assert json.loads(archive.read("metadata.json"))["imgsz"] == [96, 96]
    assert (tmp_path / "demo_edgetpu.log").read_text(encoding="utf-8") == "385 mapped\n"
    bare = integer_file.read_bytes().partition(b"PK\x03\x04metadata")[0]
    assert out.read_bytes().startswith(bare[:100_000])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("echo 'Internal compiler error' >&2; exit 1", "refused .*: Internal compiler error"),
        ("exit 3", "refused .*: exit code 3"),
        ("exit 0", "refused .*: exit code 0"),  # no file was written
    ],
)
def test_a_compiler_that_fails_is_quoted(
    integer_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    compiler(tmp_path, body)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EngineNotBuiltError, match=words):
        build(integer_file, tmp_path / "x_edgetpu.tflite")


def test_a_microcontroller_gets_the_file_as_an_array(integer_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(integer_file, tmp_path / "demo.tflite"))
    found = fit_microcontroller(path, path)
    source, header = found.files
    text = source.read_text(encoding="utf-8")
    stored = bytes(map(int, re.findall(r"\d+", text.split("{")[1])))
    assert path.read_bytes().startswith(stored)
    assert path.read_bytes()[len(stored) :].startswith(b"PK")  # the metadata stay behind
    assert f"_size = {len(stored)};" in header.read_text(encoding="utf-8")
    assert found.memory["model in flash"] == len(stored)
    assert found.lacking == ()
    kinds = {operator.kind for operator in read_graph(path).operators}
    assert kinds <= MICRO_OPERATORS
    assert f"resolver: {', '.join(sorted(kinds))}\n" in header.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_array_compiles(integer_file: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(integer_file, tmp_path / "8n-dé.tflite"))
    source, _ = fit_microcontroller(path, path).files
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", "-c", source, "-o", tmp_path / "demo.o"], check=True)


def test_the_arena_is_what_tensorflow_lite_micro_allocates(integer_file: Path) -> None:
    """To the byte, as for YOLO26n and YOLOv8n; kernels' own data come on top."""
    pytest.importorskip("tflite_micro", reason="needs the package tflite-micro")
    from qexport.backends.tflite_micro.arena import arena_bytes

    planned = arena_bytes(read_graph(integer_file))
    found = allocated(integer_file)
    assert found is not None
    activations, everything = found
    assert planned == activations
    assert everything > activations


def test_tensorflow_lite_micro_gives_the_same_integers(integer_file: Path, demo_program: Program) -> None:
    """Its kernels are the reference ones: few outputs differ from LiteRT's, and by a few of 256 steps."""
    pytest.importorskip("tflite_micro", reason="needs the package tflite-micro")
    from ai_edge_litert.interpreter import Interpreter

    from qexport.backends.tflite_micro.backend import interpreter
    from qexport.programs.sample_inputs import sample_inputs

    (batch,) = sample_inputs(demo_images("val", 1), demo_program, count=1)
    pixels = (np.rint(batch * 255) - 128).astype(np.int8).transpose(0, 2, 3, 1)
    lite, micro = Interpreter(str(integer_file)), interpreter(integer_file)
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], pixels)
    lite.invoke()
    micro.set_input(np.ascontiguousarray(pixels), 0)
    micro.invoke()
    for number, details in enumerate(lite.get_output_details()):
        expected = lite.get_tensor(details["index"]).astype(int)
        apart = np.abs(micro.get_output(number).astype(int) - expected)
        assert apart.mean() <= 1, number
        assert np.quantile(apart, 0.99) <= 12, number


def command(folder: Path, model: Path, *words: str) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run the installed `qexport`; return how it ended and its report."""
    shapes = DEMO / "shapes/shapes.yaml"
    line = [QEXPORT, str(model), "--data", str(shapes), "--imgsz", "96", "--calib-images", "8"]
    line += ["--effort", "none"]
    line += ["--no-eval", "--no-latency", "--out", str(folder), *words]
    done = subprocess.run(line, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False)
    done.stderr = "".join(
        each for each in done.stderr.splitlines(True) if not each.startswith(("→ ", "✓ ", "… "))
    )  # steps
    return done, json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_an_edge_tpu_run_says_what_it_left_to_do(tmp_path: Path) -> None:
    """No compiler is installed here: the file is ready, the run ends with the code for that."""
    done, report = command(tmp_path, DEMO / "shapes26.pt", "--format", "edgetpu", "--io", "uint8")
    assert done.returncode == 8
    assert done.stderr.startswith("qexport: error: edgetpu: shapes26_int8-full.tflite is ready but not compiled")
    assert len(done.stderr.splitlines()) == 1
    (entry,) = report["artifacts"]
    assert (entry["format"], entry["precision"], entry["engine"]) == ("edgetpu", "int8-full", False)
    assert "in place of the Edge TPU" in entry["runtime"]
    assert {each["kind"] for each in entry["device"]["lacking"]} >= {"SOFTMAX"}
    assert any("leaves" in warning for warning in entry["warnings"])
    assert [failure["exit_code"] for failure in report["failures"]] == [8]
    graph = read_graph(tmp_path / "shapes26_int8-full.tflite")
    ends = {
        tensor.dtype
        for operator in graph.operators
        for tensor in (*operator.inputs, *operator.outputs)
        if tensor.index in (*graph.inputs, *graph.outputs)
    }
    assert ends == {"UINT8"}


def test_a_microcontroller_run_writes_the_array_beside_the_file(tmp_path: Path) -> None:
    model = saved(small_model("Detect", nc=6, end2end=True, reg_max=1), tmp_path / "small.pt")
    done, report = command(tmp_path / "out", model, "--target", "mcu")
    assert (done.returncode, done.stderr) == (0, "")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"small_int8-full.tflite", "small_int8-full.cc", "small_int8-full.h"}
    device = report["artifacts"][0]["device"]
    assert device["device"] == "TensorFlow Lite Micro"
    assert device["lacking"] == []
    assert device["memory"]["arena for activations"] > 20_000
    assert "TensorFlow Lite Micro: has" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if line.startswith(" ")) <= 80
