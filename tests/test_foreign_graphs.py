"""Graphs of other exporters: every file written gives what the float one gives, as ONNX Runtime computes both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import demo_images
from layer_graphs import PIXELS, SIZE, Graph, saved

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

import onnxruntime

from qexport.job.options import make_job
from qexport.pipeline import export
from qexport.planning.plan import load_plan
from qexport.progress import Silent
from qexport.reporting.report import Report

MIN_SQNR = {"int8": 20.0, "fp16": 40.0}
"""dB; a joined constant that is clipped leaves 1 to 13."""
CHANNELS = 8
TOKEN = 20.0


def stem(graph: Graph) -> str:
    return graph.add("LeakyRelu", graph.conv(CHANNELS, 3, 3))


def joined(channels: int) -> Callable[[Graph], None]:
    """Constants far outside of what is computed, as a class token or a grid of places."""

    def add(graph: Graph) -> None:
        seen = stem(graph)
        token = (graph.random.random((1, channels, SIZE, SIZE)) * TOKEN).astype(np.float32)
        graph.add("Concat", seen, graph.constant(token), axis=1, name="joined")
        graph.conv(CHANNELS, CHANNELS + channels, 1)

    return add


def joined_last(graph: Graph) -> None:
    seen = stem(graph)
    graph.add("Concat", graph.constant(np.full((1, 1, SIZE, SIZE), TOKEN, np.float32)), seen, axis=1)


def joined_and_moved(graph: Graph) -> None:
    joined(2)(graph)
    graph.nodes.pop()
    graph.add("Transpose", "joined", perm=[0, 1, 3, 2])
    graph.conv(CHANNELS, CHANNELS + 2, 3)


def unread(graph: Graph) -> None:
    """A layer whose result nobody reads."""
    seen = stem(graph)
    graph.conv(CHANNELS, CHANNELS, 3, source=seen, name="dead")
    graph.conv(CHANNELS, CHANNELS, 3, source=seen)


def unread_half(graph: Graph) -> None:
    node = "first", "second"
    graph.add("Split", stem(graph), name=node[0], axis=1, num_outputs=2)
    graph.nodes[-1].output.append(node[1])
    graph.conv(4, CHANNELS // 2, 3, source=node[0])


def summed_with_constant(graph: Graph) -> None:
    graph.add("Add", stem(graph), graph.weight(1, CHANNELS, 1, 1))
    graph.conv(CHANNELS, CHANNELS, 3)


def doubled(graph: Graph) -> None:
    seen = stem(graph)
    graph.add("Add", seen, seen)
    graph.conv(CHANNELS, CHANNELS, 3)


def float32_only(graph: Graph) -> None:
    """ONNX defines Celu for FP32 alone in operator sets 12 to 27."""
    graph.add("Celu", graph.conv(CHANNELS, 3, 3), alpha=0.5)
    graph.conv(CHANNELS, CHANNELS, 3)


INT8 = (joined(1), joined(6), joined_last, joined_and_moved, unread, unread_half, summed_with_constant, doubled)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    listing = tmp_path_factory.mktemp("few") / "few.txt"
    listing.write_text("\n".join(map(str, demo_images("val", 4))), encoding="utf-8")
    return listing


def ran(made: Callable[[Graph], None], few: Path, folder: Path, formats: str, precision: str) -> tuple[Path, Report]:
    graph = Graph()
    made(graph)
    model = saved(graph, folder / "made.onnx")
    options = {"model": str(model), "format": formats, "precision": precision, "data": str(few), "out": folder / "out"}
    skipped = {"no_latency": True, "no_eval": True, "no_build": True, "effort": "none", "cpu": "vnni"}
    return model, export(make_job({**options, **skipped}), Silent())


def output(path: Path, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # ONNX Runtime's fusions are not what a file for TensorRT is written for.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"images": images})[0]
    return found


def check_files(model: Path, report: Report, precision: str) -> None:
    images = np.random.default_rng(1).random(PIXELS, dtype=np.float32)
    expected = output(model, images)
    for path in (Path(each.path) for each in report.artifacts if each.precision == precision):
        if path.suffix == ".onnx":
            noise = np.mean((output(path, images) - expected) ** 2)
            assert 10 * np.log10(expected.var() / noise) > MIN_SQNR[precision], path


@pytest.mark.parametrize("made", INT8)
def test_integers_give_what_the_floats_give(made: Callable[[Graph], None], few: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
    model, report = ran(made, few, tmp_path, "onnx,openvino,tensorrt", "int8")
    assert not report.failures
    assert {each.format for each in report.artifacts if each.precision == "int8"} == {"onnx", "openvino", "tensorrt"}
    check_files(model, report, "int8")


@pytest.mark.parametrize("made", [float32_only, unread_half, unread])
def test_half_precision_gives_what_the_floats_give(made: Callable[[Graph], None], few: Path, tmp_path: Path) -> None:
    model, report = ran(made, few, tmp_path, "onnx,tensorrt", "fp16")
    assert not report.failures
    check_files(model, report, "fp16")


def test_the_range_of_a_join_holds_its_constants(few: Path, tmp_path: Path) -> None:
    _, report = ran(joined(6), few, tmp_path, "onnx", "int8")
    (path,) = (each.plan for each in report.artifacts if each.precision == "int8")
    assert path is not None
    quant = load_plan(Path(path)).tensors["joined"]
    assert quant.scale[0] * (255 - quant.zero_point[0]) > 0.98 * TOKEN
