"""Images with their labels, through Ultralytics' own data sets and augmentation.

Its data sets draw from the generators of the whole process, and its mosaics from the images that were read last. Here
every image has a seed of its own, and mosaics draw from all: an epoch then depends on its number alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from qexport.compat.torchvision import repair
from qexport.data.classes import class_numbers, unknown_classes
from qexport.data.dataset import Dataset
from qexport.data.evaluation_set import EvaluationSet, make_evaluation_set
from qexport.data.images import read_image
from qexport.data.labels import Wanted, read_labels
from qexport.errors import InputError, UsageError
from qexport.programs.program import Program
from qexport.tasks import TaskSpec
from qexport.training.images import Batch, Images, Order, Skip
from qexport.training.labelled_loss import check_trainable

GIVE_LABELS = "give the data set that the model was trained for, or leave out --labels"
Place = tuple[int, int]
"""Place in an epoch, and number of the image that stands there."""


@dataclass(frozen=True)
class Labelled:
    """`Images` with labels.

    Attributes:
        dataset: of Ultralytics, augmenting.
    """

    dataset: Any
    order: Order

    def __len__(self) -> int:
        return len(self.order)

    def epoch(self, number: int) -> Iterator[Batch]:
        """See `Images`."""
        shuffled, count = self.order.shuffled(number), self.order.count
        places = [[(int(each), int(shuffled[each % count])) for each in batch] for batch in self.order.places()]
        loader: DataLoader[dict[str, Any]] = DataLoader(
            _Seeded(self.dataset, self.order.seed, number),
            batch_sampler=places,
            collate_fn=getattr(self.dataset, "collate_fn", default_collate),
            num_workers=0,  # training has threads, and a process with threads must not be forked
            generator=torch.Generator(),  # not the process's own, which others draw from
        )
        yield from map(_batch, loader)


class _Seeded(torch.utils.data.Dataset[dict[str, Any]]):
    """An epoch of a data set, each image with a seed of its own."""

    def __init__(self, dataset: Any, seed: int, number: int) -> None:
        self.dataset, self.seed, self.number = dataset, seed, number

    def __getitem__(self, place: Place) -> dict[str, Any]:
        with seeded(self.seed, self.number, place[0]):
            made: dict[str, Any] = self.dataset[place[1]]
        return made


def labelled(
    dataset: Dataset,
    images: Sequence[Path],
    model: TaskSpec,
    program: Program,
    batch: int,
    seed: int,
    folder: Path,
    *,
    shard: tuple[int, int] = (0, 1),
    on_skip: Skip = lambda *_: None,
    needed: bool = True,
) -> Images:
    """Images to train on with their labels, as `yolo train` augments them, in batches of `batch`.

    Ultralytics writes into the folder that images lie in, and reads what it finds there: it is shown links instead.

    Args:
        dataset: what the images are of; whether it suits the model is for the caller to check.
        images: in any order.
        program: whose raw outputs are judged.
        folder: for links; new, and there as long as the images are used.
        shard: rank of this process, and how many there are.
        on_skip: takes images that Ultralytics leaves out.
        needed: refuse images none of which has a label.

    Raises:
        UsageError: the head or the image size cannot be trained with labels.
        InputError: there are no images, none that can be read, or a label is wrong.
    """
    check_trainable(program.layout)
    side = _side(program)
    paths = sorted(set(images))
    if not paths:
        raise InputError("no images to train on", "add --data with images in its train split")
    _check_labels(dataset, paths, model, needed)
    linked = make_evaluation_set(dataset, paths, folder, model.names, task=model.task)
    repair()  # Ultralytics imports torchvision
    try:
        with seeded(seed):
            made = _classes(linked, side) if model.task == "classify" else _objects(dataset, linked, model, side)
    except (RuntimeError, ValueError):  # so does Ultralytics say that it has left out all
        made = []
    if not len(made):
        raise InputError(f"no image of {dataset.yaml} can be trained on ({_reason(paths[0])})", GIVE_LABELS)
    _report_skipped(made, linked, on_skip)
    return Labelled(made, Order(len(made), batch, seed, *shard))


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Let the generators of the process draw what `numbers` decide, and go on as before behind the block."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _side(program: Program) -> int:
    height, width = program.input.imgsz
    if height != width:
        raise UsageError(
            f"images of {height}x{width} cannot be trained with labels: Ultralytics augments to squares",
            f"give --imgsz {max(height, width)}, or leave out --labels",
        )
    return height


def _check_labels(dataset: Dataset, images: Sequence[Path], model: TaskSpec, needed: bool) -> None:
    """Raise `InputError` where Ultralytics would leave images out for a label, or find none."""
    if dataset.by_folder != (model.task == "classify"):
        wanted = "folders of classes" if model.task == "classify" else "label files"
        raise InputError(f"{dataset.yaml} has no {wanted}, which a {model.task} model is trained with", GIVE_LABELS)
    if dataset.by_folder:
        if reason := unknown_classes(dataset, images, class_numbers(dataset, model.names)):
            raise InputError(reason, "rename or remove the folder, or leave out --labels")
        return
    points = dataset.kpt_shape or model.kpt_shape
    if points and dataset.flip_idx and sorted(dataset.flip_idx, key=str) != sorted(range(points[0]), key=str):
        what = f"flip_idx of {dataset.yaml} does not have each of {points[0]} keypoints once"
        raise InputError(what, "correct it, or remove it: images are then not mirrored")
    single = model.single_class or dataset.single_class
    classes = len(dataset.names) if single and dataset.names else len(model.names)
    labels = read_labels(images, dataset.labels, Wanted(model.task, classes, points))
    if labels.fault:
        raise InputError(labels.fault, "correct the labels, or leave out --labels")
    if needed and not labels.rows:
        raise InputError(f"the images of {dataset.yaml} have no labels", GIVE_LABELS)


def _objects(dataset: Dataset, linked: EvaluationSet, model: TaskSpec, side: int) -> Any:
    from ultralytics.data import build_yolo_dataset

    single = model.single_class or dataset.single_class
    settings = _settings(model.task, side, single)
    data = {
        "names": dict(dataset.names or model.names),
        "channels": model.channels,
        "kpt_shape": dataset.kpt_shape or model.kpt_shape or (0, 0),
        "flip_idx": list(dataset.flip_idx),
    }
    made: Any = build_yolo_dataset(settings, str(linked.yaml.parent / "images"), batch=1, data=data)
    # Images "in memory" are not kept for mosaics, which then draw from all.
    made.cache = "ram"
    made.transforms = made.build_transforms(settings)
    return made


def _classes(linked: EvaluationSet, side: int) -> Any:
    from ultralytics.data import ClassificationDataset

    return ClassificationDataset(str(linked.yaml / "val"), _settings("classify", side), augment=True)


def _settings(task: str, side: int, single: bool = False) -> Any:
    """Ultralytics' own defaults; without Albumentations, which has generators of its own."""
    from ultralytics.cfg import get_cfg

    settings: Any = get_cfg(overrides={"task": task, "imgsz": side, "single_cls": single})
    settings.augmentations = []
    return settings


def _report_skipped(made: Any, linked: EvaluationSet, on_skip: Skip) -> None:
    files = (sample[0] for sample in made.samples) if hasattr(made, "samples") else made.im_files
    used = {Path(file).name for file in files}
    for name, path in linked.links.items():
        if name not in used:
            on_skip(path, _reason(path))


def _reason(path: Path) -> str:
    try:
        read_image(path)
    except InputError as error:
        return error.what
    return f"image {path} is too small or of a kind that Ultralytics does not train on"


def _batch(loaded: dict[str, Any]) -> Batch:
    images: Tensor = loaded.pop("img")
    pixels = images if images.is_floating_point() else images.float() / 255
    return Batch(pixels, {name: value for name, value in loaded.items() if isinstance(value, Tensor)})
