"""Rounding of weights: against every possible rounding of small layers, and what a pass makes of whole programs."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from conftest import demo_images
from hard_numbers import layers
from test_optimise import coarse
from torch import Tensor, nn

from qexport.calibration.calibrate import calibrate
from qexport.optimisation.adaptive_rounding import AdaptiveRounding, neighbours, rounded_layer
from qexport.optimisation.bias_correction import BiasCorrection
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import distance, hold_out
from qexport.optimisation.layer_inputs import Geometry, Moments, geometry_of
from qexport.optimisation.passes import broken
from qexport.optimisation.rounding import adaptively_rounded, output_error
from qexport.planning.arithmetic import pair_safe_scales, weight_scales
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO, TENSORRT, WEIGHTS, RuntimeProfile
from qexport.planning.weights import quantised_weight
from qexport.programs.program import Program
from qexport.progress import Silent

IMAGES = demo_images("train", 12)
UNSEEN = demo_images("val", 4)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def correlated(groups: int, columns: int, seed: int) -> Tensor:
    """Sums of x x^T of inputs that have much in common, as those of neighbouring places have."""
    inputs = random(groups, 200, columns, seed=seed) + 2 * random(groups, 200, 1, seed=seed + 1)
    return inputs.transpose(1, 2) @ inputs


def best_of_all(steps: Tensor, moments: Tensor) -> Tensor:
    """The least error of each row, by trying every rounding."""
    choices = torch.tensor(list(product((0.0, 1.0), repeat=steps.shape[-1])))
    found = torch.empty(steps.shape[:2])
    for group, row in product(range(steps.shape[0]), range(steps.shape[1])):
        errors = steps[group, row].floor() + choices - steps[group, row]
        found[group, row] = ((errors @ moments[group]) * errors).sum(dim=1).min()
    return found


@pytest.mark.parametrize("columns", [4, 9, 12])
def test_rounding_is_close_to_the_best_of_all(columns: int) -> None:
    steps, moments = 3 * random(3, 20, columns, seed=5), correlated(3, columns, seed=7)
    rounded = adaptively_rounded(steps, moments, steps.floor(), steps.ceil())
    found, best = output_error(rounded - steps, moments), best_of_all(steps, moments)
    nearest = output_error(steps.round() - steps, moments)
    assert set((rounded - steps.floor()).unique().tolist()) == {0.0, 1.0}
    assert (found >= best * (1 - 1e-4)).all()
    assert (found <= nearest).all()


LAYERS: list[Any] = [
    nn.Conv2d(6, 4, 3, stride=2, padding=1),
    nn.Conv2d(6, 4, (1, 3), padding=(0, 2), dilation=(1, 2)),
    nn.Conv2d(6, 12, 3, padding=1, groups=6),
    nn.Conv2d(6, 4, 1, groups=2),
    nn.ConvTranspose2d(6, 5, 2, 2),
    nn.Linear(6, 5),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_what_a_change_of_weights_moves_is_what_the_layer_says(layer: Any) -> None:
    """All places of the output are looked at: their sum is torch's own."""
    given = random(2, 6, 7, 8) if not isinstance(layer, nn.Linear) else random(2, 9, 6)
    graph = torch.fx.GraphModule(nn.Module(), torch.fx.Graph())
    settings = () if isinstance(layer, nn.Linear) else (layer.stride, layer.padding)
    name = "linear"
    if isinstance(layer, nn.ConvTranspose2d):
        name, settings = "conv_transpose2d", (*settings, layer.output_padding, layer.groups, layer.dilation)
    elif isinstance(layer, nn.Conv2d):
        name, settings = "conv2d", (*settings, layer.dilation, layer.groups)
    packet = getattr(torch.ops.aten, name)
    operator = packet.input if name == "conv_transpose2d" else packet.default
    node = graph.graph.call_function(operator, (None, None, None, *settings))
    geometry = geometry_of(node, layer.weight)
    assert geometry is not None
    moments, change = Moments(geometry), random(*layer.weight.shape)
    moments(given)
    assert torch.equal(geometry.weight(geometry.rows(change)), change)
    found = output_error(geometry.rows(change), moments.around_mean + moments.about_zero).sum()
    expected = operator(given, change, None, *settings).square().sum()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_inputs_that_are_never_seen_leave_weights_at_their_nearest() -> None:
    steps, moments = 3 * random(2, 5, 8), correlated(2, 8, 3)
    moments[1] = 0
    rounded = adaptively_rounded(steps, moments, steps.floor(), steps.ceil())
    assert torch.equal(rounded[1], steps[1].round())
    assert not torch.equal(rounded[0], steps[0].round())


def test_windows_that_overlap_are_no_product_here() -> None:
    node = torch.fx.Graph().call_function(torch.ops.aten.conv_transpose2d.input, (None, None, None, [2, 2], [1, 1]))
    assert geometry_of(node, random(6, 5, 4, 4)) is None


@pytest.fixture(scope="module")
def candidate(demo_program: Program) -> Candidate:
    """The demo model at 96 pixels with weights of 5 bits; raw outputs stay float."""
    statistics = calibrate(demo_program, IMAGES[:4], lambda: None, 1).statistics
    plan = make_plan(demo_program, statistics, replace(OPENVINO, float_boxes=1.0))
    return Candidate(demo_program, coarse(plan, 8), demo_program)


def test_rounding_helps_on_images_that_were_not_seen_more_than_biases(candidate: Candidate) -> None:
    held_out = hold_out(candidate.reference, UNSEEN)
    rounded, biases = (
        AdaptiveRounding()(candidate, IMAGES[:8], Silent()),
        BiasCorrection()(candidate, IMAGES[:8], Silent()),
    )
    both = BiasCorrection()(rounded, IMAGES[:8], Silent())
    before, after, other, last = (distance(each, held_out).mean for each in (candidate, rounded, biases, both))
    assert last == after  # it has corrected the biases itself
    assert after < 0.6 * before
    assert after < 0.8 * other


def test_the_order_of_images_and_the_number_of_threads_change_nothing(candidate: Candidate) -> None:
    forwards = AdaptiveRounding()(candidate, IMAGES[:2], Silent())
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        backwards = AdaptiveRounding()(candidate, IMAGES[1::-1], Silent())
    finally:
        torch.set_num_threads(threads)
    assert forwards.program.fingerprint == backwards.program.fingerprint != candidate.program.fingerprint


@pytest.mark.parametrize("profile", [WEIGHTS, TENSORRT])
def test_rounding_to_nearest_gives_what_was_chosen(profile: RuntimeProfile) -> None:
    """Scales of float32 and of FP16; rounding once more changes no bit."""
    weight = random(8, 6, 3, 3)
    scales = weight_scales(weight.numpy(), 0)
    quant = TensorQuant("int8", tuple(profile.stored(float(each)) for each in scales), (0,) * 8, 0)
    moments = Moments(Geometry("conv", (8, 6, 3, 3), padding=(1, 1)))
    moments(random(2, 6, 12, 12) + 1)
    rounded = rounded_layer(weight, None, quant, moments)[0]
    stored = np.array(quant.scale, np.float32)
    integers = quantised_weight(rounded.numpy(), stored, quant)
    low, high = neighbours(weight, quant)
    chosen = torch.from_numpy(integers).float()
    assert ((chosen == low) | (chosen == high)).all()
    assert not np.array_equal(integers, quantised_weight(weight.numpy(), stored, quant))
    assert np.array_equal(rounded.numpy(), integers * stored[:, None, None, None])
    again = rounded_layer(rounded, None, quant, moments)[0]
    assert torch.equal(again, rounded)


def test_a_bias_takes_back_what_the_mean_moves_by() -> None:
    """The least squares of all places: with a bias of its own no channel has a mean left, and less is lost."""
    weight, bias, given = random(8, 6, 1, 1), random(8), random(4, 6, 8, 8) + 3
    quant = TensorQuant("int8", (0.5,) * 8, (0,) * 8, 0)
    moments = Moments(Geometry("conv", (8, 6, 1, 1)))
    moments(given)
    exact = torch.conv2d(given, weight, bias)
    alone, _ = rounded_layer(weight, None, quant, moments)
    both, moved = rounded_layer(weight, bias, quant, moments)
    assert moved is not None
    without, found = exact - torch.conv2d(given, alone, bias), exact - torch.conv2d(given, both, moved)
    assert float(found.mean(dim=(0, 2, 3)).abs().max()) < 1e-4 < 1e-2 < float(without.mean(dim=(0, 2, 3)).abs().max())
    assert float(found.square().sum()) < 0.9 * float(without.square().sum())


def test_what_images_do_not_agree_on_is_not_believed() -> None:
    """Of white noise all that is beside the diagonal is chance, of what two inputs share nothing is."""
    geometry = Geometry("linear", (1, 16))
    noise, shared = Moments(geometry), Moments(geometry)
    for run in range(8):
        noise(random(40, 16, seed=run))
        shared(random(4000, 1, seed=run).expand(-1, 16) + 0.1 * random(4000, 16, seed=run + 100))
    assert float(noise.doubt) > 0.8
    assert float(shared.doubt) < 0.01
    beside = ~torch.eye(16, dtype=torch.bool)
    torch.testing.assert_close(shared.believed.diagonal(dim1=1, dim2=2), shared.around_mean.diagonal(dim1=1, dim2=2))
    less = noise.believed[0][beside] / noise.around_mean[0][beside]
    torch.testing.assert_close(less, torch.full_like(less, 1 - float(noise.doubt)), rtol=1e-3, atol=0)
    one = Moments(geometry)
    one(random(40, 16))
    assert float(one.doubt) == 1


def test_pairs_of_products_still_fit_into_16_bits() -> None:
    weight = random(64, 32, 3, 3).abs() * torch.tensor([1.0, -1.0]).repeat_interleave(32)[:, None, None, None]
    scales = pair_safe_scales(weight.numpy(), weight_scales(weight.numpy(), 0))
    quant = TensorQuant("int8", tuple(map(float, scales)), (0,) * 64, 0, rule="derived")
    moments = Moments(Geometry("conv", (64, 32, 3, 3)))
    moments(random(4, 32, 9, 9) + 1)
    integers = (rounded_layer(weight, None, quant, moments)[0] / torch.tensor(quant.scale).view(-1, 1, 1, 1)).round()
    pairs = integers[:, 0::2] + integers[:, 1::2]
    assert int(pairs.abs().max()) == 128


def test_promises() -> None:
    program = layers()
    plan = coarse(make_plan(program, None, WEIGHTS), 16)
    given = Candidate(program, plan, program)
    rounding = AdaptiveRounding()
    rounded = rounding(given, IMAGES[:2], Silent())
    assert rounding.ensures(given, rounded) == broken(given, rounded) == ""
    changed = [
        name for name in ("first", "depthwise", "point", "up", "box", "cls") if differ(given, rounded, f"{name}.weight")
    ]
    assert len(changed) == 6
    up = given.program.graph.parameter("up.weight")
    far = given.with_parameters({"up.weight": up + 2 * max(plan.tensors["up.weight"].scale)})
    assert rounding.ensures(given, far) == "up.weight is not rounded to one of its neighbours"
    moved = given.with_parameters({"up.bias": given.program.graph.parameter("up.bias") + 1})
    assert rounding.ensures(given, moved) == "up.bias has changed, which is not for this pass"
    floats = Candidate(program, QuantPlan("by hand", program.fingerprint, frozenset(), {}), program)
    assert rounding.requires(floats) == "no layer with integer weights can be written as a product of matrices"
    assert rounding.requires(given) == ""


def differ(one: Candidate, other: Candidate, path: str) -> bool:
    return not torch.equal(one.program.graph.parameter(path), other.program.graph.parameter(path))
