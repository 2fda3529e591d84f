"""Programs of ONNX files in torch: against ONNX Runtime, and what needs gradients of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import yolox
from conftest import demo_checkpoint, demo_images
from elsewhere import Detector
from elsewhere import settled as settled_detector
from elsewhere import write as write_detector
from layer_graphs import BLOCKS as GRAPHS
from layer_graphs import Graph, block, picture
from layer_graphs import saved as saved_graph

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")

import onnxruntime

from qexport.calibration.calibrate import calibrate
from qexport.lowering.onnx.write import write_onnx
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, RuntimeProfile
from qexport.programs.captured_graph import copied, module_of
from qexport.programs.heads import split_head
from qexport.programs.naming import bias_of, weight_of
from qexport.programs.onnx.build import read_onnx
from qexport.programs.onnx.session import session_options
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program, Region
from qexport.programs.sample_inputs import sample_inputs
from qexport.simulation.fake_quant import fake_quantisers
from qexport.simulation.insert import insert
from qexport.simulation.meters import metered, sqnr_of
from qexport.simulation.rewrite import simulated


def test_a_tail_of_any_operator_stays_with_onnx_runtime(tmp_path: Path) -> None:
    graph = Graph()
    graph.conv(8, 3, 3)
    raw = graph.x
    graph.add("CumSum", graph.add("Sigmoid", raw), graph.constant(np.array([1], np.int64)))
    program = read_onnx(saved_graph(graph, tmp_path / "tail.onnx"), CaptureOptions())[1]
    assert program.graph.instrumentable
    assert program.raw.all == (raw,)
    assert "CumSum" in {node.op_type for node in graph.nodes if node.name in program.graph.outputs}


@pytest.mark.parametrize("name", GRAPHS)
def test_layers_have_their_weights_under_the_programs_paths(name: str, tmp_path: Path) -> None:
    program = read_onnx(block(name, tmp_path / "block.onnx"), CaptureOptions())[1]
    module = module_of(program)
    nodes = {node.name: node for node in module.graph.nodes if node.op == "call_function"}
    body = [value for value in program.values.values() if value.region is Region.BODY and value.operation != "input"]
    assert {value.name for value in body} <= nodes.keys()
    for value in body:
        assert (weight_of(nodes[value.name]), bias_of(nodes[value.name])) == (value.weight, value.bias)
        for path in filter(None, (value.weight, value.bias)):
            assert torch.equal(module.get_parameter(path), program.graph.parameter(path))
        assert nodes[value.name].meta["val"].shape == value.shape
    assert check_raw(program) > 0


def check_raw(program: Program, scale: float = 1.0) -> float:
    """Compare raw outputs with those that ONNX Runtime shows; return the largest."""
    images = torch.from_numpy(picture(*program.values["images"].shape)) * scale
    seen: dict[str, torch.Tensor] = {}
    program.graph.watched(program.raw.all, lambda name, tensor: seen.update({name: tensor.clone()}))(images)
    with torch.no_grad():
        made = module_of(program)(images)
    assert len(made) == len(program.raw.all)
    for name, ours in zip(program.raw.all, made, strict=True):
        torch.testing.assert_close(ours, seen[name], rtol=1e-4, atol=1e-4)
    return max(float(each.abs().max()) for each in made)


def gradients(program: Program, scale: float = 1.0) -> None:
    """They flow from the raw outputs to the input and to every weight and bias, and say what a small step does."""
    module = copied(program)
    paths = {path for value in program.values.values() for path in (value.weight, value.bias) if path}
    for path in paths:
        module.get_parameter(path).requires_grad_(True)
    images = (torch.from_numpy(picture(*program.values["images"].shape)) * scale).requires_grad_(True)
    sum(raw.square().mean() for raw in module(images)).backward()
    assert images.grad is not None
    assert float(images.grad.abs().max()) > 0
    found = {path: module.get_parameter(path).grad for path in paths}
    assert all(gradient is not None and gradient.isfinite().all() for gradient in found.values())
    assert sum(float(gradient.abs().max()) > 0 for gradient in found.values() if gradient is not None) > 0.9 * len(
        paths
    )
    assert not any(parameter.requires_grad for parameter in module_of(program).parameters())


def test_the_demo_models_file(tmp_path: Path) -> None:
    module = split_head(demo_checkpoint().module, "one2many", (96, 96))
    program = read_onnx(yolox.write(module, tmp_path / "demo.onnx", 96), CaptureOptions())[1]
    assert check_raw(program) > 1
    gradients(program)


@pytest.fixture(scope="module")
def small_yolox(tmp_path_factory: pytest.TempPathFactory) -> Program:
    model = yolox.settled(64, width=0.125, classes=3)
    path = yolox.write(model, tmp_path_factory.mktemp("yolox") / "yolox.onnx", 64)
    return read_onnx(path, CaptureOptions(pixels="0..255", bgr=True))[1]


def test_yolox(small_yolox: Program) -> None:
    assert len(small_yolox.raw.boxes) == 3
    assert len(small_yolox.raw.scores) == 6
    assert check_raw(small_yolox, 255) > 0.1
    gradients(small_yolox, 255)


def test_nano_has_the_parameters_of_megviis() -> None:
    """0.91 million, as the paper's table has it."""
    parameters = sum(parameter.numel() for parameter in yolox.YOLOX().parameters())
    assert parameters == pytest.approx(0.91e6, abs=0.005e6)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated
        path = write_detector(settled_detector(Detector()), tmp_path_factory.mktemp("elsewhere") / "detector.onnx")
    return read_onnx(path, CaptureOptions())[1]


def test_fake_quantisation_has_gradients(detector: Program) -> None:
    plan = make_plan(detector, calibrate(detector, demo_images("train", 2), lambda: None).statistics, ONNXRUNTIME)
    module = insert(detector, plan, fake_quantisers(), copied(detector))
    parameters = [each.requires_grad_(True) for each in module.parameters()]
    assert len(parameters) > len([value for value in detector.values.values() if value.weight])
    torch.stack([raw.square().mean() for raw in module(torch.from_numpy(picture(1, 3, 96, 96)))]).sum().backward()
    moved = [each for each in parameters if each.grad is not None and float(each.grad.abs().max()) > 0]
    assert len(moved) > 0.9 * len(parameters)


@pytest.mark.parametrize("profile", [OPENVINO, TENSORRT], ids=lambda profile: profile.name)
def test_pairs_in_torch_are_those_of_the_file(detector: Program, profile: RuntimeProfile, tmp_path: Path) -> None:
    """Weights, activations and who reads integers: raw outputs are those of the Q/DQ graph in ONNX Runtime."""
    statistics = calibrate(detector, demo_images("train", 2), lambda: None).statistics
    plan = make_plan(detector, statistics, profile)
    (images,) = sample_inputs(demo_images("val", 1), detector)
    with torch.no_grad():
        ours = simulated(detector, plan)(torch.from_numpy(images))
        real = module_of(detector)(torch.from_numpy(images))
    write_onnx(detector, plan, {}, tmp_path / "pairs.onnx", 18, half=False)
    proto = onnx.load(tmp_path / "pairs.onnx")
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in detector.raw.all)
    options = session_options(1, fused=False)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    theirs = session.run(list(detector.raw.all), {session.get_inputs()[0].name: images})
    for one, other, exact in zip(ours, theirs, real, strict=True):
        assert float((one - exact).abs().max()) > 1e-4
        difference = one - torch.from_numpy(other)  # where the two add up otherwise, an integer here and there
        assert float(difference.square().sum()) < 0.1 * float((one - exact).square().sum())
        assert float((difference.abs() < 1e-5).float().mean()) > 0.5
    meters = metered(detector, plan)
    meters(torch.from_numpy(images))
    for name, one, exact in zip(detector.raw.all, ours, real, strict=True):
        expected = 10 * torch.log10(exact.square().sum() / (one - exact).square().sum())
        assert sqnr_of(meters)[name] == pytest.approx(float(expected), abs=0.01)
