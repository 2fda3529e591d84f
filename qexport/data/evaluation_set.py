"""Images, those to evaluate or to train on, as a data set of their own in a scratch folder.

Ultralytics writes `.cache` files beside the labels it reads and finds labels by replacing a folder name in the image's
path. Links in a scratch folder leave the user's folders untouched and let two data sets share an image's name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from qexport.data.classes import class_numbers
from qexport.data.dataset import Dataset, class_of, label_path
from qexport.data.images import read_image
from qexport.errors import InputError
from qexport.system.given_files import open_given, read_bytes

JPEG_BEGIN, JPEG_END = b"\xff\xd8", b"\xff\xd9"
"""Markers."""
SHARD = 128
"""Images of one shard, or the next multiple of a run's images below: how many processes score shards changes none."""
TIFF = (".tif", ".tiff")
"""Files that the data sets of Ultralytics' classifiers read otherwise than its predictor, which is what users copy."""


@dataclass(frozen=True)
class EvaluationSet:
    """Images and labels that accuracy is measured on, or that are trained on with their labels.

    Attributes:
        yaml: a data set YAML whose `val` split is these images, or for classification a folder.
        links: file name below the scratch folder → the original image.
        single_class: labels of every class count as the only one that there is.
        labelled: there are labels to measure accuracy with.
        most_objects: labels of the image that has most of them, of all shards where this is one; 0 if nobody counted.
    """

    yaml: Path
    links: Mapping[str, Path]
    single_class: bool = False
    labelled: bool = True
    most_objects: int = 0


def make_shards(
    dataset: Dataset,
    images: Sequence[Path],
    folder: Path,
    names: Mapping[int, str] | None = None,
    *,
    task: str = "",
    labelled: bool = True,
    batch: int = 1,
) -> tuple[EvaluationSet, ...]:
    """The same as `make_evaluation_set` in parts, each below `folder`: what is read of one part is not kept for all.

    Args:
        batch: images in one run, which no two parts share.
    """
    size = max(1, SHARD // batch) * batch
    parts = [
        make_evaluation_set(
            dataset,
            images[start : start + size],
            folder / f"{start:06d}",
            names,
            task=task,
            labelled=labelled,
            first=start,
        )
        for start in range(0, max(1, len(images)), size)
    ]
    most = max(_most_objects(each) for each in parts)
    return tuple(replace(each, most_objects=most) for each in parts)


def _most_objects(part: EvaluationSet) -> int:
    """Labels of the image that has most; two that are written alike are one."""
    most = 0
    for path in (part.yaml.parent / "labels").glob("*.txt") if part.yaml.is_file() else ():
        with suppress(OSError):  # whoever needs it says so
            most = max(most, len({*read_bytes(path).splitlines()} - {b""}))
    return most


def make_evaluation_set(
    dataset: Dataset,
    images: Sequence[Path],
    folder: Path,
    names: Mapping[int, str] | None = None,
    *,
    task: str = "",
    labelled: bool = True,
    first: int = 0,
) -> EvaluationSet:
    """Link `images` and their labels below `folder`.

    Args:
        names: the model's classes, which folders of classes are matched with, and which are meant where the data set
            has no names; None for the data set's own.
        task: the model's; images for a classifier lie in folders of classes, whatever they lay in.
        labelled: whether labels are linked, too.
        first: number of the first image, by which files are named and so sorted.
    """
    if dataset.by_folder:
        numbers = class_numbers(dataset, names or dataset.names)
        classes = [numbers[class_of(image, dataset.sources)] for image in images]
        return _folders_of_classes(images, folder, sorted(numbers.values()), classes, first)
    if task == "classify":
        # Without labels any folder will do, of as many as the model has classes.
        made = _folders_of_classes(images, folder, list(names or dataset.names), [0] * len(images), first)
        return replace(made, labelled=False)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    links: dict[str, Path] = {}
    for index, image in enumerate(images, first):
        name = f"{index:06d}-{image.stem}"
        links[f"{name}{image.suffix}"] = image
        _link_image(image, folder / "images" / f"{name}{image.suffix}")
        label = label_path(image, dataset.labels)
        if labelled and label.is_file():
            _link(label, folder / "labels" / f"{name}.txt")
    content = {
        "path": str(folder),
        "train": "images",
        "val": "images",
        "names": dict(dataset.names or names or {}),
        "channels": dataset.channels,
        **({"kpt_shape": list(dataset.kpt_shape)} if dataset.kpt_shape else {}),
    }
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return EvaluationSet(path, links, dataset.single_class, labelled)


def _folders_of_classes(
    images: Sequence[Path], folder: Path, numbers: Sequence[int], classes: Sequence[int], first: int
) -> EvaluationSet:
    """Link images below a folder for each class; Ultralytics wants a `train` split, too, and does not look into it.

    It numbers classes by the order of their folders' names, so these are the numbers.

    Args:
        numbers: every class.
        classes: that of each image.
        first: see `make_evaluation_set`.
    """
    places = {number: folder / "val" / f"{number:06d}" for number in numbers}
    for place in places.values():
        place.mkdir(parents=True)
    (folder / "train").symlink_to(folder / "val", target_is_directory=True)
    links: dict[str, Path] = {}
    for index, (image, number) in enumerate(zip(images, classes, strict=True), first):
        name = f"{index:06d}-{image.name}"
        if image.suffix.lower() in TIFF and (pixels := _pixels(image)):
            name += ".png"
            (places[number] / name).write_bytes(pixels)
        else:
            _link_image(image, places[number] / name)
        links[name] = image
    return EvaluationSet(folder, links)


def _pixels(image: Path) -> bytes:
    """An image as a PNG, b"" of one that cannot be read."""
    import cv2

    try:
        return cv2.imencode(".png", read_image(image))[1].tobytes()
    except InputError:
        return b""


def _link_image(source: Path, target: Path) -> None:
    """Link an image, or copy a JPEG that does not end with its last marker and append that.

    Ultralytics would encode such a JPEG anew, with other pixels; decoders make the same of it with the marker, unless
    it is cut off.
    """
    if _lacks_end(source) and _pixels(source):
        target.write_bytes(read_bytes(source) + JPEG_END)
    else:
        _link(source, target)


def _lacks_end(image: Path) -> bool:
    try:
        with open_given(image) as stream:
            begins, size = stream.read(len(JPEG_BEGIN)), stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - len(JPEG_END)))
            return begins == JPEG_BEGIN and stream.read() != JPEG_END
    except OSError:  # whoever reads it says so
        return False


def _link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source.absolute())
    except OSError:
        shutil.copy(source, target)
