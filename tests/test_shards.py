"""Images that are scored in shards, here and elsewhere: the same figures to the last digit, whatever happens there."""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import DEMO, demo_checkpoint
from drawn import CLASSES, DrawnRunner, DyingRunner

from qexport.data import evaluation_set
from qexport.data.dataset import image_list, load_dataset
from qexport.data.evaluation_set import EvaluationSet, make_shards
from qexport.detections.layout import HeadLayout
from qexport.errors import VerificationError
from qexport.execution.executor import Inline, Task
from qexport.execution.workers import in_order, worker_processes
from qexport.measurement.accuracy import Accuracy, evaluate, evaluate_shards
from qexport.measurement.evidence.gather import class_figures, fidelity_parts, resampled
from qexport.measurement.shards import Loaded, ShardRequest, score_shard
from qexport.measurement.spool import Spool
from qexport.measurement.validator import make_validator
from qexport.steps.scoring import scored_by, scoring_processes
from qexport.tasks import SCORING

SHAPES, SIZE, COUNT = DEMO / "shapes", (64, 96), 20
LAYOUT = HeadLayout((8, 16, 32), SIZE, CLASSES, end2end=True, head="end2end")


def shards(folder: Path, size: int, task: str, count: int = COUNT, batch: int = 1) -> tuple[EvaluationSet, ...]:
    """Images of the demo with their labels."""
    demo_checkpoint()  # mends torchvision where it needs that
    data = load_dataset(SHAPES / f"shapes{'-segment' if task == 'segment' else ''}.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_set, "SHARD", size)
        return make_shards(data, image_list(data, "val")[:count], folder, task=task, batch=batch)


def same(one: Accuracy, other: Accuracy, task: str) -> None:
    """Every figure, and what they are made of, to the last bit."""
    for name in ("map", "map50", "box_map", "fidelity", "images", "unread"):
        assert getattr(one, name) == getattr(other, name), name
    for name in ("detections", "scores", "fidelity_scores", "found"):
        first, second = getattr(one, name), getattr(other, name)
        assert list(first) == list(second), name
        assert all(pickle.dumps(first[key]) == pickle.dumps(second[key]) for key in first), name
    assert resampled(task, one.scores).tolist() == resampled(task, other.scores).tolist()
    assert class_figures(task, one.scores, None) == class_figures(task, other.scores, None)


class Elsewhere(Inline):
    """What is handed over is pickled both ways, as between two processes."""

    def submit(self, task: Task) -> Future[Any]:
        copied = replace(task, arguments=pickle.loads(pickle.dumps(task.arguments)))
        done = super().submit(copied)
        if not done.exception():
            result = pickle.loads(pickle.dumps(done.result()))
            done = Future()
            done.set_result(result)
        return done


@pytest.mark.parametrize(("task", "batch"), [("detect", 3), ("segment", 1)])
def test_shards_come_to_what_one_pass_does(task: str, batch: int, tmp_path: Path) -> None:
    masks, seen = task == "segment", list[None]()
    (all_at_once,) = shards(tmp_path / "one", 10**6, task, batch=batch)
    parts = shards(tmp_path / "some", 7, task, batch=batch)
    assert len(parts) == (3 if batch == 1 else 4)  # of 7, or of 6, which is two runs of three
    reference = evaluate(DrawnRunner(masks, moved=2.0), LAYOUT, task, all_at_once, batch=batch)
    given: dict[str, Any] = {"batch": batch, "reference": reference.detections}
    whole = evaluate(DrawnRunner(masks), LAYOUT, task, all_at_once, **given)
    here = evaluate_shards(lambda: DrawnRunner(masks), LAYOUT, task, parts, **given)
    setup = Task(DrawnRunner, (masks,))
    there = evaluate_shards(
        lambda: pytest.fail("nothing is to be scored here"),
        LAYOUT,
        task,
        parts,
        **given,
        on_image=lambda: seen.append(None),
        elsewhere=partial(scored_by, Elsewhere(), setup, 1),
    )
    assert len(seen) == COUNT
    assert whole.map
    assert 0.2 < (whole.fidelity or 0) < 0.9
    assert bool(whole.box_map) == masks
    same(whole, here, task)
    same(whole, there, task)
    parts_of_fidelity = [fidelity_parts(task, each, reference) for each in (whole, here, there)]
    assert parts_of_fidelity[0] == parts_of_fidelity[1] == parts_of_fidelity[2]


def test_a_process_that_is_killed_costs_no_figure(tmp_path: Path) -> None:
    """A real process: what it was doing is done here, and another takes its place."""
    parts, here = shards(tmp_path / "some", 3, "segment", count=5), list[DrawnRunner]()

    def load() -> DrawnRunner:
        here.append(DrawnRunner(masks=True))
        return here[-1]

    with worker_processes(1) as executor:
        there = partial(scored_by, executor, Task(DyingRunner, (True,)), 2)
        found = evaluate_shards(load, LAYOUT, "segment", parts, elsewhere=there)
        assert [each.batches for each in here] == [2]  # the images of the second shard
        assert executor.submit(Task(divmod, (7, 2))).result() == (3, 1)
    same(evaluate_shards(lambda: DrawnRunner(masks=True), LAYOUT, "segment", parts), found, "segment")


def test_outputs_that_are_not_finite_are_judged_where_the_model_is(tmp_path: Path) -> None:
    parts = shards(tmp_path / "some", 2, "detect", count=6)

    def infinite(batch: Any) -> tuple[Any, ...]:
        return tuple(np.where(np.arange(6) == 4, np.inf, each).astype(np.float32) for each in DrawnRunner()(batch))

    with pytest.raises(VerificationError, match="not finite"):
        Loaded(infinite)(np.zeros((1, 3, *SIZE), np.float32))
    asked = (ShardRequest(LAYOUT, "detect", each) for each in parts)
    loading = Task(Loaded, (infinite,))
    assert [found for _, found in scored_by(Inline(), loading, 1, asked)] == [None, None, None]


def test_as_many_shards_are_in_memory_as_are_scored() -> None:
    asked: list[int] = []

    def tasks() -> Iterator[Task]:
        for number in range(9):
            asked.append(number)
            yield Task(divmod, (number, 4))

    taken = in_order(Inline(), tasks(), 2)
    assert next(taken)[1].result() == (0, 0)
    assert asked == [0, 1, 2]
    assert [future.result() for _, future in taken] == [divmod(number, 4) for number in range(1, 9)]


def test_one_job_is_this_process() -> None:
    with scoring_processes(1) as elsewhere:
        assert elsewhere is None


def test_a_shard_of_which_nothing_can_be_read_is_left_out(tmp_path: Path) -> None:
    data = load_dataset(SHAPES / "shapes.yaml")
    for number in range(3):  # Ultralytics leaves out what is smaller than ten pixels
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((8, 8, 3), 90 * number, np.uint8))
    small = sorted(tmp_path.glob("*.png"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_set, "SHARD", 2)
        given = [*image_list(data, "val")[:2], *small[:2]], small
        some, none = (make_shards(data, each, tmp_path / str(len(each)), task="detect") for each in given)
    found = evaluate_shards(DrawnRunner, LAYOUT, "detect", some)
    assert found.images == 2
    assert [each.partition(" ")[0] for each in found.unread] == ["0.png", "1.png"]
    assert found.map is not None
    with pytest.raises(RuntimeError, match="No valid images"):
        evaluate_shards(DrawnRunner, LAYOUT, "detect", none)


def test_how_many_are_looked_for_depends_on_all_images(tmp_path: Path) -> None:
    """Ultralytics looks for as many as the image with most labels has, where those are more than 300."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for number, labels in enumerate((1, 302, 2)):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((32, 32, 3), 90 * number, np.uint8))
        rows = [f"0 0.5 0.5 0.{100 + row} 0.3" for row in range(labels)]
        (tmp_path / "labels" / f"{number}.txt").write_text("\n".join([*rows, rows[0]]))
    (tmp_path / "d.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [a, b, c, d, e, f]\n")
    data = load_dataset(tmp_path / "d.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation_set, "SHARD", 1)
        parts = make_shards(data, image_list(data, "val"), tmp_path / "set", task="detect")
    assert [each.most_objects for each in parts] == [302] * 3
    most = [make_validator(SCORING["detect"], "detect", each, LAYOUT, 1, tmp_path).args.max_det for each in parts]
    assert most == [302] * 3


def test_what_is_kept_of_images_is_not_in_memory() -> None:
    kept: Spool[Any] = Spool()
    tracemalloc.start()
    try:
        for number in range(400):
            kept.add(str(number), np.full(5000, number, np.float32))
        assert tracemalloc.get_traced_memory()[0] < 400 * 1000  # of 20 kB each
    finally:
        tracemalloc.stop()
    kept.add("7", np.zeros(1))
    assert (len(kept), list(kept)[:3], "399" in kept, "400" in kept) == (400, ["0", "1", "2"], True, False)
    assert (kept["9"].shape, kept["9"][-1], kept["7"].shape) == ((5000,), 9.0, (1,))
    assert kept["9"].flags.writeable
    with pytest.raises(KeyError):
        kept["400"]


def test_a_shard_is_what_its_request_says(tmp_path: Path) -> None:
    """Images are named by their number among all, so that shards one behind the other are in the order of the set."""
    parts = shards(tmp_path / "some", 4, "detect", count=6)
    names = [name for each in parts for name in each.links]
    assert names == sorted(names)
    assert [name[:6] for name in names] == [f"{number:06d}" for number in range(6)]
    found = score_shard(DrawnRunner(), ShardRequest(LAYOUT, "detect", parts[1]))
    assert [each.name for each in found.records] == list(parts[1].links)
    assert found.fault is None
