"""Training as a step: which images are held out, how it ends early, and what a run's record and page say."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import DEMO, demo_images
from test_training import Kept

from qexport.calibration.calibrate import calibrate
from qexport.cli.demo import DEMOS
from qexport.data.dataset import image_list
from qexport.data.resolve import resolve_data
from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.passes import HELD_OUT
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.build import read_source
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.steps.train import split, train
from qexport.training.images import Images, augmented
from qexport.training.recipe import Recipe


def numbered(count: int) -> list[Path]:
    return [Path(f"/data/{number:05}.jpg") for number in range(count)]


@pytest.mark.parametrize(
    ("count", "held_out"), [(2, 1), (3, 1), (8, 4), (15, 7), (16, 8), (64, 8), (128, 16), (320, 40), (5000, 40)]
)
def test_one_of_eight_is_held_out_within_limits(count: int, held_out: int) -> None:
    parts = split(numbered(count))
    assert len(parts.held_out) == held_out
    assert sorted((*parts.train, *parts.held_out)) == numbered(count)


def test_they_are_spread_evenly_and_passes_have_not_seen_them() -> None:
    places = [int(path.stem) for path in split(numbered(128)).held_out]
    assert {second - first for first, second in itertools.pairwise(places)} == {8}
    assert all(place % HELD_OUT == 0 for place in places)  # passes change weights on the others


def test_the_order_of_the_images_does_not_matter() -> None:
    shuffled = numbered(50)
    random.Random(1).shuffle(shuffled)
    assert split(shuffled) == split(numbered(50))


def test_one_image_is_too_few() -> None:
    with pytest.raises(InputError, match="training needs two images at least"):
        split(numbered(1))


@pytest.fixture(scope="module")
def candidate(tiny: Program) -> Candidate:
    statistics = calibrate(tiny, demo_images("train", 4), lambda: None, 1).statistics
    return Candidate(tiny, make_plan(tiny, statistics, TFLITE), tiny)


def test_held_out_images_are_not_trained_on_and_the_record_says_how_many(candidate: Candidate) -> None:
    seen: list[Path] = []

    def remembered(images: Sequence[Path], needed: bool) -> Images:
        assert needed
        seen.extend(images)
        return augmented(images, candidate.program.input, 4, 0)

    images = demo_images("train", 12)
    done = train(candidate, images, recipe=Recipe(epochs=1, batch=4), labelled=remembered)
    assert tuple(seen) == split(images).train
    assert (done.record.held_out, done.record.images) == (6, 6)
    assert [each.number for each in done.record.epochs] == [1]
    assert done.candidate.reference is candidate.reference


def test_who_asks_for_it_stops_training_at_the_end_of_a_batch(candidate: Candidate) -> None:
    asked: list[int] = []

    def stopped() -> bool:
        asked.append(1)
        return len(asked) > 4  # three batches are an epoch

    images = demo_images("train", 12)
    recipe = Recipe(epochs=50, batch=2, patience=0)
    done = train(candidate, images, recipe=recipe, stopped=stopped)
    assert done.record.stopped == "interrupted"
    assert [each.number for each in done.record.epochs] == [1]
    assert len(asked) == 5


@pytest.mark.parametrize("task", [task for task in DEMOS if task != "detect"])
def test_demo_models_of_other_tasks_learn_without_labels(task: str) -> None:
    """One step, in which every raw output has a share."""
    images = image_list(resolve_data(str(DEMO / DEMOS[task].data)), "train")[:2]
    program = read_source(DEMO / DEMOS[task].model, CaptureOptions(imgsz=(64, 64))).program
    statistics = calibrate(program, images, lambda: None, 1).statistics
    given = Candidate(program, make_plan(program, statistics, TFLITE), program)
    store = Kept()
    done = train(given, images, recipe=Recipe(epochs=1, batch=1), store=store)
    assert 0 < done.record.start < 1
    assert math.isfinite(done.record.epochs[0].loss)
    assert store.state is not None
    moments = {name: each for name, each in store.state.tensors.items() if name.startswith("exp_avg_sq/weights/")}
    assert len(moments) > 30
    assert all(each.isfinite().all() for each in moments.values())
    still = [name for name, each in moments.items() if not each.any()]
    assert all("one2one_cv3" in name for name in still)  # logits below the floor of their range have no slope


def test_the_same_recipe_gives_the_same_weights_in_whatever_order_images_come(candidate: Candidate) -> None:
    images = demo_images("train", 8)
    one, other = (train(candidate, each, recipe=Recipe(epochs=1, batch=2)) for each in (images, images[::-1]))
    assert one.record.epochs[0].loss == other.record.epochs[0].loss
    assert one.candidate.program.fingerprint == other.candidate.program.fingerprint


def test_a_step_has_no_image_twice(candidate: Candidate) -> None:
    done = train(candidate, demo_images("train", 4), recipe=Recipe(epochs=1, batch=1000))
    assert (done.record.images, done.record.recipe.batch) == (2, 2)
