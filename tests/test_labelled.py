"""Training with labels: Ultralytics' data sets as epochs, and its losses on a program's raw outputs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
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
from qexport.data.input_form import InputSpec
from qexport.data.resolve import resolve_data
from qexport.detections.layout import HeadLayout
from qexport.errors import InputError, UsageError
from qexport.optimisation.distance import giving
from qexport.programs.capture import capture
from qexport.programs.captured_graph import shared_copy
from qexport.programs.classifier import classifier
from qexport.programs.heads import split_head
from qexport.programs.program import Program, RawNames
from qexport.tasks import TaskSpec
from qexport.training.images import Batch, Images
from qexport.training.labelled_images import labelled
from qexport.training.labelled_loss import labelled_loss

SIZE = (96, 96)
IMAGES = 4
YOLO26 = {"end2end": True, "reg_max": 1}


@pytest.fixture(scope="module", autouse=True)
def _torchvision() -> None:
    repair()


@dataclass(frozen=True)
class Split:
    """A model whose head is split: as a program, but for the graph, which takes seconds to capture."""

    program: Program
    module: Any

    def raw_outputs(self, images: Tensor) -> list[Tensor]:
        """In the order of `program.raw.all`, as leaves of their own."""
        with torch.no_grad():
            found = self._logits(images) if self.program.layout.classifier else self._levels(images)
        return [each.detach().requires_grad_() for each in found]

    def _logits(self, images: Tensor) -> list[Tensor]:
        return [self.module(images).log()]  # up to a constant, which no softmax sees

    def _levels(self, images: Tensor) -> list[Tensor]:
        features, head = self.module.features(images), self.module.model[-1]
        levels = [level for each in self.module.raw_outputs(features) for level in each]
        if not self.program.raw.prototypes:
            return levels
        return [*levels, head.proto(features if hasattr(head.proto, "feat_fuse") else features[0])]


def split(model: Any, head: str | None = None) -> Split:
    if type(model.model[-1]).__name__ == "Classify":
        module: Any = classifier(model, None, False)
        raw, layout = RawNames((), ("logits",)), replace(module.decode.layout, imgsz=SIZE)
    else:
        module = split_head(model, head, SIZE)
        layout = module.decode.layout
        boxes, scores, extras = (tuple(f"{kind}{n}" for n in range(3)) for kind in ("box", "score", "extra"))
        prototypes = "prototypes" if layout.extras == "coefficients" else ""
        raw = RawNames(boxes, scores, extras if layout.extras else (), prototypes)
    graph: Any = None
    return Split(Program(graph, {}, raw, layout, InputSpec(SIZE, IMAGES, preprocess=layout.preprocess), ""), module)


@cache
def demo(task: str) -> tuple[TaskSpec, Split]:
    checkpoint = load_checkpoint(DEMO / DEMOS[task].model)
    return checkpoint.task_spec, split(checkpoint.module)


def some(task: str, count: int = 8) -> tuple[Dataset, list[Path]]:
    """Evenly spread images of the demo data, so that all classes of a classifier are there."""
    data = resolve_data(str(DEMO / DEMOS[task].data))
    images = image_list(data, "train")
    return data, list(images[:: len(images) // count][:count])


def made(task: str, folder: Path, **options: Any) -> Images:
    data, images = some(task)
    model, given = demo(task)
    return labelled(data, images, model, given.program, IMAGES, 3, folder, **options)


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


def test_ranks_share_the_same_batches(tmp_path: Path) -> None:
    images = made("detect", tmp_path / "one")
    ranks = [made("detect", tmp_path / f"rank{rank}", shard=(rank, 2)) for rank in (0, 1)]
    assert [len(each) for each in ranks] == [1, 1]
    (one,), (other,) = (list(each.epoch(1)) for each in ranks)
    whole = torch.cat([batch.pixels for batch in images.epoch(1)])
    assert torch.equal(torch.stack((one.pixels, other.pixels), dim=1).flatten(0, 1), whole)


@pytest.mark.parametrize("task", DEMOS)
def test_labels_are_those_of_the_pixels(task: str, tmp_path: Path) -> None:
    """A trained model finds what the labels say, and not what those of another image say."""
    given = demo(task)[1]
    program = given.program
    losses = np.zeros(2)
    for batch in made(task, tmp_path / "set").epoch(0):
        targets = dict(batch.targets or {})
        raw = given.raw_outputs(batch.pixels)
        own = labelled_loss(program, raw, targets)
        others = labelled_loss(program, [each.flip(0) for each in raw], targets)
        losses += [own.item(), others.item()]
        gradients = dict(zip(program.raw.all, torch.autograd.grad(own, raw), strict=True))
        moved = {name for name, gradient in gradients.items() if gradient.abs().sum() > 0}
        kinds = (program.raw.boxes, program.raw.scores, program.raw.extras, (program.raw.prototypes,))
        assert all(set(kind) & moved for kind in kinds if any(kind))
    assert losses[0] < 0.75 * losses[1]


def test_keypoints_change_their_places_in_a_mirror(tmp_path: Path) -> None:
    data, images = some("pose")
    model, given = demo("pose")
    assert data.flip_idx == (0, 3, 2, 1, 4)  # as the YAML has it

    def keypoints(flip_idx: tuple[Any, ...], folder: str) -> tuple[Tensor, Tensor]:
        made = labelled(
            replace(data, flip_idx=flip_idx), images, model, given.program, IMAGES, 3, tmp_path / folder
        ).epoch(0)
        batches = [(batch.pixels, (batch.targets or {})["keypoints"]) for batch in made]
        return torch.cat([pixels for pixels, _ in batches]), torch.cat([points for _, points in batches])

    plain, here = keypoints((), "none")
    mirrored, there = keypoints(data.flip_idx, "some")
    assert plain.shape == mirrored.shape
    flipped = [not torch.equal(*pair) for pair in zip(plain, mirrored, strict=True)]
    assert 0 < sum(flipped) < len(flipped)
    for was, now, changed in zip(plain, mirrored, flipped, strict=True):
        assert torch.equal(was.flip(2) if changed else was, now)
    moved = here.clone()
    moved[..., 0] = 1 - moved[..., 0]
    moved = moved[:, list(data.flip_idx)]
    visible = here[..., 2] > 0  # points that cannot be seen lie anywhere
    same_place = [
        torch.allclose(now[..., :2], old[..., :2], atol=1e-5) or torch.allclose(now[..., :2], new[..., :2], atol=1e-5)
        for now, old, new, seen in zip(there, here, moved, visible, strict=True)
        if seen.all()
    ]
    assert same_place
    assert all(same_place)
    with pytest.raises(InputError, match=r"flip_idx of .* does not have each of 5 keypoints once"):
        keypoints((0, 1), "wrong")


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
    model, given = demo("detect")
    made = labelled(data, images, model, given.program, 2, 0, tmp_path / "links", on_skip=skipped.setdefault)
    assert sum(len(batch.pixels) for batch in made.epoch(0)) in (2, 4)
    assert skipped[images[2]] == f"image {images[2]} is corrupt or not an image"
    assert skipped.keys() <= set(images[1:3])
    assert {path: path.read_bytes() for path in (tmp_path / "own").rglob("*") if path.is_file()} == before


def test_what_cannot_be_trained_with_labels_is_refused(tmp_path: Path) -> None:
    data = copied(tmp_path / "own")
    images = image_list(data, "train")
    model, given = demo("detect")
    program = given.program

    def refused(program: Program = program, images: Sequence[Path] = images, model: TaskSpec = model) -> None:
        labelled(data, images, model, program, 2, 0, tmp_path / "links")

    wide = replace(program, input=replace(program.input, imgsz=(96, 64)))
    with pytest.raises(UsageError, match="96x64 cannot be trained with labels"):
        refused(wide)
    with pytest.raises(UsageError, match="RT-DETR cannot be trained with labels"):
        refused(replace(program, layout=replace(program.layout, head="queries")))
    with pytest.raises(InputError, match="no images to train on"):
        refused(images=[])
    for image in images:
        image.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"no image of .*data\.yaml can be trained on \(image .* is corrupt"):
        refused()
    shutil.rmtree(tmp_path / "links")
    label = tmp_path / "own" / "labels" / "train" / f"{images[0].stem}.txt"
    label.write_text("6 0.5 0.5 0.1 0.1\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"there is no class 6.*row 1"):
        refused()
    for path in label.parent.glob("*.txt"):
        path.write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="have no labels"):
        refused()
    with pytest.raises(InputError, match=r"data\.yaml has no folders of classes, which a classify model"):
        refused(model=replace(model, task="classify"))
    crops, files = some("classify")
    with pytest.raises(InputError, match="crops has no label files, which a detect model"):
        labelled(crops, files, model, program, 2, 0, tmp_path / "links")
    strange = replace(demo("classify")[0], names=dict(enumerate("abcd")))
    with pytest.raises(InputError, match=r"train has a folder 'circle', which is no class of the model"):
        labelled(crops, files, strange, program, 2, 0, tmp_path / "links")
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


FORMER = [("Detect", "detect"), ("Segment", "segment"), ("Pose", "pose"), ("OBB", "obb")]
PRESENT = [("Detect", "detect"), ("Segment26", "segment"), ("Pose26", "pose"), ("OBB26", "obb")]
CASES = [
    *((kind, task, "", {}) for kind, task in FORMER),
    *((kind, task, head, YOLO26) for kind, task in PRESENT for head in ("one2one", "one2many")),
]


@pytest.mark.parametrize(("kind", "task", "branch", "keys"), CASES, ids=lambda value: str(value)[:9])
def test_the_loss_is_what_ultralytics_makes_of_the_model_itself(
    kind: str, task: str, branch: str, keys: dict[str, Any]
) -> None:
    from ultralytics.cfg import get_cfg

    given = split(small_model(kind, **keys), {"one2one": "end2end", "one2many": "one2many"}.get(branch))
    targets = some_targets(task, given.program.layout)
    model = small_model(kind, **keys)
    model.args = get_cfg()
    with torch.no_grad():
        _, found = model(pictures())
    criterion: Any = model.init_criterion()
    if branch:
        criterion, found = getattr(criterion, branch), found[branch]
    expected = criterion.loss(found, dict(targets))[0]
    actual = labelled_loss(given.program, given.raw_outputs(pictures()), targets)
    assert expected.count_nonzero() >= 3
    torch.testing.assert_close(actual, expected.sum() / 2, rtol=2e-4, atol=1e-4)  # it multiplies with the images


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_an_image_that_is_there_twice_costs_what_it_does_once(task: str) -> None:
    """The loss is the mean over the images, whatever share of a batch a program takes at once."""
    given = demo(task)[1]
    raw = [each[:1] for each in given.raw_outputs(pictures())]
    once = {"cls": torch.tensor([1])}
    if task == "detect":
        every = some_targets(task, given.program.layout)
        once = {name: each[every["batch_idx"] == 0] for name, each in every.items()}
    twice = {name: torch.cat((each, each)) for name, each in once.items()}
    if task == "detect":
        twice["batch_idx"] = torch.tensor([0.0, 0, 0, 1, 1, 1])
    expected = labelled_loss(given.program, raw, once)
    assert expected > 0.01
    torch.testing.assert_close(labelled_loss(given.program, [torch.cat((e, e)) for e in raw], twice), expected)


def test_a_captured_program_gives_its_raw_outputs_in_the_order_that_its_loss_takes_them_in() -> None:
    given = split(small_model("Segment26", **YOLO26))
    program = capture(split_head(small_model("Segment26", **YOLO26), None, SIZE), SIZE, 2)
    with torch.no_grad():
        raw = giving(shared_copy(program), program.raw.all)(pictures())
    targets = some_targets("segment", program.layout)
    expected = labelled_loss(given.program, given.raw_outputs(pictures()), targets)
    torch.testing.assert_close(labelled_loss(program, raw, targets), expected, rtol=2e-4, atol=1e-4)


def test_the_loss_of_a_classifier_is_the_cross_entropy() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 3, 1, 5])
    expected = -(logits.exp() / logits.exp().sum(dim=1, keepdim=True))[torch.arange(4), targets].log().mean()
    actual = labelled_loss(demo("classify")[1].program, [logits], {"cls": targets})
    torch.testing.assert_close(actual, expected)
