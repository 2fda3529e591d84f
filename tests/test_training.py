"""Training: it begins where the simulation is, learns what helps on images not trained on, and goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import (
    TinyDetector,
    captured,
    demo_image,
    demo_images,
    seeded,
    synthetic_statistics,
)
from test_sensitivity import seeded_chain
from torch import Tensor

from qexport.calibration.calibrate import calibrate
from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate, batches
from qexport.optimisation.distance import HeldOut, distance, hold_out, raw_outputs
from qexport.planning.arithmetic import IntegerType
from qexport.planning.plan import TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE, TFLITE_INT16, RuntimeProfile
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert
from qexport.simulation.rewrite import simulated
from qexport.training.images import Batch
from qexport.training.judge import Judge
from qexport.training.loop import Trained, train
from qexport.training.losses import loss
from qexport.training.recipe import Recipe
from qexport.training.record import Judged, from_json, to_json
from qexport.training.state import TrainingState
from qexport.training.student import Student

PROFILES = (TFLITE, ONNXRUNTIME, OPENVINO, TENSORRT, TFLITE_INT16)


class FourBits(TensorQuant):
    """A weight of 15 integers."""

    @property
    def kind(self) -> IntegerType:
        """See `TensorQuant`."""
        return IntegerType("int4", -7, 7)


@dataclass(frozen=True)
class Pictures:
    """Batches of the same images in an order of each epoch's own."""

    pixels: Tensor
    batch: int = 4

    def __len__(self) -> int:
        return len(self.pixels) // self.batch

    def epoch(self, number: int) -> Iterator[Batch]:
        order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(number))
        for chosen in order.split(self.batch):
            turned = self.pixels[chosen].flip(3) if number % 2 else self.pixels[chosen]
            yield Batch(turned, {"batch_idx": torch.arange(self.batch), "number": chosen})


@dataclass(frozen=True)
class Given:
    """The same batches in every epoch."""

    batches: tuple[Batch, ...]

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[Batch]:
        yield from self.batches


@dataclass(frozen=True)
class Interrupted:
    """Others' batches, with an interrupt behind the first of an epoch."""

    images: Pictures
    epoch_number: int

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int) -> Iterator[Batch]:
        for count, batch in enumerate(self.images.epoch(number)):
            if number == self.epoch_number and count:
                raise KeyboardInterrupt
            yield batch


SQUARES = Pictures(torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
FOUR_BITS = Recipe(epochs=4, batch=4, weights="free", averaging=0.9)


@dataclass
class Kept:
    """Keeps states in memory."""

    state: TrainingState | None = None
    saved: int = 0

    def save(self, state: TrainingState) -> None:
        self.state, self.saved = state, self.saved + 1

    def load(self) -> TrainingState | None:
        return self.state


def told(trained: Trained) -> dict[str, Any]:
    """The record without its times."""
    plain = to_json(trained.record)
    epochs = [{**each, "seconds": 0} for each in plain["epochs"]]
    return {**plain, "epochs": epochs, "seconds": 0}


def planned(program: Program, profile: RuntimeProfile) -> Candidate:
    return Candidate(program, make_plan(program, synthetic_statistics(program.values), profile), program)


@pytest.fixture(scope="module")
def four_bits() -> Candidate:
    """Seven convolutions with weights of 4 bits."""
    program = captured(seeded_chain(), batch=4)
    plan = make_plan(program, calibrate(program, demo_images("train", 8), lambda: None, 2).statistics, OPENVINO)
    tensors: dict[str, TensorQuant] = {}
    for name, tensor in plan.tensors.items():
        tensors[name] = tensor
        if tensor.axis is not None:
            scales = tuple(float(np.float32(scale * 127 / 7)) for scale in tensor.scale)
            tensors[name] = FourBits("int8", scales, tensor.zero_point, tensor.axis)
    return Candidate(program, replace(plan, tensors=tensors), program)


def hold_out_of(program: Program) -> HeldOut:
    """Two pictures of noise."""
    inputs = tuple(torch.rand(2, program.input.batch, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    graph = raw_outputs(program)
    return HeldOut(program, inputs, tuple(tuple(graph(each)) for each in inputs))


def pictures(program: Program, count: int) -> Pictures:
    return Pictures(torch.cat(list(batches(program, demo_images("train", count)))))


@pytest.mark.parametrize(
    ("model", "profile", "weights"),
    [
        *(("tiny", profile, weights) for profile in PROFILES for weights in ("within-step", "free")),
        ("demo_program", TFLITE, "free"),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_it_begins_bit_by_bit_where_the_simulation_is(
    model: str, profile: RuntimeProfile, weights: str, request: pytest.FixtureRequest
) -> None:
    program: Program = request.getfixturevalue(model)
    given = planned(program, profile)
    student = Student(given, Recipe(weights=weights))
    assert all(student.groups.values())
    image = demo_image(program.input.imgsz)
    expected = raw_outputs(program, simulated(program, given.plan))(image)
    seen = dict(zip(student.learner.watched, student.seen(image), strict=True))
    for name, each in zip(program.raw.all, expected, strict=True):
        assert seen[name].requires_grad
        assert torch.equal(seen[name], each)
    unchanged = student.result()
    assert unchanged.plan.tensors == given.plan.tensors
    for one, other in zip(
        raw_outputs(program, simulated(unchanged.program, unchanged.plan))(image), expected, strict=True
    ):
        assert torch.equal(one, other)


def test_rounded_weights_begin_within_their_rounding_on_the_side_that_they_came_from(tiny: Program) -> None:
    rounded = Student(planned(tiny, TFLITE), Recipe()).result()
    weights = Student(rounded, Recipe()).learner.weights
    assert weights
    for name, weight in weights.items():
        apart = weight.steps.detach() - weight.whole()
        before = tiny.graph.parameter(name) / weight.scale - weight.whole()
        assert 0 < float(apart.abs().max()) <= 0.4 + 1e-4
        assert torch.equal(apart.sign()[before.abs() > 1e-3], before.sign()[before.abs() > 1e-3])


def test_half_of_what_four_bits_lose_is_won_back(four_bits: Candidate) -> None:
    """Without labels: half of the way to weights of 8 bits, on images that neither trained nor chose the epoch."""
    program, others = four_bits.program, demo_images("val", 48)
    held_out, unseen = (hold_out(program, each) for each in (others[:16], others[16:]))
    statistics = calibrate(program, demo_images("train", 8), lambda: None, 2).statistics
    eight = distance(Candidate(program, make_plan(program, statistics, OPENVINO), program), unseen).mean
    trained = train(four_bits, pictures(program, 64), Judge(held_out), FOUR_BITS, None, Silent())
    assert trained.record.start == pytest.approx(distance(four_bits, held_out).mean, rel=1e-2)
    assert trained.record.end == pytest.approx(distance(trained.candidate, held_out).mean, rel=1e-4)
    before, after = (distance(each, unseen).mean for each in (four_bits, trained.candidate))
    assert before > 3 * eight
    assert before - after >= 0.5 * (before - eight)


def test_labels_take_the_place_of_the_teacher(tiny: Program) -> None:
    """A loss that wants one raw output to be its label everywhere; nothing is computed for a teacher."""
    given, calls = planned(tiny, OPENVINO), list[Tensor]()

    def wanted(program: Program, raw: Sequence[Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        calls.append(targets["batch_idx"])
        place = program.raw.all.index(program.raw.scores[0])
        return (raw[place].mean(dim=(1, 2, 3)) - targets["wanted"]).square().mean()

    batch = Batch(torch.rand(1, 3, 8, 8), {"batch_idx": torch.zeros(1), "wanted": torch.full((1,), 1.0)})
    student = Student(given, Recipe(weights="free"))
    student.learner.real = None  # type: ignore[assignment]
    optimiser = torch.optim.Adam(student.parameters.values(), lr=0.02)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        lost = loss(student, batch, 1.0, wanted)
        lost.backward()
        optimiser.step()
        losses.append(float(lost.detach()))
    assert losses[-1] < 0.1 * losses[0]
    assert (Judged(0.5).cost, Judged(0.5, 1.0).cost) == (0.5, 1.0)
    judge = Judge(hold_out_of(tiny), (batch, batch), wanted)
    ones = Given((batch,) * 8)
    recipe = Recipe(weights="free", labels=1.0, epochs=3, rate_weights=0.05, rate_biases=0.05)
    trained = train(given, ones, judge, recipe, None, Silent())
    assert trained.record.best > 0
    assert trained.record.start_labelled == pytest.approx(losses[0], rel=1e-4)
    assert trained.record.end_labelled == pytest.approx(judge.judged(trained.candidate).labelled, rel=1e-4)
    assert (trained.record.end_labelled or 9) < 0.7 * losses[0]
    assert from_json(to_json(trained.record)) == trained.record
    with pytest.raises(InputError, match="no loss for labels"):
        train(given, SQUARES, Judge(hold_out_of(tiny)), Recipe(labels=0.5), None, Silent())


def test_labels_go_with_their_images(tiny: Program) -> None:
    """The program takes one image at a time: of four, each piece has its own rows, numbered from 0."""
    seen: dict[float, tuple[list[int], list[list[int]]]] = {}

    def noted(_: Program, raw: Sequence[Tensor], targets: Mapping[str, Tensor]) -> Tensor:
        seen[float(targets["shape"][0, 0])] = targets["batch_idx"].tolist(), targets["cls"].tolist()
        return raw[0].square().mean()

    targets = {
        "batch_idx": torch.tensor([0.0, 0.0, 2.0, 3.0]),
        "cls": torch.tensor([[10], [11], [12], [13]]),
        "shape": torch.tensor([[0.0, 0], [1, 0], [2, 0], [3, 0]]),
    }
    images = Given((Batch(torch.rand(4, 3, 8, 8), targets),))
    train(
        planned(tiny, OPENVINO),
        images,
        Judge(hold_out_of(tiny), (), noted),
        Recipe(epochs=1, labels=0.5),
        None,
        Silent(),
    )
    assert seen == {0.0: ([0, 0], [[10], [11]]), 1.0: ([], []), 2.0: ([0], [[12]]), 3.0: ([0], [[13]])}
    pair = captured(seeded(TinyDetector()), batch=3)
    with pytest.raises(InputError, match="a batch has 4 images, and the program takes 3 at once"):
        train(planned(pair, OPENVINO), images, Judge(hold_out_of(pair)), Recipe(epochs=1), None, Silent())


@pytest.mark.parametrize("weights", ["within-step", "free"])
def test_it_goes_on_where_it_was_interrupted(tiny: Program, weights: str) -> None:
    """In the middle of the third epoch: what was whole is usable, and the rest ends as if nothing had been."""
    recipe = Recipe(epochs=4, weights=weights, damping=0.1, patience=10)
    given, held_out = planned(tiny, TENSORRT), hold_out_of(tiny)
    kept, store = Kept(), Kept()
    whole = train(given, SQUARES, Judge(held_out), recipe, kept, Silent())
    assert [each.number for each in whole.record.epochs] == [1, 2, 3, 4]
    assert whole.record.stopped == "all epochs"
    broken = train(given, Interrupted(SQUARES, 3), Judge(held_out), recipe, store, Silent())
    assert broken.record.stopped == "interrupted"
    assert store.saved == 2
    assert told(broken)["epochs"] == told(whole)["epochs"][:2]
    resumed = train(given, SQUARES, Judge(held_out), recipe, store, Silent())
    assert store.saved == 4
    assert told(resumed) == told(whole)
    assert resumed.candidate.plan == whole.candidate.plan
    assert kept.state is not None
    assert store.state is not None
    assert kept.state.tensors.keys() == store.state.tensors.keys()
    assert all(torch.equal(each, store.state.tensors[name]) for name, each in kept.state.tensors.items())
    again = train(given, SQUARES, Judge(held_out), recipe, Kept(store.state), Silent())
    assert told(again) == told(whole)
    assert again.candidate.plan == whole.candidate.plan
    assert from_json(to_json(whole.record)) == whole.record


def _with_tensor(state: TrainingState, change: Callable[[Tensor], Tensor], place: str = "") -> TrainingState:
    name = next(name for name in state.tensors if name.startswith(place))
    return replace(state, tensors={**state.tensors, name: change(state.tensors[name])})


def _without(state: TrainingState, place: str) -> TrainingState:
    gone = next(name for name in state.tensors if name.startswith(place))
    return replace(state, tensors={name: each for name, each in state.tensors.items() if name != gone})


def _with_epoch(state: TrainingState, **changed: Any) -> TrainingState:
    assert state.record
    first, *others = state.record.epochs
    return replace(state, record=replace(state.record, epochs=(replace(first, **changed), *others)))


def _worse_start(state: TrainingState) -> TrainingState:
    """Every epoch is better than it, and none is there as the best."""
    assert state.record
    return replace(state, record=replace(state.record, start=1e9))


UNFIT: dict[str, tuple[Callable[[TrainingState], TrainingState], str]] = {
    "a weight is missing": (lambda state: _without(state, "weights/"), "is not in both"),
    "an average is missing": (lambda state: _without(state, "average/"), "is not in both"),
    "a moment is missing": (lambda state: _without(state, "exp_avg_sq/"), "is not in both"),
    "one of the best is missing": (_worse_start, "best/.* is not in both"),
    "one too many": (lambda state: replace(state, tensors={**state.tensors, "x": torch.zeros(1)}), "x is not in both"),
    "another shape": (lambda state: _with_tensor(state, lambda each: each[None]), "other numbers"),
    "whole numbers": (lambda state: _with_tensor(state, lambda each: each.to(torch.int8)), "other numbers"),
    "not numbers": (lambda state: _with_tensor(state, lambda each: each * math.nan, "exp_avg/"), "other numbers"),
    "negative squares": (lambda state: _with_tensor(state, lambda each: each - 1, "exp_avg_sq/"), "other numbers"),
    "10^400 steps": (lambda state: replace(state, step=10**400), "other epochs or steps"),
    "-1 steps": (lambda state: replace(state, step=-1), "other epochs or steps"),
    "an epoch that is not told of": (lambda state: replace(state, epoch=state.epoch + 1), "other epochs or steps"),
    "epoch of another number": (lambda state: _with_epoch(state, number=10**9), "not in order"),
    "no distance": (lambda state: _with_epoch(state, distance=math.inf), "no numbers"),
    "labels in one epoch": (lambda state: _with_epoch(state, labelled=0.1), "no numbers"),
}


@pytest.fixture(scope="module")
def left() -> tuple[Candidate, HeldOut, Recipe, TrainingState]:
    """What a training of two epochs leaves."""
    given = planned(captured(seeded(TinyDetector())), TENSORRT)
    recipe, store, held_out = Recipe(epochs=2, weights="free", patience=0), Kept(), hold_out_of(given.program)
    train(given, SQUARES, Judge(held_out), recipe, store, Silent())
    assert store.state
    return given, held_out, recipe, store.state


@pytest.mark.parametrize("sample", UNFIT)
def test_a_state_that_the_training_cannot_have_left(
    sample: str, left: tuple[Candidate, HeldOut, Recipe, TrainingState]
) -> None:
    change, words = UNFIT[sample]
    given, held_out, recipe, state = left
    with pytest.raises(InputError, match=words) as caught:
        train(given, SQUARES, Judge(held_out), recipe, Kept(change(state)), Silent())
    assert "\n" not in str(caught.value)
    assert "--resume" in caught.value.remedy


def test_what_is_no_better_is_not_kept(tiny: Program) -> None:
    """Judged by what it gives itself nothing is better than what came in; patience is of two epochs."""
    given, pixels = planned(tiny, OPENVINO), torch.rand(1, 3, 8, 8)
    own = raw_outputs(tiny, insert(tiny, given.plan, Fused))
    with torch.no_grad():
        held_out = HeldOut(tiny, (pixels,), (tuple(own(pixels)),))
    trained = train(given, SQUARES, Judge(held_out), Recipe(epochs=9, patience=2), None, Silent())
    assert trained.candidate is given
    assert (trained.record.best, trained.record.end) == (0, trained.record.start)
    assert len(trained.record.epochs) == 2
    assert trained.record.stopped == "no better for 2 epochs"


def test_an_epoch_whose_loss_is_no_number_ends_it_and_does_not_count(tiny: Program) -> None:
    store = Kept()
    recipe = Recipe(epochs=3, damping=math.inf)
    trained = train(planned(tiny, OPENVINO), SQUARES, Judge(hold_out_of(tiny)), recipe, store, Silent())
    assert trained.record.epochs == ()
    assert trained.record.stopped == "in epoch 1 the loss of step 2 of 2 was no number: smaller rates may help"
    assert store.load() is None


def test_scales_stay_near_the_end_and_rates_follow_a_cosine(tiny: Program) -> None:
    recipe = Recipe(epochs=4, rate_weights=0.02, warmup=0.25, frozen_scales=0.5)
    store = Kept()
    trained = train(planned(tiny, OPENVINO), SQUARES, Judge(hold_out_of(tiny)), recipe, store, Silent())
    rates = [each.rates for each in trained.record.epochs]
    assert [each["scales"] > 0 for each in rates] == [True, True, False, False]
    # The last of 4 * 2 steps is 5/6 of the way from the end of the warm-up to the end.
    assert rates[-1]["weights"] == pytest.approx(0.02 * (1 + np.cos(np.pi * 5 / 6)) / 2)
    assert rates[0]["weights"] == pytest.approx(0.02)


@pytest.mark.parametrize("weights", ["within-step", "free"])
def test_dampened_weights_come_to_rest(tiny: Program, weights: str) -> None:
    """Nothing but the pull towards whole steps is left of the gradient."""
    student = Student(planned(tiny, OPENVINO), Recipe(weights=weights))
    weight = student.learner.weights["neck.weight"]
    start = weight.steps.detach().clone()
    for _ in range(60):
        weight.steps.grad = torch.zeros_like(weight.steps)
        student.dampen(weight.steps.numel() * 0.1)
        with torch.no_grad():
            weight.steps.sub_(weight.steps.grad)
    inside = start.abs() < 127
    end = weight.steps.detach()
    assert float((end - end.round()).abs()[inside].max()) < 1e-3
    assert torch.equal(end.round()[inside], start.round()[inside])


@pytest.mark.parametrize("profile", [TFLITE, TENSORRT], ids=lambda profile: profile.name)
def test_nothing_of_a_step_is_on_another_device(tiny: Program, profile: RuntimeProfile) -> None:
    """PyTorch's device without data: it refuses tensors from elsewhere, and numbers cannot be fetched from it."""
    before = tiny.fingerprint, {each.device for each in tiny.graph.module.parameters()}
    student = Student(planned(tiny, profile), Recipe(weights="free", device="meta"))
    lost = loss(student, Batch(torch.empty(1, 3, 8, 8)))
    slopes = torch.autograd.grad(lost, list(student.parameters.values()), materialize_grads=True)
    assert {each.device.type for each in slopes} == {"meta"}
    assert (tiny.graph.fingerprint(), {each.device for each in tiny.graph.module.parameters()}) == before
