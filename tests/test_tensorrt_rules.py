"""TensorRT's rules: the graphs that are written keep every one of them, and a graph that breaks one is found out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import demo_checkpoint, demo_images, lowering, synthetic_statistics

from qexport.backends.tensorrt.backend import TensorRTBackend
from qexport.calibration.calibrate import calibrate
from qexport.errors import ConversionError
from qexport.lowering.metadata import artifact_metadata
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TENSORRT
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.verification.verify import verify

for package in ("onnx", "onnx_ir", "onnxruntime"):
    pytest.importorskip(package, reason="needs the extra qexport[tensorrt]")

import onnx  # noqa: E402
import onnx_ir as ir  # noqa: E402

from qexport.backends.tensorrt.rules import broken_rules, integer_operations  # noqa: E402

SOUND = """
<ir_version: 9, opset_import: ["" : 19]>
sound (float[1, 2, 4, 4] images) => (float[1, 2, 4, 4] output0)
<
  float s = {0.5}, int8 z = {0},
  int8[2, 2, 1, 1] w = {1, 2, 3, 4}, float[2] ws = {0.5, 0.25}, int8[2] wz = {0, 0}, float[2] b = {1.0, 2.0},
  float[2, 2, 1, 1] wf = {1.0, 2.0, 3.0, 4.0}
>
{
  [q_images] images_q = QuantizeLinear (images, s, z)
  [d_images] images_r = DequantizeLinear (images_q, s, z)
  [d_weight] weight = DequantizeLinear <axis = 0> (w, ws, wz)
  [conv] conv = Conv (images_r, weight, b)
  [gate] gate = Sigmoid (conv)
  [silu] silu = Mul (conv, gate)
  [q_silu] silu_q = QuantizeLinear (silu, s, z)
  [d_silu] silu_r = DequantizeLinear (silu_q, s, z)
  [sum] sum = Add (images_r, silu_r)
  [q_sum] sum_q = QuantizeLinear (sum, s, z)
  [d_sum] sum_r = DequantizeLinear (sum_q, s, z)
  [float_conv] output0 = Conv (images, wf)
}
"""
BETWEEN = """
  [q_conv] conv_q = QuantizeLinear (conv, s, z)
  [d_conv] conv_r = DequantizeLinear (conv_q, s, z)
  [gate] gate = Sigmoid (conv_r)
"""
COMPUTED_BIAS = """
  [d_bias] bias = DequantizeLinear <axis = 0> (wz, ws, wz)
  [conv] conv = Conv (images_r, weight, bias)
"""


@dataclass(frozen=True)
class Lowered:
    path: Path
    plan: QuantPlan

    def proto(self) -> onnx.ModelProto:
        return onnx.load(self.path)

    def model(self) -> ir.Model:
        return ir.load(self.path)


@pytest.fixture(scope="module")
def lowered(demo_program: Program, tmp_path_factory: pytest.TempPathFactory) -> Lowered:
    """The end-to-end demo model at 96 pixels, calibrated on four images."""
    table = calibrate(demo_program, demo_images("train", 4), lambda: None)
    plan = make_plan(demo_program, table.statistics, TENSORRT)
    path = tmp_path_factory.mktemp("tensorrt") / "demo_int8_tensorrt.onnx"
    TensorRTBackend().lower(
        lowering(demo_program, "int8", plan, artifact_metadata(demo_checkpoint(), demo_program, "int8", plan)), path
    )
    return Lowered(path, plan)


@pytest.mark.parametrize("seed", range(3))
def test_any_values_may_stay_float(demo_program: Program, tmp_path: Path, seed: int) -> None:
    """The backend refuses what breaks a rule, and what is not counted as planned is refused when files are verified."""
    statistics = calibrate(demo_program, demo_images("train", 2), lambda: None).statistics
    integer = sorted(make_plan(demo_program, statistics, TENSORRT).integer)
    chosen = np.random.default_rng(seed).choice(integer, size=(1 + seed) * len(integer) // 6, replace=False)
    plan = make_plan(demo_program, statistics, TENSORRT, float_values=dict.fromkeys(chosen.tolist(), "by chance"))
    path = tmp_path / "mixed_tensorrt.onnx"
    TensorRTBackend().lower(
        lowering(demo_program, "int8", plan, artifact_metadata(demo_checkpoint(), demo_program, "int8", plan)), path
    )
    planned = {name for name in plan.integer if demo_program.values[name].weight}
    assert {name.removesuffix("_output") for name in integer_operations(ir.load(path))} == planned


def parsed(text: str) -> ir.Model:
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def integer_convolutions(program: Program, plan: QuantPlan) -> frozenset[str]:
    return frozenset(value.name for value in program.values.values() if value.weight and value.name in plan.integer)


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    """Element type of every tensor, by ONNX's own inference."""
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    ports = (*graph.input, *graph.value_info, *graph.output)
    return {port.name: port.type.tensor_type.elem_type for port in ports}


def test_a_sound_graph_breaks_no_rule() -> None:
    assert broken_rules(parsed(SOUND)) == []
    assert integer_operations(parsed(SOUND)) == {"conv"}


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("z = {0}", "z = {1}", "q_images: the zero point is not an INT8 0"),
        ("int8 z", "uint8 z", "d_silu: the zero point is not an INT8 0"),
        ("wz = {0, 0}", "wz = {0, 3}", "d_weight: the zero point is not an INT8 0"),
        ("s = {0.5}", "s = {0.0}", "q_sum: a scale is not positive"),
        ("ws = {0.5, 0.25}", "ws = {0.5, -0.25}", "d_weight: a scale is not positive"),
        ("(images, s, z)", "(images, ws, wz)", "q_images: activations have one scale for the tensor"),
        ("(w, ws, wz)", "(w, s, z)", "conv: weights have one scale for each output channel"),
        ("<axis = 0>", "<axis = 1>", "conv: weights have one scale for each output channel"),
        ("<axis = 0>", "", "conv: weights have one scale for each output channel"),
        ("Conv (images_r, weight, b)", "Conv (images, weight, b)", "conv: of input and weight only one is quantised"),
        ("Conv (images_r, weight, b)", "Conv (images_r, wf, b)", "conv: of input and weight only one is quantised"),
        ("[conv] conv = Conv (images_r, weight, b)", COMPUTED_BIAS, "conv: the bias is not a float constant"),
        ("float s =", "int32[1, 2, 4, 4] conv, float s =", "conv: the result is not a float"),
        ("[gate] gate = Sigmoid (conv)", BETWEEN, "conv: quantised between the convolution and its activation"),
        ("Add (images_r, silu_r)", "Add (images_r, silu)", "sum: not both inputs of the sum are quantised"),
        ("Add (images_r, silu_r)", "Add (images, silu_r)", "sum: not both inputs of the sum are quantised"),
        ("(float[1, 2, 4, 4] output0)", "(float16[1, 2, 4, 4] output0)", "output0 is FLOAT16, inputs and outputs"),
        ("(float[1, 2, 4, 4] images)", "(float16[1, 2, 4, 4] images)", "images is FLOAT16, inputs and outputs"),
    ],
)
def test_every_rule_bites(old: str, new: str, line: str) -> None:
    assert old in SOUND
    found = broken_rules(parsed(SOUND.replace(old, new)))
    assert [text for text in found if text.startswith(line)], found


def test_a_sum_that_nobody_quantises_may_stay_float() -> None:
    text = SOUND.replace("Add (images_r, silu_r)", "Add (images, silu)").replace("(sum, s, z)", "(silu, s, z)")
    assert broken_rules(parsed(text)) == []


@pytest.mark.parametrize(("axis", "broken"), [(1, []), (0, ["conv: weights have one scale for each output channel"])])
def test_transposed_convolutions_have_their_output_channels_second(axis: int, broken: list[str]) -> None:
    text = SOUND.replace("= Conv (images_r", "= ConvTranspose (images_r").replace("axis = 0", f"axis = {axis}")
    assert broken_rules(parsed(text)) == broken


def test_only_what_has_both_factors_quantised_counts_as_integer() -> None:
    assert integer_operations(parsed(SOUND.replace("(images_r, weight, b)", "(images, weight, b)"))) == frozenset()
    assert integer_operations(parsed(SOUND.replace("(images, wf)", "(images_r, wf)"))) == {"conv"}


def shift_a_zero_point(model: ir.Model) -> str:
    node = first(model, "QuantizeLinear")
    operand(node, 2).const_value = ir.tensor(np.array(1, dtype=np.int8))
    return f"{node.name}: the zero point is not an INT8 0"


def store_unsigned(model: ir.Model) -> str:
    node = first(model, "DequantizeLinear")
    operand(node, 2).const_value = ir.tensor(np.array(0, dtype=np.uint8))
    return f"{node.name}: the zero point is not an INT8 0"


def leave_an_input_float(model: ir.Model) -> str:
    node = first_integer_convolution(model)
    node.replace_input_with(0, before_pair(node, 0))
    return f"{node.name}: of input and weight only one is quantised"


def leave_a_summand_float(model: ir.Model) -> str:
    sums = [node for node in model.graph if node.op_type == "Add"]
    node = next(node for node in sums if any(r.op_type == "QuantizeLinear" for r, _ in node.outputs[0].uses()))
    node.replace_input_with(1, before_pair(node, 1))
    return f"{node.name}: not both inputs of the sum are quantised"


def one_scale_for_a_weight(model: ir.Model) -> str:
    node = first_integer_convolution(model)
    operand(writer(node, 1), 1).const_value = ir.tensor(np.array(0.5, dtype=np.float16))
    return f"{node.name}: weights have one scale for each output channel"


def part_a_convolution_from_its_activation(model: ir.Model) -> str:
    node = first_integer_convolution(model)
    parameters = writer(node, 0).inputs[1:]
    readers = list(node.outputs[0].uses())
    quantise = ir.node("QuantizeLinear", [node.outputs[0], *parameters], name="between")
    dequantise = ir.node("DequantizeLinear", [quantise.outputs[0], *parameters], name="between_too")
    model.graph.extend([quantise, dequantise])
    for reader, index in readers:
        reader.replace_input_with(index, dequantise.outputs[0])
    return f"{node.name}: quantised between the convolution and its activation"


def first(model: ir.Model, kind: str) -> ir.Node:
    return next(node for node in model.graph if node.op_type == kind)


def first_integer_convolution(model: ir.Model) -> ir.Node:
    integer = integer_operations(model)
    return next(node for node in model.graph if node.outputs[0].name in integer)


def operand(node: ir.Node, index: int) -> ir.Value:
    found = node.inputs[index]
    assert found is not None
    return found


def writer(node: ir.Node, index: int) -> ir.Node:
    found = operand(node, index).producer()
    assert found is not None
    return found


def before_pair(node: ir.Node, index: int) -> ir.Value:
    """The float that a node's input was before it was quantised and dequantised."""
    return operand(writer(writer(node, index), 0), 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        shift_a_zero_point,
        store_unsigned,
        leave_an_input_float,
        leave_a_summand_float,
        one_scale_for_a_weight,
        part_a_convolution_from_its_activation,
    ],
)
def test_damage_to_the_demo_model_is_the_only_thing_found(lowered: Lowered, damage: Callable[[ir.Model], str]) -> None:
    model = lowered.model()
    assert broken_rules(model) == []
    line = damage(model)
    found = broken_rules(model)
    # A constant that several nodes share is named by each of them.
    assert line in found
    assert {text.partition(": ")[2] for text in found} == {line.partition(": ")[2]}


def test_a_graph_that_breaks_a_rule_is_not_kept(tiny: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qexport.backends.tensorrt import rules as tensorrt_rules

    monkeypatch.setattr(tensorrt_rules, "broken_rules", lambda model, floats: ["conv: this is wrong", "and this"])
    with pytest.raises(ConversionError, match="breaks a rule of TensorRT: conv: this is wrong"):
        TensorRTBackend().lower(lowering(tiny, "fp32"), tmp_path / "tiny.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_runs_in_integers_is_what_the_plan_says(demo_program: Program, lowered: Lowered) -> None:
    planned = integer_convolutions(demo_program, lowered.plan)
    assert len(planned) > 90
    assert integer_operations(lowered.model()) == planned
    stored = TensorRTBackend().read(lowered.path)
    assert stored.integer_macs == sum(demo_program.values[name].macs for name in planned)
    assert stored.total_macs == sum(value.macs for value in demo_program.values.values())


@pytest.mark.slow
def test_onnx_runtime_agrees_with_the_simulation(demo_program: Program, lowered: Lowered) -> None:
    backend = TensorRTBackend()
    inputs = sample_inputs(demo_images("val", 4), demo_program)
    found = verify(demo_program, lowered.plan, backend.read(lowered.path), backend.runner(lowered.path, 2), inputs)
    assert (found.images, found.unnamed) == (4, 0)
    assert found.agreement is not None
    assert found.agreement >= 0.75
    assert found.coverage > 0.95


@pytest.mark.slow
def test_scales_in_the_file_are_the_plans_to_the_last_bit(lowered: Lowered) -> None:
    graph = lowered.proto().graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = {node.input[0].split("/")[0]: node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    quantised = {name: tensor for name, tensor in lowered.plan.tensors.items() if not tensor.is_float}
    assert len(quantised) > 200
    for name, tensor in quantised.items():
        stored = constants[f"{name}.scale" if tensor.axis is not None else pairs[name]]
        assert stored.dtype == np.float16, name
        assert tuple(stored.reshape(-1).tolist()) == tensor.scale, name
        assert set(tensor.zero_point) == {0}, name


@pytest.mark.slow
def test_the_body_is_half_precision_and_the_ports_and_the_decode_are_single(
    demo_program: Program, lowered: Lowered
) -> None:
    types = types_of(lowered.proto())
    assert (types["images"], types["output0"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT)
    named = {value.name: value for value in demo_program.values.values() if value.name in types}
    body = {types[name] for name, value in named.items() if value.region == "body" and name != "images"}
    assert body == {onnx.TensorProto.FLOAT16}
    tail = {types[name] for name, value in named.items() if value.region == "decode"}
    assert onnx.TensorProto.FLOAT in tail
    assert onnx.TensorProto.FLOAT16 not in tail
    assert sum(value.region == "body" for value in named.values()) > 250


@pytest.mark.slow
def test_the_operator_set_is_the_first_with_half_precision_scales(lowered: Lowered) -> None:
    assert [(entry.domain, entry.version) for entry in lowered.proto().opset_import] == [("", 19)]


def test_operator_set_18_has_no_half_precision_scales(tiny: Program, tmp_path: Path) -> None:
    plan = make_plan(tiny, synthetic_statistics(tiny.values), TENSORRT)
    with pytest.raises(ConversionError, match=r"the ONNX graph is not valid .*: try another --opset") as caught:
        TensorRTBackend().lower(lowering(tiny, "int8", plan, opset=18), tmp_path / "tiny.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "wanted"), [("fp16", "FLOAT16"), ("fp32", "FLOAT")])
def test_float_graphs_have_the_precision_that_is_asked_for(
    tiny: Program, tmp_path: Path, precision: str, wanted: str
) -> None:
    path = tmp_path / "tiny.onnx"
    TensorRTBackend().lower(lowering(tiny, precision), path)
    graph = onnx.load(path)
    types = types_of(graph)
    convolutions = [types[node.output[0]] for node in graph.graph.node if node.op_type == "Conv"]
    assert [onnx.TensorProto.DataType.Name(kind) for kind in convolutions] == [wanted] * 6
    assert (types["images"], types["output0"]) == (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT)
    assert TensorRTBackend().read(path).coverage == 0
