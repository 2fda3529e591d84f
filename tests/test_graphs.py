"""What every program's graph does, captured or read from a file: other weights, values shown, constants told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import TinyDetector, captured, seeded, synthetic_statistics
from layer_graphs import Graph as Layers
from layer_graphs import saved
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from qexport.errors import ConversionError
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME
from qexport.programs.captured_graph import module_of
from qexport.programs.onnx.build import read_onnx
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.simulation.simulate import simulation

SHAPES = {"tiny": (1, 3, 8, 8), "file": (1, 3, 16, 16)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = Layers()
    layers.conv(8, 3, 3)
    layers.add("Relu", layers.x)
    layers.conv(4, 8, 1)
    return saved(layers, tmp_path_factory.mktemp("graphs") / "file.onnx")


@pytest.fixture(scope="module")
def file(path: Path) -> Program:
    return read_onnx(path, CaptureOptions())[1]


@pytest.fixture(scope="module", params=SHAPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def program(kind: str, tiny: Program, file: Program) -> Program:
    return {"tiny": tiny, "file": file}[kind]


def images(kind: str) -> torch.Tensor:
    return torch.rand(SHAPES[kind], generator=torch.Generator().manual_seed(3))


def run(graph: Any, kind: str) -> torch.Tensor:
    with torch.no_grad():
        made: torch.Tensor = graph(images(kind)).clone()
    return made


def last_layer(program: Program) -> tuple[str, str]:
    """Names of its weight and bias."""
    value = [value for value in program.values.values() if value.weight][-1]
    return value.weight, value.bias


def test_other_weights_compute_what_a_model_with_them_does(tiny: Program) -> None:
    module: Any = seeded(TinyDetector())
    module.neck.weight.data.mul_(-0.5)
    module.cls.bias.data.add_(3)
    other = tiny.with_parameters({"neck.weight": module.neck.weight, "cls.bias": module.cls.bias})
    torch.testing.assert_close(run(other.graph, "tiny"), run(captured(module).graph, "tiny"))
    assert other.graph.fingerprint() == captured(module).fingerprint


def test_other_weights_compute_what_a_file_with_them_does(path: Path, file: Program) -> None:
    weight, bias = last_layer(file)
    proto = onnx.load(path)
    for tensor in proto.graph.initializer:
        if list(tensor.dims) in ([4, 8, 1, 1], [4]):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(-2), tensor.name))
    expected: Any
    (expected,) = ReferenceEvaluator(proto).run(None, {"images": images("file").numpy()})
    other = file.with_parameters({path: file.graph.parameter(path) * -2 for path in (weight, bias)})
    np.testing.assert_allclose(run(other.graph, "file").numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_program_with_other_weights_is_another_one_that_says_where_it_is_from(program: Program, kind: str) -> None:
    _, bias = last_layer(program)
    before = run(program.graph, kind)
    other = program.with_parameters({bias: program.graph.parameter(bias) + 1})
    again = other.with_parameters({bias: program.graph.parameter(bias) + 2})
    twice = program.with_parameters({bias: program.graph.parameter(bias) + 2})
    assert (program.origin, other.origin, again.origin) == ("", program.fingerprint, program.fingerprint)
    assert len({program.fingerprint, other.fingerprint, again.fingerprint}) == 3
    assert again.fingerprint == twice.fingerprint
    assert other.values == program.values
    assert program.with_parameters({}) is program
    torch.testing.assert_close(run(program.graph, kind), before, rtol=0, atol=0)
    assert float((run(other.graph, kind) - before).abs().max()) > 0.1
    with pytest.raises(ConversionError, match="another program"):
        simulation(other, make_plan(program, synthetic_statistics(program.values), ONNXRUNTIME))


def test_weights_that_stay_are_shared(tiny: Program) -> None:
    other = tiny.with_parameters({"cls.bias": torch.zeros(2)})
    ours, theirs = (dict(module_of(each).named_parameters()) for each in (tiny, other))
    assert {name for name in ours if ours[name].data_ptr() != theirs[name].data_ptr()} == {"cls.bias"}


def test_parameters_that_do_not_fit_are_refused(program: Program) -> None:
    weight, bias = last_layer(program)
    with pytest.raises(KeyError, match="nothing"):
        program.with_parameters({"nothing": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"is \(.*\) torch\.float32, not \(7,\)"):
        program.with_parameters({bias: torch.zeros(7)})
    with pytest.raises(ValueError, match=r"torch\.float32, not .* torch\.float64"):
        program.with_parameters({weight: program.graph.parameter(weight).double()})


def test_what_is_watched_is_shown_once_in_each_run(program: Program, kind: str) -> None:
    layers = [value for value in program.values.values() if value.operation == "conv"]
    seen: dict[str, torch.Tensor] = {}
    shown: list[str] = []

    def see(name: str, tensor: torch.Tensor) -> None:
        shown.append(name)
        seen[name] = tensor.detach().clone()

    watching = program.graph.watched([*(layer.name for layer in layers), "images"], see)
    with torch.no_grad():
        watching(images(kind))
        watching(images(kind))
    assert sorted(shown) == sorted(2 * [*(layer.name for layer in layers), "images"])
    first = layers[0]
    weight, bias = (program.graph.parameter(path) for path in (first.weight, first.bias))
    stride = images(kind).shape[-1] // first.shape[-1]
    expected = torch.nn.functional.conv2d(images(kind), weight, bias, stride=stride, padding=weight.shape[-1] // 2)
    torch.testing.assert_close(seen[first.name], expected, rtol=1e-4, atol=1e-5)


def test_only_files_name_values_and_only_captured_graphs_go_on_behind_raw_outputs(tiny: Program, file: Program) -> None:
    assert (tiny.graph.whole, file.graph.whole) == (True, False)
    assert (tiny.graph.names, tiny.graph.outputs) == ({}, ("output0",))
    assert file.graph.outputs == ("conv2",)
    assert "relu1" in file.graph.names


def test_constants_are_told_with_the_value_that_reads_them(program: Program) -> None:
    told: dict[str, list[Any]] = {}
    for name, array in program.graph.constants():
        told.setdefault(name, []).append(array)
    for value in program.values.values():
        if value.weight:
            expected = (program.graph.parameter(path).numpy() for path in (value.weight, value.bias))
            for array, one in zip(told[value.name], expected, strict=True):
                np.testing.assert_array_equal(array, one)
