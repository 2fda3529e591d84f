"""Folders of classes, and which class of a model each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from qexport.data.dataset import IMAGE_SUFFIXES, Dataset, class_of
from qexport.data.layout import own_folders


def class_numbers(data: Dataset, names: Mapping[int, str]) -> dict[str, int]:
    """Folder → number of the model's class: by name, or by order where the model calls classes otherwise.

    Returns:
        {} where neither is possible. Folders without images do not count unless the model knows them.
    """
    known = {name: number for number, name in names.items()}
    folders = {name for name in data.names.values() if name in known or _has_images(data, name)}
    if folders <= set(known) and len(known) == len(names):
        return known
    by_order = {name: i for i, name in enumerate(sorted(folders))}
    wrong = len(by_order) != len(names) or other_order({i: name for name, i in by_order.items()}, names)
    return {} if wrong else by_order


def other_order(names: Mapping[int, str], known: Mapping[int, str]) -> str:
    """The first name that stands for another number among the `known` ones; "" where none does.

    Labels that are numbers would then mean other classes. Names that are none of the known ones may be new ones.
    """
    if len(set(known.values())) < len(known):  # a name that stands twice says nothing
        return ""
    numbers = {name: number for number, name in known.items() if name != str(number)}
    other = ((name, number) for number, name in names.items() if numbers.get(name, number) != number)
    return next((f"'{name}' is {number} here and {numbers[name]} there" for name, number in other), "")


def unknown_classes(data: Dataset, images: Sequence[Path], numbers: Mapping[str, int]) -> str:
    """What is wrong with the folders of images to score on or to train on; "" if nothing is."""
    unknown = sorted((name, image) for image in images if (name := class_of(image, data.sources)) not in numbers)
    if not unknown:
        return ""
    name, image = unknown[0]
    source = next((source for source in data.sources if source in image.parents), data.root)
    known = f" ({', '.join(sorted(numbers)[:5])}, …)" if numbers else ""
    return f"{source} has a folder '{name}', which is no class of the model{known}"


def strays(data: Dataset) -> str:
    """Say that images lie beside the folders of classes; "" where none does."""
    files = (entry for source in data.splits.get("val", ()) for entry in source.iterdir() if entry.is_file())
    count = sum(entry.suffix.lower() in IMAGE_SUFFIXES for entry in files)
    return f"{count} evaluation images beside the folders of classes are of no class and left out" if count else ""


def _has_images(data: Dataset, name: str) -> bool:
    """Whether a class of the first split has an image, however deep."""
    (source,) = next(iter(data.splits.values()))
    places = [source / name]
    while places:
        place = places.pop()
        if any(entry.suffix.lower() in IMAGE_SUFFIXES for entry in place.iterdir()):
            return True
        places += own_folders(place)
    return False
