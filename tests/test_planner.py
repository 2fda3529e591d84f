"""The plan: which values get integers, which share a scale, which range each has, and a golden plan of the demo model.

The golden file is made from the demo model's structure and from synthetic statistics, never from trained numbers. When
a change of the planner or of a profile is meant, look at the difference after

    QEXPORT_UPDATE_GOLDEN=1 .venv/bin/python -m pytest tests/test_planner.py -k golden
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TinyDetector, captured, seeded, statistics_of, synthetic_statistics

from qexport.calibration.statistics import Statistics
from qexport.errors import InputError
from qexport.planning.plan import RULES, QuantPlan, TensorQuant
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.runtime_profiles import (
    ONNXRUNTIME,
    OPENVINO,
    TENSORRT,
    TFLITE,
    WEIGHTS,
    RuntimeProfile,
    for_saturating_cpus,
)
from qexport.programs.program import INPUT, Program

GOLDEN = Path(__file__).parent / "golden"


def planned(
    program: Program,
    method: str = "minmax",
    profile: RuntimeProfile = TFLITE,
    float_values: Mapping[str, str] = {},
) -> QuantPlan:
    return make_plan(program, synthetic_statistics(program.values), profile, method, float_values)


@pytest.fixture(scope="module")
def plan(tiny: Program) -> QuantPlan:
    return planned(tiny)


def only(tensor: TensorQuant) -> tuple[float, int]:
    assert len(tensor.scale) == len(tensor.zero_point) == 1
    return tensor.scale[0], tensor.zero_point[0]


def test_pixels_are_one_step_each(plan: QuantPlan) -> None:
    assert plan.tensors["images"].dtype == "int8"
    assert only(plan.tensors["images"]) == pytest.approx((1 / 255, -128))


def test_every_sigmoid_of_the_body_has_the_kernels_scale(tiny: Program, plan: QuantPlan) -> None:
    gates = [v.name for v in tiny.values.values() if v.operation == "sigmoid" and v.region == "body"]
    assert len(gates) == 3
    assert all(only(plan.tensors[name]) == (1 / 256, -128) for name in gates)


def test_a_range_becomes_a_scale_by_hand(tiny: Program) -> None:
    statistics = {**synthetic_statistics(tiny.values), "deep_conv": statistics_of(np.array([-1.0, 4.1]), 8.0)}
    plan = make_plan(tiny, statistics, TFLITE, "minmax")
    # 5.1 in 255 steps of 0.02; zero lies 50 steps above the lowest.
    assert only(plan.tensors["deep_conv"]) == pytest.approx((0.02, -128 + 50))


def test_a_concatenation_and_its_inputs_share_one_scale(tiny: Program, plan: QuantPlan) -> None:
    # chunk(SiLU), sum, their concatenation, the resized sum behind it and the second concatenation: one group.
    resized = next(v for v in tiny.values.values() if v.operation == "resize")
    second = "program_cat_2"
    group = {"stem_mul", "program_part", "program_part_2", "program_add", "program_cat", second}
    group |= {resized.name, *resized.inputs}
    labels = {plan.tensors[name].group for name in group}
    assert labels == {"stem_mul"}
    assert {name for name, t in plan.tensors.items() if t.group == "stem_mul"} == group
    assert len({only(plan.tensors[name]) for name in group}) == 1
    assert f"shared by {len(group)} values" in plan.tensors[second].why


def test_a_shared_scale_holds_the_widest_of_its_values(tiny: Program) -> None:
    statistics = dict(synthetic_statistics(tiny.values))
    for name in statistics:
        statistics[name] = statistics_of(np.array([-1.0, 1.0]), 1.0)
    statistics["program_add"] = statistics_of(np.array([-30.0, 21.0]), 32.0)
    plan = make_plan(tiny, statistics, TFLITE, "minmax")
    assert only(plan.tensors["program_cat"]) == pytest.approx((0.2, -128 + 150))
    assert only(plan.tensors["stem_mul"]) == pytest.approx((0.2, -128 + 150))


def test_attention_and_decode_stay_float(tiny: Program, plan: QuantPlan) -> None:
    for value in tiny.values.values():
        if value.operation in ("matmul", "softmax"):
            assert value.name not in plan.integer
            assert plan.tensors[value.name].is_float
        if value.region == "decode":
            assert plan.tensors[value.name] == TensorQuant(
                "float32", why="decode stays float: pixels and scores must not share a scale"
            )
    softmax = next(v.name for v in tiny.values.values() if v.operation == "softmax")
    assert plan.tensors[softmax].why.startswith("attention products")
    # What attention gives back is quantised where the integer sum behind it reads it, and only there.
    back = tiny.values[[v.name for v in tiny.values.values() if v.operation == "add"][-1]].inputs[1]
    assert tiny.values[back].operation == "reshape"
    assert plan.is_quantised(back)
    assert back not in plan.integer


def test_every_value_and_weight_is_decided_and_says_why(demo_program: Program) -> None:
    plan = planned(demo_program)
    weights = {v.weight for v in demo_program.values.values() if v.weight}
    assert set(plan.tensors) == set(demo_program.values) | weights
    assert all(t.why and "\n" not in t.why for t in plan.tensors.values())
    assert plan.integer <= set(demo_program.values)
    assert all(not plan.tensors[name].is_float for name in plan.integer)
    assert (plan.profile, plan.program) == ("tflite", demo_program.fingerprint)


def test_weights_are_symmetric_with_a_scale_for_each_output_channel(tiny: Program, plan: QuantPlan) -> None:
    module = seeded(TinyDetector())
    for layer in ("stem", "left", "deep", "neck", "box", "cls"):
        weight = getattr(module, layer).weight.numpy()
        tensor = plan.tensors[f"{layer}.weight"]
        assert (tensor.dtype, tensor.axis) == ("int8", 0)
        assert tensor.zero_point == (0,) * len(weight)
        np.testing.assert_allclose(tensor.scale, np.abs(weight).reshape(len(weight), -1).max(1) / 127, rtol=1e-6)


LONG_TAIL = np.concatenate((np.linspace(-1, 1, 50_000), [-40.0, 40.0]))


def tailed(program: Program, *names: str) -> Mapping[str, Statistics]:
    return {
        **synthetic_statistics(program.values),
        **{name: statistics_of(LONG_TAIL, 64.0) for name in names},
    }


def test_raw_boxes_are_never_clipped(tiny: Program) -> None:
    plan = make_plan(tiny, tailed(tiny, "box_conv"), TFLITE, "percentile")
    assert only(plan.tensors["box_conv"])[0] == pytest.approx(80 / 255)
    assert plan.tensors["box_conv"].why.startswith("minmax")


def test_raw_scores_keep_their_peak_and_lose_what_no_threshold_sees(tiny: Program) -> None:
    plan = make_plan(tiny, tailed(tiny, "cls_conv"), TFLITE, "percentile")
    assert only(plan.tensors["cls_conv"]) == pytest.approx((48 / 255, round(-128 + 8 / (48 / 255))))


def test_silu_inputs_end_where_silu_is_flat(tiny: Program) -> None:
    for method, high in (("minmax", 40.0), ("percentile", 1.0)):
        plan = make_plan(tiny, tailed(tiny, "stem_conv", "deep_conv"), TFLITE, method)
        low = 6.25 if method == "minmax" else 1.0
        assert only(plan.tensors["stem_conv"])[0] == pytest.approx((low + high) / 255, rel=0.02)
        # Read by a pooling, not by SiLU: nothing is cut off below.
        low = 40.0 if method == "minmax" else 1.0
        assert only(plan.tensors["deep_conv"])[0] == pytest.approx((low + high) / 255, rel=0.02)


def test_the_methods_differ(tiny: Program) -> None:
    scales = {m: only(make_plan(tiny, tailed(tiny, "neck_mul"), TFLITE, m).tensors["neck_mul"])[0] for m in METHODS}
    assert scales["percentile"] < scales["mse"] <= scales["minmax"]


METHODS = ("minmax", "percentile", "mse")


def test_a_missing_entry_is_named(tiny: Program) -> None:
    statistics = dict(synthetic_statistics(tiny.values))
    del statistics["deep_conv"]
    with pytest.raises(InputError, match=r"no entry for deep_conv: "):
        make_plan(tiny, statistics, TFLITE)


def test_entries_that_no_scale_needs_may_be_missing(tiny: Program, plan: QuantPlan) -> None:
    statistics = dict(synthetic_statistics(tiny.values))
    for value in tiny.values.values():
        if value.region == "decode" or value.operation in ("sigmoid", "part", "cat", "softmax"):
            del statistics[value.name]
    assert make_plan(tiny, statistics, TFLITE, "minmax") == plan


def test_what_the_user_wants_in_float_stays_float(tiny: Program) -> None:
    plan = planned(tiny, float_values=dict.fromkeys(("neck_conv", "neck_mul"), FLOAT_AS_ASKED))
    assert "neck_conv" not in plan.integer
    assert "neck_mul" not in plan.integer
    assert plan.tensors["neck.weight"] == TensorQuant("float32", why="neck_conv stays float")
    # Its integer reader still needs a scale for it: the sigmoid behind the convolution, the convolution behind the sum.
    assert plan.is_quantised("neck_conv")
    assert plan.is_quantised("neck_mul")
    assert "box_conv" in plan.integer


def test_a_value_between_float_operations_is_float_as_asked(tiny: Program) -> None:
    names = dict.fromkeys(("neck_conv", "neck_sigmoid", "neck_mul"), FLOAT_AS_ASKED)
    plan = planned(tiny, float_values=names)
    assert plan.tensors["neck_conv"] == TensorQuant("float32", why="float as asked")
    assert plan.tensors["neck_sigmoid"] == TensorQuant("float32", why="float as asked")


def test_symmetric_profiles_have_zero_points_of_zero(tiny: Program) -> None:
    profile = replace(TFLITE, name="symmetric", symmetric_activations=True)
    statistics = {
        **synthetic_statistics(tiny.values),
        "deep_conv": statistics_of(np.array([-1.0, 12.7]), 16.0),
    }
    plan = make_plan(tiny, statistics, profile, "minmax")
    assert only(plan.tensors["deep_conv"]) == pytest.approx((0.1, 0))


def test_scales_are_float32_as_files_store_them(plan: QuantPlan) -> None:
    for tensor in plan.tensors.values():
        assert all(float(np.float32(scale)) == scale for scale in tensor.scale)


def test_groups_agree_in_the_whole_demo_plan(demo_program: Program) -> None:
    plan = planned(demo_program)
    shared = ("cat", "part", "max_pool", "resize", "reshape", "transpose")
    followed = 0
    for value in demo_program.values.values():
        if value.name in plan.integer and value.operation in shared:
            for source in value.inputs:
                assert only(plan.tensors[source]) == only(plan.tensors[value.name]), (source, value.name)
                followed += 1
    assert followed > 40


def test_pixels_and_scores_never_share_a_scale(demo_program: Program, tiny: Program) -> None:
    plan = planned(demo_program)
    for name in demo_program.raw.scores:
        assert plan.is_quantised(name)
        # One for all levels, because the converter joins them as integers, and for nothing else.
        assert plan.tensors[name].group == demo_program.raw.scores[0]
    assert [n for n, t in plan.tensors.items() if t.group == demo_program.raw.scores[0]] == [*demo_program.raw.scores]
    for name in demo_program.raw.boxes:
        assert plan.tensors[name].is_float
        assert plan.tensors[name].why.startswith("raw boxes stay float")
        assert plan.tensors[demo_program.values[name].weight].is_float
    assert planned(tiny).tensors["box_conv"].group == planned(tiny).tensors["cls_conv"].group == ""


def test_raw_boxes_are_float_where_they_are_cheap(tiny: Program) -> None:
    values = tiny.values.values()
    share = tiny.values["box_conv"].macs / sum(v.macs for v in values)
    for bound, is_float in ((share * 1.01, True), (share * 0.99, False)):
        profile = replace(TFLITE, float_boxes=bound)
        plan = make_plan(tiny, synthetic_statistics(tiny.values), profile)
        assert plan.tensors["box_conv"].is_float == is_float
        assert plan.is_quantised("neck_mul")  # what it reads is integers either way


def test_the_stem_is_float_where_it_is_cheap(tiny: Program) -> None:
    stem = {name for name in tiny.values if name.startswith("stem_")}
    share = sum(tiny.values[name].macs for name in stem) / sum(v.macs for v in tiny.values.values())
    for bound, is_float in ((share * 1.01, True), (share * 0.99, False)):
        profile = replace(ONNXRUNTIME, float_stem=bound)
        plan = make_plan(tiny, synthetic_statistics(tiny.values), profile)
        assert bool(plan.integer & stem) == (not is_float)
        assert plan.tensors[INPUT].is_float == is_float
        assert plan.tensors["stem_conv"].why.startswith("the first convolution stays float") == is_float
        assert "left_conv" in plan.integer  # what the second layer reads is integers either way


def test_rules_say_whose_scales_may_move(tiny: Program, plan: QuantPlan) -> None:
    quantised = {name: tensor for name, tensor in plan.tensors.items() if not tensor.is_float}
    rules = {rule: {n for n, tensor in quantised.items() if tensor.rule == rule} for rule in RULES}
    gates = {v.name for v in tiny.values.values() if v.operation == "sigmoid" and v.region == "body"}
    assert rules["fixed"] == gates | {INPUT}
    assert rules["shared"] == {name for name, tensor in quantised.items() if tensor.group}
    assert {"deep.weight", "box_conv", "neck_conv"} <= rules["own"]
    assert not rules["derived"]
    pairs = planned(tiny, profile=for_saturating_cpus(ONNXRUNTIME))
    assert {n for n, t in pairs.tensors.items() if t.rule == "derived"} == {n for n in pairs.tensors if "weight" in n}
    # A filter of next to nothing has a scale that its bias would not fit.
    small: Any = seeded(TinyDetector())
    small.neck.weight.data[0] *= 1e-9
    small.neck.bias.data[0] = 50.0
    tensors = planned(captured(small)).tensors
    assert (tensors["neck.weight"].rule, tensors["deep.weight"].rule) == ("derived", "own")


def test_integers_need_statistics_and_weights_alone_do_not(tiny: Program) -> None:
    with pytest.raises(InputError, match="a plan for tflite needs statistics: calibrate first"):
        make_plan(tiny, None, TFLITE)
    assert make_plan(tiny, None, WEIGHTS) == make_plan(tiny, synthetic_statistics(tiny.values), WEIGHTS)


def golden(program: Program, profile: RuntimeProfile) -> dict[str, list[object]]:
    """Value or weight → dtype, scale, zero point, group, whether its operation runs in integers, why."""
    plan = planned(program, "percentile", profile)
    rows: dict[str, list[object]] = {}
    for name, tensor in plan.tensors.items():
        trained = tensor.axis is not None
        scale = f"{len(tensor.scale)} along {tensor.axis}" if trained else [float(f"{s:.6g}") for s in tensor.scale]
        zero_point = sorted(set(tensor.zero_point)) if trained else list(tensor.zero_point)
        rows[name] = [tensor.dtype, scale, zero_point, tensor.group, name in plan.integer, tensor.why]
    return rows


@pytest.mark.parametrize(
    ("profile", "head"),
    [
        (TFLITE, "end2end"),
        (TFLITE, "one2many"),
        (ONNXRUNTIME, "end2end"),
        (OPENVINO, "end2end"),
        (TENSORRT, "end2end"),
    ],
    ids=lambda given: getattr(given, "name", given),
)
def test_golden_plan_of_the_demo_model(profile: RuntimeProfile, head: str, request: pytest.FixtureRequest) -> None:
    """Set QEXPORT_UPDATE_GOLDEN=1 to write the golden files anew; see the docstring of this file."""
    program: Program = request.getfixturevalue("demo_program" if head == "end2end" else "demo_one2many")
    path = GOLDEN / f"demo_{profile.name}_{head}.json"
    actual = golden(program, profile)
    if os.environ.get("QEXPORT_UPDATE_GOLDEN") == "1":
        rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in actual.items())
        path.write_text("{\n" + rows + "\n}\n", encoding="utf-8")
    expected = json.loads(path.read_text(encoding="utf-8"))
    assert list(actual) == list(expected)
    different = [f"{name}: {expected[name]} became {row}" for name, row in actual.items() if expected[name] != row]
    assert not different, "\n".join(different[:10])


def test_a_detector_with_shared_layers_plans_alike_twice() -> None:
    one, other = (captured(seeded(TinyDetector())) for _ in range(2))
    assert planned(one) == planned(other)
