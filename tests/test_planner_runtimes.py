"""Plans for ONNX Runtime, OpenVINO and TensorRT: fused activations, moved integers, symmetry, CPUs without VNNI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from conftest import Rectified, captured, seeded, statistics_of, synthetic_statistics

from qexport import plugins
from qexport.calibration.statistics import BINS, Statistics
from qexport.errors import InputError, UsageError
from qexport.optimisation.bias_correction import BiasCorrection
from qexport.optimisation.registry import weight_pass, weight_passes
from qexport.planning.arithmetic import INT8, INT16, UINT8, IntegerType, Quantiser
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.registry import RANGES, needs_importance
from qexport.planning.runtime_profiles import (
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TFLITE,
    TFLITE_INT16,
    RuntimeProfile,
    for_saturating_cpus,
)
from qexport.programs.captured_graph import module_of
from qexport.programs.program import Program


def planned(
    program: Program,
    method: str = "minmax",
    profile: RuntimeProfile = TFLITE,
    float_values: Mapping[str, str] = {},
) -> QuantPlan:
    return make_plan(program, synthetic_statistics(program.values), profile, method, float_values)


def only(tensor: TensorQuant) -> tuple[float, int]:
    assert len(tensor.scale) == len(tensor.zero_point) == 1
    return tensor.scale[0], tensor.zero_point[0]


FUSED = (replace(OPENVINO, no_qdq_after_data_movement=False), TENSORRT)


@pytest.fixture(scope="module", params=FUSED, ids=lambda profile: profile.name)
def fused(request: pytest.FixtureRequest, tiny: Program) -> QuantPlan:
    """The plan of the tiny detector for a runtime whose convolutions compute their SiLU."""
    return planned(tiny, profile=request.param)


def test_nothing_between_a_convolution_and_its_silu_is_quantised(tiny: Program, fused: QuantPlan) -> None:
    for layer in ("stem", "left", "neck"):
        assert fused.tensors[f"{layer}_conv"].is_float
        assert fused.tensors[f"{layer}_sigmoid"].is_float
        assert fused.is_quantised(f"{layer}_mul")
        assert {f"{layer}_conv", f"{layer}_mul"} <= fused.integer
        assert f"{layer}_sigmoid" not in fused.integer


def test_what_a_fused_plan_quantises_by_hand(tiny: Program, fused: QuantPlan) -> None:
    """From the outputs back: what convolutions read, and what is handed to them by moves and sums."""
    moved = {"program_part", "program_part_2", "program_cat", "program_max_pool", "program_resize", "program_cat_2"}
    attention = {"program_matmul_2", "program_reshape_2"}
    computed = {"images", "stem_mul", "left_mul", "program_add", "deep_conv", "program_add_2", "neck_mul"}
    assert {name for name in tiny.values if fused.is_quantised(name)} == moved | attention | computed


def test_raw_outputs_stay_float_although_their_convolutions_run_in_integers(fused: QuantPlan) -> None:
    for layer in ("box", "cls"):
        assert f"{layer}_conv" in fused.integer
        assert fused.tensors[f"{layer}_conv"].is_float
        assert fused.tensors[f"{layer}.weight"].dtype == "int8"


def test_attention_stays_float_in_a_fused_plan(tiny: Program, fused: QuantPlan) -> None:
    products = [v.name for v in tiny.values.values() if v.operation in ("matmul", "softmax")]
    assert len(products) == 3
    assert not fused.integer & set(products)
    # Its inputs are moved in float; its result is quantised because the integer sum behind it wants integers.
    for name in ("program_reshape", "program_transpose", "program_matmul", "program_softmax"):
        assert fused.tensors[name].is_float
        assert name not in fused.integer
    assert fused.tensors["program_softmax"].why.startswith("attention products")


def test_what_only_moves_data_shares_a_scale_in_a_fused_plan(tiny: Program, fused: QuantPlan) -> None:
    checked = 0
    for value in tiny.values.values():
        moves = value.operation in ("part", "cat", "max_pool", "resize", "reshape", "transpose")
        if moves and fused.is_quantised(value.name):
            shared = {only(fused.tensors[name]) for name in (value.name, *value.inputs)}
            assert len(shared) == 1, value.name
            assert fused.tensors[value.name].group != ""
            checked += 1
    assert checked == 7
    # The pooling behind a convolution without a SiLU, and nothing else, reads that convolution.
    assert {n for n, t in fused.tensors.items() if t.group == "deep_conv"} == {"deep_conv", "program_max_pool"}


def test_moved_integers_get_no_pair_of_their_own_in_openvino(tiny: Program) -> None:
    plan, paired = planned(tiny, profile=OPENVINO), planned(tiny, profile=FUSED[0])
    bare = {name for name in tiny.values if paired.is_quantised(name) and not plan.is_quantised(name)}
    # Both halves of the split, both concatenations, pooling, reshaping, resizing: they move integers of one scale.
    resized = next(v.name for v in tiny.values.values() if v.operation == "resize")
    named = {"program_part", "program_part_2", "program_cat", "program_cat_2", "program_max_pool", "program_reshape_2"}
    assert bare == named | {resized}
    assert plan.integer == paired.integer
    for name in bare:
        assert plan.tensors[name].group == paired.tensors[name].group != ""
        assert all(source in bare or plan.is_quantised(source) for source in tiny.values[name].inputs)
    kept = {name: tensor for name, tensor in paired.tensors.items() if name not in bare}
    assert {name: plan.tensors[name] for name in kept} == kept


def test_both_inputs_of_a_quantised_sum_are_quantised(tiny: Program, fused: QuantPlan) -> None:
    sums = [value for value in tiny.values.values() if value.operation == "add" and value.region == "body"]
    assert [value.name for value in sums] == ["program_add", "program_add_2"]
    for value in sums:
        assert fused.is_quantised(value.name)
        assert len(value.inputs) == 2
        assert all(fused.is_quantised(name) for name in value.inputs)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("profile", "kind", "symmetric"),
    [(TENSORRT, INT8, True), (TFLITE_INT16, INT16, True), (OPENVINO, UINT8, False), (TFLITE, INT8, False)],
)
def test_estimators_are_told_what_a_runtime_quantises_with(
    tiny: Program, profile: RuntimeProfile, kind: IntegerType, symmetric: bool
) -> None:
    TOLD.clear()
    planned(tiny, "telling", profile)
    assert {Quantiser(kind, symmetric)} == TOLD


NOT_A_FUNCTION = 5
TOLD: set[Quantiser] = set()


def widest(_: Statistics, quantiser: Quantiser) -> tuple[float, float]:
    """A range estimator of another package."""
    return -1000.0, 1000.0 + quantiser.kind.low


def telling(statistics: Statistics, quantiser: Quantiser) -> tuple[float, float]:
    TOLD.add(quantiser)
    return min(statistics.minimum, 0.0), max(statistics.maximum, 0.0)


def astray(statistics: Statistics, _: Quantiser) -> tuple[float, float]:
    return statistics.maximum, np.inf


@dataclass(frozen=True)
class Weighing:
    """Wants importance, and spans what has any."""

    needs_importance: bool = True

    def __call__(self, statistics: Statistics, _: Quantiser) -> tuple[float, float]:
        assert statistics.importance is not None
        seen = statistics.edges[:-1][statistics.importance > 0]
        return min(float(seen[0]), 0.0), max(float(seen[-1]), 0.0)


WEIGHING = Weighing()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a package had registered what is above, once for ranges and once for passes."""

    def entries(group: str) -> list[EntryPoint]:
        names = {
            "widest": "widest",
            "astray": "astray",
            "nothing": "NOT_A_FUNCTION",
            "minmax": "astray",
            "telling": "telling",
            "weighing": "WEIGHING",
        }
        made = [EntryPoint(name, f"test_planner_runtimes:{target}", group) for name, target in names.items()]
        return made if group == "qexport.ranges" else [EntryPoint("theirs", "types:SimpleNamespace", group)]

    monkeypatch.setattr(plugins, "_entries", lambda group: entries(group=group))


@pytest.mark.usefixtures("registered")
def test_other_packages_estimators_are_found_by_name(tiny: Program) -> None:
    assert RANGES.names[len(RANGES.own) :] == ("astray", "nothing", "telling", "weighing", "widest")
    plan = planned(tiny, "widest")
    assert plan.tensors["deep_conv"].scale[0] == pytest.approx((1000 + 1000 - 128) / 255)
    assert plan.tensors["neck_mul"].why.startswith("widest: [-1000, 872]")
    assert planned(tiny, "minmax").tensors["deep_conv"].scale[0] < 1  # nobody takes the place of what is here
    with pytest.raises(InputError, match=r"range estimator astray gives \[.*, inf\]: it has to be finite and hold 0"):
        planned(tiny, "astray")
    with pytest.raises(UsageError, match="range estimator nothing of qexport"):
        planned(tiny, "nothing")
    with pytest.raises(
        UsageError, match=r"unknown range estimator wider: choose from percentile, minmax, .*, auto, astray"
    ):
        planned(tiny, "wider")


@pytest.mark.usefixtures("registered")
def test_another_packages_estimator_can_ask_for_importance(tiny: Program) -> None:
    assert {name for name in ("weighing", "widest", "telling") if needs_importance(name)} == {"weighing"}
    statistics = synthetic_statistics(tiny.values)
    one = np.zeros(BINS)
    one[BINS // 2 + 512] = 1.0  # 16 / 4096 each: two
    weighed = {name: replace(each, importance=one) for name, each in statistics.items()}
    plan = make_plan(tiny, weighed, TFLITE, "weighing")
    assert plan.tensors["neck_mul"].why.startswith("weighing: [0, 2]")


@pytest.mark.usefixtures("registered")
def test_other_packages_passes_are_found_by_name() -> None:
    assert weight_passes()[-1] == "theirs"
    assert {"adaptive-rounding", "bias-correction", "reconstruction"} < set(weight_passes())
    assert isinstance(weight_pass("bias-correction"), BiasCorrection)
    assert vars(weight_pass("theirs")) == {}
    with pytest.raises(UsageError, match=r"unknown pass rounding: choose from .*bias-correction.*, theirs"):
        weight_pass("rounding")


def test_fused_plans_keep_in_float_what_the_user_wants(tiny: Program) -> None:
    plan = planned(tiny, profile=OPENVINO, float_values=dict.fromkeys(("box_conv", "cls_conv"), FLOAT_AS_ASKED))
    for name in ("box_conv", "cls_conv"):
        assert name not in plan.integer
        assert plan.tensors[name] == TensorQuant("float32", why="float as asked")
        assert plan.tensors[tiny.values[name].weight].is_float
    # Nobody wants integers of what only they read.
    assert plan.tensors["neck_mul"].is_float
    assert "neck_conv" in plan.integer


def test_every_input_of_an_integer_convolution_is_quantised(demo_program: Program) -> None:
    """With cheap raw boxes in float, as for every runtime."""
    for profile in (*FUSED, ONNXRUNTIME):
        plan = planned(demo_program, profile=profile)
        convolutions = [v for v in demo_program.values.values() if v.weight and v.name in plan.integer]
        assert len(convolutions) == sum(v.operation == "conv" for v in demo_program.values.values()) - 3
        assert all(plan.is_quantised(name) for value in convolutions for name in value.inputs)
        assert all(plan.is_quantised(value.weight) for value in convolutions)
        assert all(plan.tensors[name].is_float for name in demo_program.raw.boxes)


def test_a_symmetric_plan_has_zero_points_of_zero_and_scales_that_fp16_holds(tiny: Program) -> None:
    plan = planned(tiny, profile=TENSORRT)
    quantised = [tensor for tensor in plan.tensors.values() if not tensor.is_float]
    assert {zero_point for tensor in quantised for zero_point in tensor.zero_point} == {0}
    assert {tensor.dtype for tensor in quantised} == {"int8"}
    for tensor in quantised:
        np.testing.assert_array_equal(np.array(tensor.scale, np.float16).astype(np.float64), tensor.scale)


def test_symmetric_scales_by_hand(tiny: Program) -> None:
    statistics = {**synthetic_statistics(tiny.values), "neck_mul": statistics_of(np.array([-12.7, 3.0]), 16.0)}
    plan = make_plan(tiny, statistics, TENSORRT, "minmax")
    assert only(plan.tensors["neck_mul"]) == (float(np.float16(0.1)), 0)
    assert only(plan.tensors["images"]) == (float(np.float16(1 / 127)), 0)
    weight = tiny.graph.parameter("neck.weight").numpy()
    peaks = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    assert plan.tensors["neck.weight"].scale == tuple((peaks / 127).astype(np.float16).astype(float))


def test_a_scale_too_small_for_fp16_is_the_smallest_that_is_not_zero(tiny: Program) -> None:
    statistics = {**synthetic_statistics(tiny.values), "neck_mul": statistics_of(np.zeros(10), 1.0)}
    plan = make_plan(tiny, statistics, TENSORRT, "minmax")
    assert only(plan.tensors["neck_mul"]) == (2.0**-24, 0)


@pytest.mark.parametrize(
    ("profile", "dtype", "scale"),
    [
        (ONNXRUNTIME, "uint8", 1 / 255),
        (OPENVINO, "uint8", 1 / 255),
        (TENSORRT, "int8", 1 / 127),
    ],
)
def test_pixels_of_each_runtime(tiny: Program, profile: RuntimeProfile, dtype: str, scale: float) -> None:
    plan = planned(tiny, profile=profile)
    assert plan.tensors["images"].dtype == dtype
    assert only(plan.tensors["images"]) == pytest.approx((scale, 0), rel=1e-3)
    assert plan.tensors["neck_mul"].dtype == profile.activation.name


def test_onnx_runtime_computes_the_whole_chain_in_unsigned_integers(tiny: Program) -> None:
    plan, tflite = planned(tiny, profile=ONNXRUNTIME), planned(tiny)
    assert plan.integer == tflite.integer
    assert plan.integer_bias
    assert tflite.integer_bias
    activations = {name for name in tiny.values if plan.is_quantised(name)}
    assert {plan.tensors[name].dtype for name in activations} == {"uint8"}
    gates = [name for name in plan.integer if tiny.values[name].operation == "sigmoid"]
    assert len(gates) == 3
    assert all(only(plan.tensors[name]) == (float(np.float32(1 / 255)), 0) for name in gates)
    # Its concatenation could rescale what it reads, but copies in half the time what has its scale already.
    shared = {only(plan.tensors[name]) for name in ("program_part", "program_add", "program_cat")}
    assert len(shared) == 1
    assert plan.tensors["program_add"].group == plan.tensors["program_cat"].group != ""


@pytest.mark.parametrize("profile", [ONNXRUNTIME, OPENVINO], ids=lambda profile: profile.name)
def test_careful_plans_differ_in_weight_scales_alone(demo_program: Program, profile: RuntimeProfile) -> None:
    plain, safe = planned(demo_program, profile=profile), planned(demo_program, profile=for_saturating_cpus(profile))
    assert (safe.integer, safe.integer_bias, safe.profile) == (plain.integer, plain.integer_bias, plain.profile)
    weights = {v.weight for v in demo_program.values.values() if v.weight and plain.is_quantised(v.weight)}
    assert weights
    for name, tensor in plain.tensors.items():
        if name not in weights:
            assert safe.tensors[name] == tensor
            continue
        wider = np.array(safe.tensors[name].scale) / tensor.scale
        assert (wider >= 1).all()
        assert (wider <= 127 / 64 * (1 + 1e-6)).all()


def test_careful_weights_fit_the_sums_of_kernels_without_vnni(demo_program: Program) -> None:
    plan = planned(demo_program, profile=for_saturating_cpus(ONNXRUNTIME))
    parameters = module_of(demo_program).state_dict()
    steps = []
    for value in demo_program.values.values():
        if not value.weight or value.name not in plan.integer:
            continue
        weight = parameters[value.weight].numpy()
        scale = np.array(plan.tensors[value.weight].scale, np.float32).reshape(-1, 1, 1, 1)
        integers = np.rint(weight / scale).astype(int)
        steps.append(np.abs(integers).max())
        if weight.shape[1] % 2:
            assert steps[-1] <= 64
            continue
        for signed in (np.maximum(integers, 0), np.maximum(-integers, 0)):
            assert 255 * (signed[:, 0::2] + signed[:, 1::2]).max() <= 32767, value.name
    # Seven bits everywhere would be 64.
    assert np.mean(steps) > 80


def test_plans_for_vnni_keep_all_steps_of_a_weight(tiny: Program) -> None:
    weight = tiny.graph.parameter("stem.weight").numpy()
    peaks = np.abs(weight).max(axis=(1, 2, 3))
    for profile, steps in (
        (ONNXRUNTIME, 127),
        (for_saturating_cpus(ONNXRUNTIME), 64),
    ):  # three input channels: an odd number
        scale = planned(tiny, profile=profile).tensors["stem.weight"].scale
        np.testing.assert_allclose(scale, peaks / steps, rtol=1e-6)


@pytest.mark.parametrize("negatives", [False, True])
def test_a_relu_belongs_to_its_convolution_only_where_zero_is_its_least_integer(negatives: bool) -> None:
    program = captured(seeded(Rectified(negatives)))
    statistics = synthetic_statistics(program.values)
    rectified = {name: statistics_of(np.linspace(0, 5, 1001), 8.0) for name in program.values if name.endswith("_relu")}
    plan = make_plan(program, statistics | rectified, replace(ONNXRUNTIME, float_stem=0.0), "minmax")
    assert plan.is_quantised("first_relu")
    # ONNX Runtime leaves the ReLU out, and fuses what is in front of it, where zero is the least integer.
    assert (only(plan.tensors["first_relu"])[1] > 0) == negatives
    assert plan.is_quantised("first_conv") == negatives
    assert "first_conv" in plan.integer
