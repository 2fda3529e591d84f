"""Training with labels: Ultralytics' data sets as epochs, and its losses on a program's raw outputs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import DEMO
from small_models import small_model
from torch import Tensor

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.cli.demo import DEMOS
from qexport.compat.torchvision import repair
from qexport.data.dataset import Dataset, image_list, load_dataset
from qexport.data.resolve import resolve_data
from qexport.detections.layout import HeadLayout
from qexport.errors import InputError, UsageError
from qexport.optimisation.distance import giving
from qexport.programs.build import Source, capture_program, read_source
from qexport.programs.capture import capture
from qexport.programs.captured_graph import shared_copy
from qexport.programs.heads import split_head
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.tasks import TaskSpec
from qexport.training.images import Batch, Images
from qexport.training.labelled_images import labelled
from qexport.training.labelled_loss import labelled_loss

SIZE = (96, 96)
IMAGES = 4


@pytest.fixture(scope="module", autouse=True)
def _torchvision() -> None:
    repair()


@cache
def source(task: str) -> Source:
    return read_source(DEMO / DEMOS[task].model, CaptureOptions(SIZE, batch=IMAGES))


def raw_outputs(program: Program, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        found = giving(shared_copy(program), program.raw.all)(images)
    return [each.requires_grad_() for each in found]


def some(task: str, count: int = 8) -> tuple[Dataset, list[Path]]:
    """Evenly spread images of the demo data, so that all classes of a classifier are there."""
    data = resolve_data(str(DEMO / DEMOS[task].data))
    images = image_list(data, "train")
    return data, list(images[:: len(images) // count][:count])


def made(task: str, folder: Path, **options: Any) -> Images:
    data, images = some(task)
    given = source(task)
    return labelled(data, images, given.checkpoint.task_spec, given.program, IMAGES, 3, folder, **options)


def same(one: Iterable[Batch], other: Iterable[Batch]) -> bool:
    pairs = list(zip(one, other, strict=True))
    return all(
        torch.equal(a.pixels, b.pixels)
        and (a.targets or {}).keys() == (b.targets or {}).keys()
        and all(torch.equal(value, (b.targets or {})[name]) for name, value in (a.targets or {}).items())
        for a, b in pairs
    )


TARGETS = {
    "detect": {"batch_idx", "cls", "bboxes"},
    "segment": {"batch_idx", "cls", "bboxes", "masks", "sem_masks"},
    "pose": {"batch_idx", "cls", "bboxes", "keypoints"},
    "obb": {"batch_idx", "cls", "bboxes"},
    "classify": {"cls"},
}


@pytest.mark.parametrize("task", DEMOS)
def test_an_epoch_with_labels_depends_on_its_number_alone(task: str, tmp_path: Path) -> None:
    images = made(task, tmp_path / "one")
    assert len(images) == 2
    first, second = list(images.epoch(0)), list(images.epoch(1))
    for batch in first:
        assert batch.pixels.shape == (IMAGES, 3, *SIZE)
        assert batch.pixels.dtype == torch.float32
        assert 0 <= batch.pixels.min() < batch.pixels.max() <= 1
        assert batch.targets is not None
        assert batch.targets.keys() == TARGETS[task]
    assert not same(first, second)
    random.seed(99)
    np.random.seed(99)
    before = torch.random.get_rng_state(), random.getstate()
    assert same(made(task, tmp_path / "two").epoch(1), second)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert random.getstate() == before[1]


def test_processes_make_the_same_batches(tmp_path: Path) -> None:
    images = made("detect", tmp_path / "one")
    assert same(made("detect", tmp_path / "two", workers=2).epoch(1), images.epoch(1))
    ranks = [made("detect", tmp_path / f"rank{rank}", shard=(rank, 2)) for rank in (0, 1)]
    assert [len(each) for each in ranks] == [1, 1]
    (one,), (other,) = (list(each.epoch(1)) for each in ranks)
    whole = torch.cat([batch.pixels for batch in images.epoch(1)])
    assert torch.equal(torch.stack((one.pixels, other.pixels), dim=1).flatten(0, 1), whole)


@pytest.mark.parametrize("task", DEMOS)
def test_labels_are_those_of_the_pixels(task: str, tmp_path: Path) -> None:
    """A trained model finds what the labels say, and not what those of another image say."""
    program = source(task).program
    losses = np.zeros(2)
    for batch in made(task, tmp_path / "set").epoch(0):
        targets = dict(batch.targets or {})
        raw = raw_outputs(program, batch.pixels)
        own = labelled_loss(program, raw, targets)
        others = labelled_loss(program, [each.flip(0) for each in raw], targets)
        losses += [own.item(), others.item()]
        own.backward()  # type: ignore[no-untyped-call]
        reached = {name for name, each in zip(program.raw.all, raw, strict=True) if each.grad is not None}
        assert reached == set(program.raw.all)
        moved = [name for name, each in zip(program.raw.all, raw, strict=True) if each.grad.abs().sum() > 0]  # type: ignore[union-attr]
        kinds = (program.raw.boxes, program.raw.scores, program.raw.extras, (program.raw.prototypes,))
        assert all(set(kind) & set(moved) for kind in kinds if any(kind))
    assert losses[0] < 0.75 * losses[1]


def copied(folder: Path, count: int = 4) -> Dataset:
    """A few images and labels of the demo data that a test may spoil."""
    for kind, suffix in (("images", "jpg"), ("labels", "txt")):
        (folder / kind / "train").mkdir(parents=True)
        for file in sorted((DEMO / "shapes" / kind / "train").glob(f"*.{suffix}"))[:count]:
            shutil.copy(file, folder / kind / "train")
    content = yaml.safe_load((DEMO / "shapes" / "shapes.yaml").read_text(encoding="utf-8"))
    (folder / "data.yaml").write_text(yaml.safe_dump({**content, "path": str(folder)}), encoding="utf-8")
    return load_dataset(folder / "data.yaml")


def test_the_users_folder_is_left_alone_and_a_broken_image_left_out(tmp_path: Path) -> None:
    data = copied(tmp_path / "own")
    images = image_list(data, "train")
    images[1].write_bytes(images[1].read_bytes()[:-900])  # Ultralytics would write it anew
    images[2].write_bytes(b"no image")
    (tmp_path / "own" / "labels" / "train.cache").write_bytes(b"a pickle that nobody reads")
    before = {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()}
    skipped: dict[Path, str] = {}
    given = source("detect")
    made = labelled(
        data, images, given.checkpoint.task_spec, given.program, 2, 0, tmp_path / "links", on_skip=skipped.setdefault
    )
    assert sum(len(batch.pixels) for batch in made.epoch(0)) in (2, 4)
    assert skipped[images[2]] == f"image {images[2]} is corrupt or not an image"
    assert skipped.keys() <= set(images[1:3])
    assert {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()} == before


def test_what_cannot_be_trained_with_labels_is_refused(tmp_path: Path) -> None:
    data = copied(tmp_path / "own")
    images = image_list(data, "train")
    given = source("detect")
    model, program = given.checkpoint.task_spec, given.program

    def refused(program: Program = program, images: list[Path] = list(images), model: TaskSpec = model) -> None:  # noqa: B006
        labelled(data, images, model, program, 2, 0, tmp_path / "links")

    wide = replace(program, input=replace(program.input, imgsz=(96, 64)))
    with pytest.raises(UsageError, match="96x64 cannot be trained with labels"):
        refused(wide)
    with pytest.raises(UsageError, match="RT-DETR cannot be trained with labels"):
        refused(replace(program, layout=replace(program.layout, head="queries")))
    with pytest.raises(InputError, match="no images to train on"):
        refused(images=[])
    label = tmp_path / "own" / "labels" / "train" / f"{images[0].stem}.txt"
    label.write_text("6 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"there is no class 6.*row 1"):
        refused()
    for path in label.parent.glob("*.txt"):
        path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="have no labels"):
        refused()
    assert not (tmp_path / "links").exists()


def some_targets(task: str, layout: HeadLayout) -> dict[str, Tensor]:
    """Labels of two images, seven objects."""
    rng = torch.Generator().manual_seed(1)
    centres = torch.rand(7, 2, generator=rng) * 0.4 + 0.3
    boxes = torch.cat((centres, torch.rand(7, 2, generator=rng) * 0.3 + 0.2), dim=1)
    targets = {
        "batch_idx": torch.tensor([0.0, 0, 0, 1, 1, 1, 1]),
        "cls": torch.randint(layout.classes, (7, 1), generator=rng).float(),
        "bboxes": boxes,
    }
    if task == "obb":
        targets["bboxes"] = torch.cat((boxes, torch.rand(7, 1, generator=rng)), dim=1)
    if task == "segment":
        # Where masks overlap one number stands for the object: of four in image 1, of three in image 0.
        highest = torch.tensor([3, 4])[:, None, None]
        targets["masks"] = (torch.randint(5, (2, 24, 24), generator=rng) % (highest + 1)).to(torch.uint8)
        targets["sem_masks"] = torch.zeros(2, 24, 24)
    if task == "pose":
        points = torch.rand(7, *layout.shape, generator=rng)
        points[..., 2] = (points[..., 2] > 0.3).float() * 2
        targets["keypoints"] = points
    return targets


def pictures() -> Tensor:
    coarse = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def check_loss(model: Any, program: Program, task: str) -> None:
    """The program's loss is what Ultralytics makes of the outputs of the model itself."""
    from ultralytics.cfg import get_cfg

    model.args = get_cfg()
    targets = some_targets(task, program.layout)
    with torch.no_grad():
        _, found = model(pictures())
    criterion: Any = model.init_criterion()
    if hasattr(criterion, "one2one"):
        criterion, found = (
            (criterion.one2one, found["one2one"])
            if program.layout.head == "end2end"
            else (criterion.one2many, found["one2many"])
        )
    if isinstance(found.get("proto"), tuple):
        found["proto"] = found["proto"][0]
    expected = criterion.loss(found, dict(targets))[0]
    actual = labelled_loss(program, raw_outputs(program, pictures()), targets)
    assert expected.count_nonzero() >= 3
    torch.testing.assert_close(actual, expected.sum(), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("head", ["end2end", "one2many"])
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_the_loss_of_a_yolo26_is_ultralytics_own(task: str, head: str) -> None:
    checkpoint = load_checkpoint(DEMO / DEMOS[task].model)
    program = capture_program(CaptureOptions(SIZE, batch=2, head=head), load_checkpoint(DEMO / DEMOS[task].model))
    check_loss(checkpoint.module, program, task)


@pytest.mark.parametrize(
    ("kind", "task"), [("Detect", "detect"), ("Segment", "segment"), ("Pose", "pose"), ("OBB", "obb")]
)
def test_the_loss_of_a_former_head_is_ultralytics_own(kind: str, task: str) -> None:
    program = capture(split_head(small_model(kind), None, SIZE), SIZE, 2)
    check_loss(small_model(kind), program, task)


def test_the_loss_of_a_classifier_is_the_cross_entropy() -> None:
    program = source("classify").program
    images = torch.rand(IMAGES, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    (logits,) = raw_outputs(program, images)
    targets = torch.tensor([0, 3, 1, 5])
    probabilities = logits.detach().exp() / logits.detach().exp().sum(dim=1, keepdim=True)
    expected = -probabilities[torch.arange(4), targets].log().mean()
    torch.testing.assert_close(labelled_loss(program, [logits], {"cls": targets}), expected)
