"""Plans in an ONNX graph: every pair, weight and bias as planned, and the arithmetic of the simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import TinyDecode, TinyDetector, captured, demo_image, demo_images, seeded, synthetic_statistics
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from qexport.calibration.calibrate import calibrate
from qexport.errors import ConversionError
from qexport.lowering.onnx.export import onnx_graph
from qexport.lowering.onnx.qdq import insert_qdq
from qexport.lowering.onnx.write import write_onnx
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, RuntimeProfile
from qexport.programs.captured_graph import module_of
from qexport.programs.onnx.session import OnnxRunner
from qexport.programs.program import INPUT, Program
from qexport.programs.token_layers import Added
from qexport.simulation.rewrite import simulated

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
pytest.importorskip("onnxscript", reason="needs the extra qexport[onnx]")

OPSET = 18
LAYERS = ("stem", "left", "deep", "neck", "box", "cls")


@dataclass(frozen=True)
class Graph:
    """A quantised graph as the `onnx` package reads it."""

    path: Path
    plan: QuantPlan
    nodes: Mapping[str, onnx.NodeProto]
    """By the first result's name."""
    constants: Mapping[str, NDArray[Any]]

    def pair(self, name: str) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
        """The quantising node that reads a value, and the one that makes floats of its integers."""
        found = [node for node in self.nodes.values() if node.op_type == "QuantizeLinear" and node.input[0] == name]
        assert len(found) <= 1, name
        if not found:
            return None
        (back,) = [node for node in self.nodes.values() if found[0].output[0] in node.input]
        assert back.op_type == "DequantizeLinear"
        return found[0], back

    def readers(self, name: str) -> set[str]:
        """Results of the nodes that read a tensor."""
        return {output for node in self.nodes.values() if name in node.input for output in node.output}


def quantised(program: Program, plan: QuantPlan, folder: Path) -> Graph:
    path = folder / "graph.onnx"
    write_onnx(program, plan, {}, path, OPSET, half=False)
    graph = onnx.load(path).graph
    nodes = {node.output[0]: node for node in graph.node}
    return Graph(path, plan, nodes, {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer})


def plan_for(program: Program, profile: RuntimeProfile, floats: Mapping[str, str] = {}) -> QuantPlan:
    return make_plan(program, synthetic_statistics(program.values), profile, "minmax", floats)


@pytest.fixture(scope="module", params=[ONNXRUNTIME, OPENVINO, TENSORRT], ids=lambda profile: profile.name)
def graph(request: pytest.FixtureRequest, tiny: Program, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    profile: RuntimeProfile = request.param
    return quantised(tiny, plan_for(tiny, profile), tmp_path_factory.mktemp(profile.name))


def test_pairs_are_where_the_plan_says_with_its_numbers(tiny: Program, graph: Graph) -> None:
    for name in tiny.values:
        planned, pair = graph.plan.tensors[name], graph.pair(name)
        assert (pair is None) == planned.is_float, name
        if pair is None:
            continue
        assert list(pair[0].input[1:]) == list(pair[1].input[1:])
        scale, zero_point = (graph.constants[key] for key in pair[0].input[1:])
        assert (scale.dtype.name, scale.shape, float(scale)) == ("float32", (), planned.scale[0])
        assert (zero_point.dtype.name, zero_point.shape, int(zero_point)) == (planned.dtype, (), planned.zero_point[0])
    assert graph.pair(INPUT) is not None


def test_who_reads_integers_and_who_reads_floats(tiny: Program, graph: Graph) -> None:
    plan, checked = graph.plan, 0
    for value in tiny.values.values():
        pair = graph.pair(value.name)
        if pair is None:
            continue
        exact = graph.readers(value.name) - {pair[0].output[0]}
        through = graph.readers(pair[1].output[0])
        assert through, value.name
        if value.name in plan.integer or value.name == INPUT:
            assert not exact, value.name
        else:
            assert not exact & plan.integer
            assert through <= plan.integer
            checked += 1
    # What attention gives back is written in float and read in integers.
    assert checked == 1


def test_float_readers_of_a_float_value_keep_the_float(tiny: Program, tmp_path: Path) -> None:
    floats = dict.fromkeys(("neck_conv", "neck_sigmoid", "neck_mul", "cls_conv"), FLOAT_AS_ASKED)
    graph = quantised(tiny, plan_for(tiny, ONNXRUNTIME, floats), tmp_path)
    assert graph.readers("neck_mul") == {"neck_mul.quantised", "cls_conv"}
    assert graph.readers("neck_mul.dequantised") == {"box_conv"}
    assert list(graph.nodes["cls_conv"].input[1:]) == ["cls.weight", "cls.bias"]
    np.testing.assert_array_equal(graph.constants["cls.weight"], tiny.graph.parameter("cls.weight").numpy())
    same_output(tiny, graph)


def test_weights_are_numpys_rounding_and_the_floats_are_gone(tiny: Program, graph: Graph) -> None:
    for layer in LAYERS:
        real = tiny.graph.parameter(f"{layer}.weight").double().numpy()
        planned = graph.plan.tensors[f"{layer}.weight"]
        back = graph.nodes[graph.nodes[f"{layer}_conv"].input[1]]
        assert back.op_type == "DequantizeLinear"
        assert [a.i for a in back.attribute if a.name == "axis"] == [0]
        integers, scale, zero_point = (graph.constants[key] for key in back.input)
        assert [array.dtype.name for array in (integers, scale, zero_point)] == ["int8", "float32", "int8"]
        assert scale.tolist() == list(planned.scale)
        assert not zero_point.any()
        assert integers.min() >= -127
        # FP16 scales may be smaller than the peak's 127th: such a peak saturates, by at most a 2048th of it.
        steps = real / scale.astype(np.float64)[:, None, None, None]
        assert np.abs(integers - steps).max() <= (0.5 + 1e-4 if graph.plan.profile != "tensorrt" else 0.5 + 127 / 2048)
        np.testing.assert_array_equal(integers, np.clip(np.rint(steps), -127, 127))
        assert f"{layer}.weight" not in graph.constants


def test_biases_are_integers_for_onnx_runtime_alone(tiny: Program, graph: Graph) -> None:
    for layer in LAYERS:
        convolution = graph.nodes[f"{layer}_conv"]
        real = tiny.graph.parameter(f"{layer}.bias").double().numpy()
        if graph.plan.profile != "onnx":
            np.testing.assert_array_equal(graph.constants[convolution.input[2]], real.astype(np.float32))
            continue
        back = graph.nodes[convolution.input[2]]
        assert back.op_type == "DequantizeLinear"
        integers, scale, zero_point = (graph.constants[key] for key in back.input)
        source = tiny.values[f"{layer}_conv"].inputs[0]
        product = graph.plan.tensors[source].scale[0] * np.array(graph.plan.tensors[f"{layer}.weight"].scale)
        assert (integers.dtype.name, zero_point.dtype.name) == ("int32", "int32")
        assert not zero_point.any()
        np.testing.assert_allclose(scale, product, rtol=1e-6)
        assert np.abs(integers - real / product).max() <= 0.5 + 1e-3
        assert f"{layer}.bias" not in graph.constants


def test_the_checker_finds_nothing_wrong(graph: Graph) -> None:
    model = onnx.load(graph.path)
    onnx.checker.check_model(model, full_check=True)
    written = [name for node in model.graph.node for name in node.output]
    assert len(written) == len(set(written))
    read = {name for node in model.graph.node for name in node.input}
    assert set(graph.constants) <= read  # nothing is stored that nobody reads


def stored_biases(program: Program, graph: Graph) -> dict[str, Tensor]:
    """Those that are integers: half a step of one tips values over that lie between two steps of their own."""
    found = {}
    for value in (each for each in program.values.values() if each.bias):
        back = graph.nodes.get(graph.nodes[value.name].input[2])
        if back is not None:
            integers, scale, _ = (graph.constants[key] for key in back.input)
            found[value.bias] = torch.from_numpy(integers * scale).float()
    return found


def same_output(program: Program, graph: Graph, away: float = 0.05) -> None:
    """The graph as it stands, every pair computed in float, against the simulation; the float program is far away."""
    runner = OnnxRunner(graph.path, 1, fused=False)
    simulation, biases = simulated(program, graph.plan), stored_biases(program, graph)
    for seed in range(3):
        image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            expected = torch.func.functional_call(simulation, biases, image).numpy()
            exact = program.graph(image).numpy()
        # Float rounding; one integer step of any value would be a hundred times more.
        np.testing.assert_allclose(runner(image.numpy())[0], expected, atol=1e-4)
        assert np.abs(exact - expected).max() > away


def test_the_graph_computes_the_simulation(tiny: Program, graph: Graph) -> None:
    same_output(tiny, graph)


def test_a_plan_of_another_program_is_refused(tiny: Program) -> None:
    plan = replace(plan_for(tiny, ONNXRUNTIME), program="0" * 64)
    with pytest.raises(ConversionError, match="the plan was made for another program: plan again"):
        insert_qdq(onnx_graph(tiny, OPSET), tiny, plan)
    other = captured(seeded(TinyDetector(), seed=1))
    with pytest.raises(ConversionError, match="another program"):
        insert_qdq(onnx_graph(other, OPSET), other, plan_for(tiny, ONNXRUNTIME))


def test_a_value_that_the_graph_lacks_is_named(tiny: Program) -> None:
    plan, model = plan_for(tiny, OPENVINO), onnx_graph(tiny, OPSET)
    for node in model.graph:
        for output in node.outputs:
            if output.name == "left_mul":
                output.name = "something"
    with pytest.raises(ConversionError, match="left_mul is not in the ONNX graph"):
        insert_qdq(model, tiny, plan)


def test_integers_that_nobody_reads_are_refused(tiny: Program) -> None:
    """A plan that gives integers to a value that only float operations read, or to the output."""
    plan = plan_for(tiny, OPENVINO)
    softmax = TensorQuant("uint8", (1 / 255,), (0,))
    wrong = replace(plan, tensors={**plan.tensors, "program_softmax": softmax})
    with pytest.raises(ConversionError, match="program_softmax is quantised but nothing reads its integers"):
        insert_qdq(onnx_graph(tiny, OPSET), tiny, wrong)


class Repeated(nn.Module):
    """A convolution that is applied twice, to values of different ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.twice = nn.Conv2d(4, 4, 1)
        self.cls = nn.Conv2d(4, 2, 1)
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        once = self.twice(self.stem(images).relu()).relu()
        decoded: Tensor = self.decode(self.twice(once), self.cls(once))
        return decoded


@pytest.mark.parametrize("profile", [ONNXRUNTIME, OPENVINO], ids=lambda profile: profile.name)
def test_a_layer_that_is_used_twice_is_quantised_twice(tmp_path: Path, profile: RuntimeProfile) -> None:
    program = captured(seeded(Repeated(), seed=1))  # with 0, one sum lies on the edge of a step
    same_output(program, quantised(program, plan_for(program, profile), tmp_path), away=0.01)


class Recording(Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, graph: GraphModule, names: list[str]) -> None:
        super().__init__(graph)
        self.names = names
        self.kept: dict[str, NDArray[np.float32]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            self.kept[n.name] = result.numpy()
        return result


def recorded(graph: GraphModule, names: list[str], image: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    recording = Recording(graph, names)
    with torch.no_grad():
        recording.run(image)
    return recording.kept


def computed(graph: Graph, names: list[str], image: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Values inside the graph as ONNX Runtime computes it, every pair in float."""
    import onnxruntime

    model = onnx.load(graph.path)
    for name in names:
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(names, session.run(names, {"images": image.numpy()}), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("profile", [ONNXRUNTIME, OPENVINO, TENSORRT], ids=lambda profile: profile.name)
def test_the_demo_models_first_layers_are_those_of_the_simulation(
    demo_program: Program, tmp_path: Path, profile: RuntimeProfile
) -> None:
    """On a real image. Only the first: a value in the middle of two integers falls on either side, and after a hundred
    layers two simulations that differ in the last bit of a float are as far apart as quantisation itself.
    """
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, profile)
    graph, image = quantised(demo_program, plan, tmp_path), demo_image(demo_program.input.imgsz)
    names = list(demo_program.values)[1:13]
    actual = computed(graph, names, image)
    expected, exact = (recorded(g, names, image) for g in (simulated(demo_program, plan), module_of(demo_program)))
    for name in names:
        quantisation = np.abs(exact[name] - expected[name]).mean()
        assert quantisation > 0
        assert np.abs(actual[name] - expected[name]).mean() < 0.05 * quantisation, name


class Summed(nn.Module):
    """Two layers read a sum that is computed in float32 in every file."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.exact_sum, self.box, self.cls = Added(), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.decode = TinyDecode()

    def forward(self, images: Tensor) -> Tensor:
        both = self.exact_sum(self.one(images), self.other(images))
        decoded: Tensor = self.decode(self.box(both), self.cls(both))
        return decoded


def test_in_an_fp16_graph_the_integers_of_a_float32_value_are_made_behind_its_cast(tmp_path: Path) -> None:
    program, path = captured(seeded(Summed())), tmp_path / "summed.onnx"
    plan = make_plan(program, synthetic_statistics(program.values), TENSORRT, "minmax")
    write_onnx(program, plan, {}, path, 19, half=True)
    nodes = {node.output[0]: node for node in onnx.load(path).graph.node}
    found = [n for n in nodes.values() if n.op_type == "QuantizeLinear" and n.input[0].startswith("exact_sum_add")]
    assert len(found) == 1
    assert nodes[found[0].input[0]].op_type == "Cast"
    assert plan.is_quantised("exact_sum_add")
    (back,) = [node for node in nodes.values() if found[0].output[0] in node.input]
    assert {output for node in nodes.values() if back.output[0] in node.input for output in node.output} == {
        "box_conv",
        "cls_conv",
    }
