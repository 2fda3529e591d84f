"""What is learned of a quantised program: against images that were not seen, and within what it may move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import demo_images, synthetic_statistics
from test_optimise import coarse
from torch import Tensor

from qexport.calibration.calibrate import calibrate
from qexport.optimisation import reconstruction
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import HeldOut, distance, hold_out
from qexport.optimisation.distillation import lost_power
from qexport.optimisation.learned import LearnedScale, LearnedWeight, Learner, within_rounding
from qexport.optimisation.passes import broken
from qexport.optimisation.reconstruction import Reconstruction
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, WEIGHTS, RuntimeProfile
from qexport.programs.program import Program
from qexport.progress import Silent

IMAGES = demo_images("train", 16)
UNSEEN = demo_images("val", 8)


def test_learning_helps_on_images_that_were_not_seen(demo_program: Program) -> None:
    """Weights of 5 bits: what layers are given, and what is found."""
    statistics = calibrate(demo_program, IMAGES[:4], lambda: None, 1).statistics
    plan = coarse(make_plan(demo_program, statistics, OPENVINO), 8)
    given = Candidate(demo_program, plan, demo_program)
    learned = Reconstruction()(given, IMAGES, Silent())
    assert Reconstruction().ensures(given, learned) == broken(given, learned) == ""
    held_out = hold_out(demo_program, UNSEEN)
    assert distance(learned, held_out).mean < 0.9 * distance(given, held_out).mean
    assert lost(learned, held_out) < 0.5 * lost(given, held_out)


def lost(candidate: Candidate, held_out: HeldOut) -> float:
    learner = Learner(candidate)
    with torch.no_grad():
        each = [
            lost_power(candidate.plan, learner.watched, learner.real(images), learner.quantised(images))
            for images in held_out.inputs
        ]
    return float(torch.stack(each).mean())


def test_the_order_of_images_and_the_number_of_threads_change_nothing(
    tiny: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = Candidate(tiny, make_plan(tiny, synthetic_statistics(tiny.values), TFLITE), tiny)
    forwards = Reconstruction()(given, IMAGES[:4], Silent())
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        backwards = Reconstruction()(given, IMAGES[3::-1], Silent())
        assert torch.get_num_threads() == 3 - min(threads, 2)
    finally:
        torch.set_num_threads(threads)
    assert forwards.program.fingerprint == backwards.program.fingerprint != given.program.fingerprint
    assert forwards.plan == backwards.plan != given.plan


@pytest.mark.parametrize("profile", [TFLITE, ONNXRUNTIME, OPENVINO, TENSORRT])
def test_what_may_not_move_does_not(tiny: Program, profile: RuntimeProfile) -> None:
    before = Candidate(tiny, make_plan(tiny, synthetic_statistics(tiny.values), profile), tiny)
    after = Reconstruction()(before, IMAGES[:2], Silent())
    assert Reconstruction().ensures(before, after) == broken(before, after) == ""
    moved = {name for name, tensor in after.plan.tensors.items() if tensor != before.plan.tensors[name]}
    assert moved
    for name, tensor in before.plan.tensors.items():
        if tensor.rule == "fixed" or tensor.axis is not None or name in tiny.raw.all:
            assert name not in moved
    scales = np.array([scale for tensor in after.plan.tensors.values() for scale in tensor.scale])
    assert np.array_equal(scales.astype(np.float16), scales) == profile.fp16_scales
    assert np.array_equal(scales.astype(np.float32), scales)
    for path in ("stem.weight", "neck.weight"):
        tensor = before.plan.tensors[path]
        if tensor.is_float:
            continue
        scale = torch.tensor(tensor.scale).view(-1, 1, 1, 1)
        steps = [each.program.graph.parameter(path) / scale for each in (before, after)]
        assert float((steps[1] - steps[1].round()).abs().max()) < 1e-4
        assert float((steps[1] - steps[0]).abs().max()) <= 1 + 1e-4


def test_a_weight_learns_which_neighbour_it_becomes() -> None:
    """Steps of 0.5 to a target of which each element is the farther neighbour."""
    tensor = TensorQuant("int8", (0.5, 0.25), (0, 0), 0)
    real = torch.tensor([[0.6, -0.9], [0.3, -40.0]])
    weight = LearnedWeight(tensor, real)
    assert weight(real).tolist() == [[0.5, -1.0], [0.25, -31.75]]
    target = torch.tensor([[1.0, -0.5], [0.5, -31.75]])
    for _ in range(200):
        (slope,) = torch.autograd.grad((weight(real) - target).square().sum(), [weight.steps])
        with torch.no_grad():
            weight.steps.sub_(0.2 * slope)
        weight.bound()
    assert weight(real).tolist() == target.tolist()
    with torch.no_grad():
        weight.steps.add_(1000)
    weight.bound()
    assert weight(real).tolist() == [[1.0, -0.5], [0.5, -31.75]]


def test_whole_weights_begin_on_the_side_that_they_were_rounded_from() -> None:
    """0.3 above, 0.8 below (so rounded the farther way), 0.9 above; no whole number; further than a step away."""
    whole = torch.tensor([2.0, 2.0, 2.0, 2.4, 5.0])
    begun = within_rounding(whole, torch.tensor([2.3, 1.2, 2.9, 2.0, 9.0]))
    torch.testing.assert_close(begun, torch.tensor([2.24, 1.6, 2.4, 2.4, 5.0]))
    assert torch.equal(begun.round(), whole.round())


def test_a_scale_has_the_gradient_of_learned_step_sizes() -> None:
    """0.6 is 1.2 steps of 0.5: the slope is 1 - 1.2. 100 and -100 are cut at 124 and -131 steps from zero."""
    change = torch.nn.Parameter(torch.zeros(1))
    scale = LearnedScale(TensorQuant("int8", (0.5,), (3,)), change)
    real = torch.tensor([0.6, 100.0, -100.0], requires_grad=True)
    seen = scale(real)
    assert seen.tolist() == [0.5, 62.0, -65.5]
    of_real, of_change = torch.autograd.grad((seen * torch.tensor([2.0, 3.0, 5.0])).sum(), [real, change])
    assert of_real.tolist() == [2.0, 0.0, 0.0]
    assert float(of_change) == pytest.approx(0.5 * (2 * (1 - 1.2) + 3 * 124 + 5 * -131), rel=1e-5)


def test_what_is_lost_is_a_share_of_power() -> None:
    plan = QuantPlan("", "", frozenset(), {"a": TensorQuant("int8", (0.5,), (0,)), "b": TensorQuant("float32")})
    real, seen = (torch.tensor([3.0, 4.0]), torch.zeros(4)), (torch.tensor([3.0, 5.0]), torch.zeros(4))
    assert float(lost_power(plan, ("a", "b"), real, seen)) == pytest.approx(1 / (25 + 0.5) / 2)


def test_promises(tiny: Program) -> None:
    given = Candidate(tiny, make_plan(tiny, synthetic_statistics(tiny.values), TFLITE), tiny)
    ensures = Reconstruction().ensures
    tensors = given.plan.tensors
    wider = replace(tensors["neck_mul"], scale=(tensors["neck_mul"].scale[0] * 2,))
    changed = replace(given, plan=replace(given.plan, tensors={**tensors, "neck_mul": wider}))
    assert ensures(given, changed) == "the scale of neck_mul has moved further than it may"
    weight: Tensor = tiny.graph.parameter("neck.weight")
    far = given.with_parameters({"neck.weight": weight + 3 * max(tensors["neck.weight"].scale)})
    assert ensures(given, far) == "neck.weight has moved further than a step"
    floats = Candidate(tiny, QuantPlan("", tiny.fingerprint, frozenset(), {}), tiny)
    assert Reconstruction().requires(floats) == "no layer has integer weights"


def test_what_does_not_fit_into_memory_is_not_run(tiny: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Candidate(tiny, make_plan(tiny, None, WEIGHTS), tiny)
    assert Reconstruction().requires(given) == ""
    monkeypatch.setattr(reconstruction, "MAX_NUMBERS", 1000)
    assert Reconstruction().requires(given) == "its values are 0 million numbers, which is too many"
