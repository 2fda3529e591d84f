"""Ranges that were learned: planned with in place of an estimator's choice, for their own runtime and for others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import synthetic_statistics

from qexport.planning.learned_ranges import LearnedRanges, UnlearnedError, learned_ranges
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, TFLITE_INT16, RuntimeProfile
from qexport.planning.weights import quantised_weight, weight_array
from qexport.programs.program import Program

WHOLE = (TFLITE, replace(ONNXRUNTIME, float_stem=0.0), OPENVINO, TENSORRT, TFLITE_INT16)


def odd(plan: QuantPlan) -> QuantPlan:
    """The plan with other weight scales than any estimator's."""
    wider = {
        name: replace(each, scale=tuple(float(np.float16(scale * 1.3)) for scale in each.scale))
        for name, each in plan.tensors.items()
        if each.axis is not None
    }
    return replace(plan, tensors={**plan.tensors, **wider})


def numbers(plan: QuantPlan) -> dict[str, tuple[object, ...]]:
    """What files depend on."""
    return {name: (each.dtype, each.scale, each.zero_point, each.axis) for name, each in plan.tensors.items()}


@pytest.mark.parametrize("profile", WHOLE, ids=lambda profile: profile.name)
def test_a_plans_own_ranges_give_its_scales_again_to_the_bit(tiny: Program, profile: RuntimeProfile) -> None:
    plan = odd(make_plan(tiny, synthetic_statistics(tiny.values), profile, "percentile"))
    again = make_plan(tiny, None, profile, learned=learned_ranges(plan, "learned here"))
    assert again.integer == plan.integer
    if profile.integer_bias is None:
        assert numbers(again) == numbers(plan)
    own = [each for each in again.tensors.values() if not each.is_float and each.rule in ("own", "shared")]
    assert own
    assert all("learned here" in each.why for each in own)


@pytest.mark.parametrize("profile", [OPENVINO, TENSORRT, replace(ONNXRUNTIME, float_stem=0.0)], ids=lambda p: p.name)
def test_weights_have_the_same_integers_for_another_runtime(tiny: Program, profile: RuntimeProfile) -> None:
    plan = odd(make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, "percentile"))
    other = make_plan(tiny, None, profile, learned=learned_ranges(plan, "learned for tflite"))
    both = [name for name, each in plan.tensors.items() if each.axis is not None and other.is_quantised(name)]
    assert len(both) >= 5
    for name in both:
        own, others = (np.array(made.tensors[name].scale, np.float32) for made in (plan, other))
        column = own.reshape(-1, 1, 1, 1)
        trained = np.round(weight_array(tiny, name) / column) * column  # whole multiples
        first = quantised_weight(trained, own, plan.tensors[name])
        assert np.array_equal(first, quantised_weight(trained, others, other.tensors[name]))


def test_a_symmetric_range_by_hand_and_what_an_asymmetric_runtime_makes_of_it(tiny: Program) -> None:
    given = LearnedRanges(dict.fromkeys(tiny.values, (-6.35, 6.35)), source="learned elsewhere")
    # 127 steps of 0.05; FP16 holds 0.05 as 0.0499878.
    assert make_plan(tiny, None, TENSORRT, learned=given).tensors["neck_mul"].scale == (float(np.float16(0.05)),)
    # SiLU gives no less than -0.2785, a convolution may give anything.
    spanned = make_plan(tiny, None, TFLITE, learned=given).tensors
    assert spanned["neck_mul"].scale == pytest.approx(((6.35 + 0.2785) / 255,))
    assert spanned["neck_conv"].scale == pytest.approx((12.7 / 255,))
    assert spanned["neck_mul"].why == "learned elsewhere: [-0.2785, 6.35]"
    # What was seen narrows it further, and never widens it.
    narrow = make_plan(tiny, synthetic_statistics(tiny.values), TFLITE, learned=given).tensors["neck_mul"].scale[0]
    seen = synthetic_statistics(["neck_mul"])["neck_mul"]
    assert narrow == pytest.approx((min(6.35, seen.maximum) + 0.2785) / 255)


def test_what_was_not_learned_is_planned_from_statistics_or_named(tiny: Program) -> None:
    statistics = synthetic_statistics(tiny.values)
    learned = learned_ranges(make_plan(tiny, statistics, OPENVINO, "minmax"), "learned for openvino")
    assert "neck_conv" not in learned.ranges  # fused
    with pytest.raises(UnlearnedError, match="no range of stem_conv was learned") as error:
        make_plan(tiny, None, TFLITE, learned=learned)
    assert "--data" in error.value.remedy
    made = make_plan(tiny, statistics, TFLITE, "minmax", learned=learned)
    assert made.tensors["neck_conv"] == make_plan(tiny, statistics, TFLITE, "minmax").tensors["neck_conv"]
    assert made.tensors["neck_mul"].why.startswith("learned for openvino: ")


def test_of_a_group_that_is_partly_learned_the_rest_is_estimated(tiny: Program) -> None:
    statistics = synthetic_statistics(tiny.values)
    made = make_plan(tiny, statistics, TFLITE, "minmax", learned=LearnedRanges({"program_add": (-1.0, 200.0)}))
    joined = made.tensors["program_cat"]
    low = statistics["stem_mul"].minimum
    assert joined.scale == pytest.approx(((200 - low) / 255,))
    assert joined.why.startswith(f"learned in training, and of stem_mul minmax: [{low:g},")
