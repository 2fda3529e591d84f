"""Dataset YAMLs as Ultralytics reads them, and the image lists in them.

Two differences, both on purpose: a relative `path` is looked for beside the YAML first, and a `download:`
key is never acted on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.data.dataset_yaml import read_mapping
from qexport.data.layout import (
    class_folders,
    files_below,
    image_folders,
    is_foreign,
    own_folders,
    without_masks,
    yaml_in,
)
from qexport.errors import InputError
from qexport.system.given_files import UnfitFileError, open_given, read_text, special_kind
from qexport.system.whole import whole

SPLITS = ("train", "val", "test", "minival")
# The list of ultralytics.data.utils.IMG_FORMATS, repeated so that reading a YAML does not import torch.
_FORMATS = ("avif", "bmp", "dng", "heic", "heif", "jp2", "jpeg", "jpg", "mpo", "png", "tif", "tiff", "webp")
IMAGE_SUFFIXES = frozenset(f".{name}" for name in _FORMATS)
MAX_CLASSES = 50_000
"""More than twice as many as any public data set has."""
MAX_PATH, MAX_SHOWN = 4096, 300
"""Characters that a path may be written with, and those of it that an error repeats."""
MAX_CHANNELS, MAX_POINTS = 1024, 10_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Dataset:
    """One dataset YAML with its paths made absolute.

    Attributes:
        yaml: the file that was read.
        root: the folder that the splits are relative to; may be missing.
        splits: split name → its sources: folders, `.txt` lists or images; may be missing.
        names: class index → class name, indices 0 to n-1.
        channels: colour channels of an image.
        download: the `download:` key as written, never acted on here.
        labels: name of the folder that stands in place of `images` in a label file's path.
        by_folder: images lie in a folder for each class, as for classification; else labels lie in files of their own.
        single_class: labels of every class count as the only one that there is.
        kpt_shape: for pose the number of keypoints and of values of each, None where the YAML does not say.
        flip_idx: for pose which keypoint each becomes in a mirror, as written; empty where the YAML does not say.
    """

    yaml: Path
    root: Path
    splits: Mapping[str, tuple[Path, ...]]
    names: Mapping[int, str]
    channels: int
    download: str | None
    kpt_shape: tuple[int, ...] | None = None
    labels: str = "labels"
    by_folder: bool = False
    single_class: bool = False
    flip_idx: tuple[Any, ...] = ()

    @property
    def undivided(self) -> bool:
        """Whether it is images alone, a folder or a list of them, without a description or splits."""
        return self.splits.get("train") == (self.yaml,)

    @property
    def sources(self) -> tuple[Path, ...]:
        """Those of all splits."""
        return tuple(source for sources in self.splits.values() for source in sources)


def load_dataset(path: Path, datasets_dir: Path | None = None) -> Dataset:
    """Read a dataset YAML; no image is looked at.

    Args:
        path: the YAML.
        datasets_dir: where Ultralytics keeps its data sets; a relative `path` key is looked for there last.

    Raises:
        InputError: the file is missing, is not a YAML mapping, or a key has a value of the wrong kind.
    """
    path = path.absolute()
    content = read_mapping(path)
    root = _root(content.get("path"), path, datasets_dir)
    splits = _splits(content, root, path)
    return Dataset(
        yaml=path,
        root=root,
        splits=splits,
        names=_names(content, path),
        channels=_integer(content.get("channels", 3), "channels", path, MAX_CHANNELS),
        download=None if content.get("download") is None else str(content["download"]),
        labels=_label_folder(content.get("labels"), splits, root),
        kpt_shape=_kpt_shape(content.get("kpt_shape"), path),
        flip_idx=tuple(mirrored) if isinstance(mirrored := content.get("flip_idx"), list) else (),
    )


def load_folder(folder: Path) -> Dataset:
    """Read a folder in place of a YAML: classes below `train` and `val`, the YAML in it, or images alone.

    Raises:
        InputError: there is none of them, or more than one YAML.
    """
    folder = folder.absolute()
    classes = class_folders(folder)
    if classes:
        names = sorted({entry.name for entry in own_folders(next(iter(classes.values())))})
        splits = {split: (place,) for split, place in classes.items()}
        return Dataset(folder, folder, splits, dict(enumerate(names)), 3, None, by_folder=True)
    described = yaml_in(folder)
    if len(described) > 1:
        raise InputError(f"{folder} has several YAMLs ({', '.join(y.name for y in described)})", "give one of them")
    if described:
        return load_dataset(described[0])
    splits = {split: (place,) for split, place in image_folders(folder).items()}
    if not splits and not _images_in_folder(folder):
        raise InputError(f"{folder} has no images in it", "give a dataset YAML, or a folder with images")
    return Dataset(folder, folder, splits or {"train": (folder,)}, {}, 3, None)


def load_list(listing: Path) -> Dataset:
    """Read a `.txt` with one image path per line in place of a YAML: enough to calibrate with."""
    listing = listing.absolute()
    return Dataset(listing, listing.parent, {"train": (listing,)}, {}, 3, None)


def image_list(dataset: Dataset, split: str) -> tuple[Path, ...]:
    """Every image of a split: sorted by path, each once, hidden files left out; of folders of classes what is in one.

    Raises:
        InputError: there is no such split, a path of it does not exist, there is no image in it, or one is no file.
    """
    sources = dataset.splits.get(split)
    if sources is None:
        there = ", ".join(dataset.splits) or "none"
        raise InputError(
            f"{dataset.yaml} has no split '{split}' (splits in it: {there})", _missing_split(dataset, split)
        )
    found = {image for source in sources for image in _images_of(source, dataset, split)}
    if dataset.by_folder:
        found = {image for image in found if class_of(image, sources)}
    if not found:
        where = ", ".join(str(source) for source in sources)
        raise InputError(
            f"no images in split '{split}' of {dataset.yaml} ({where})",
            f"put images there ({', '.join(sorted(IMAGE_SUFFIXES))}) or correct the path",
        )
    images = tuple(sorted(found))
    for image in images:
        if kind := special_kind(image):  # whoever opens it waits for ever
            raise InputError(f"image {image} is {kind}, not a file", "remove it")
    return images


def class_of(image: Path, sources: Sequence[Path]) -> str:
    """The folder of classes that an image is in, however deep; "" of an image beside such folders."""
    for source in sources:
        if source in image.parents:
            below = image.relative_to(source).parts
            return below[0] if len(below) > 1 and not any(is_foreign(part) for part in below[:-1]) else ""
    return ""


def _missing_split(dataset: Dataset, split: str) -> str:
    """What to do about a split that is not there, in terms of what was given."""
    if dataset.yaml.suffix == ".txt":
        return "add --eval-data, for which other images are enough, or --no-eval"
    if dataset.yaml.is_dir():
        return "give a dataset YAML with it, other images (--eval-data), or a folder that has one; or --no-eval"
    return f"add a line '{split}: <folder, list of folders or .txt>' or give another data set"


def overlap(a: Sequence[Path], b: Sequence[Path]) -> tuple[Path, ...]:
    """The images of `a` whose bytes are also those of an image of `b`, in the order of `a`.

    Raises:
        InputError: an image cannot be read.
    """
    same_path = set(b)
    b_by_size: dict[int, list[Path]] = {}
    for image in b:
        b_by_size.setdefault(_size(image), []).append(image)
    digests: dict[int, set[bytes]] = {}
    shared: list[Path] = []
    for image in a:
        if image in same_path:
            shared.append(image)
            continue
        size = _size(image)
        if size not in b_by_size:
            continue
        if size not in digests:
            digests[size] = {_digest(other) for other in b_by_size[size]}
        if _digest(image) in digests[size]:
            shared.append(image)
    return tuple(shared)


def fingerprint(images: Sequence[Path]) -> str:
    """32 hex digits that change with any name, byte or member, not with the order or the place of the folder.

    Raises:
        InputError: an image cannot be read.
    """
    paths = [image.absolute() for image in images]
    base = os.path.commonpath([image.parent for image in paths]) if paths else ""
    total = hashlib.blake2b(digest_size=16)
    for name, image in sorted((image.relative_to(base).as_posix(), image) for image in paths):
        total.update(name.encode("utf-8", "surrogateescape") + b"\0" + _digest(image))
    return total.hexdigest()


def _root(value: Any, yaml: Path, datasets_dir: Path | None) -> Path:
    if not value:
        return yaml.parent
    if not _is_path(value):
        raise _wrong_kind("path", value, "a folder", yaml)
    given = Path(value)
    candidates = [yaml.parent / given, Path.cwd() / given]
    if datasets_dir is not None:
        candidates.append(datasets_dir / given)
    return _resolved(next((folder for folder in candidates if os.path.exists(folder)), candidates[0]))


# os.path.exists rather than Path.exists throughout: below an unreadable folder it says no instead of raising.
def _splits(content: Mapping[str, Any], root: Path, yaml: Path) -> dict[str, tuple[Path, ...]]:
    splits: dict[str, tuple[Path, ...]] = {}
    for split in SPLITS:
        key = "validation" if split == "val" and "val" not in content else split
        value = content.get(key)
        if not value:
            continue
        sources = [value] if isinstance(value, str) else value
        if not isinstance(sources, list) or not all(map(_is_path, sources)):
            raise _wrong_kind(key, value, "a path or a list of paths", yaml)
        splits[split] = tuple(_source(source, root) for source in sources)
    return splits


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_PATH


def _shown(path: Path) -> str:
    text = str(path)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN // 2]}…{text[-MAX_SHOWN // 2 :]}"


def _source(text: str, root: Path) -> Path:
    source = _resolved(root / text)
    # Exports of labelling services write "../train/images" for a folder that lies beside the YAML.
    if not os.path.exists(source) and text.startswith("../"):
        return _resolved(root / text[3:])
    return source


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))  # Path.resolve raises where links go round in a circle


def _names(content: Mapping[str, Any], yaml: Path) -> dict[int, str]:
    names, classes = content.get("names"), content.get("nc")
    if names is None and classes is None:
        raise InputError(f"dataset {yaml} has neither 'names' nor 'nc'", "add 'names:' with the class names")
    if names is None:
        names = [f"class_{i}" for i in range(_integer(classes, "nc", yaml, MAX_CLASSES))]
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        numbered = {whole(index): str(name) for index, name in names.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        raise _wrong_kind("names", names, "a list of names or a map from index to name", yaml) from None
    if not numbered or sorted(numbered) != list(range(len(numbered))):
        raise InputError(f"'names' in {yaml} are not numbered 0 to n-1", "number the classes without gaps")
    if classes is not None and _integer(classes, "nc", yaml, MAX_CLASSES) != len(numbered):
        raise InputError(f"{yaml} has {len(numbered)} names but 'nc: {classes}'", "make them agree")
    return dict(sorted(numbered.items()))


def _label_folder(value: Any, splits: Mapping[str, tuple[Path, ...]], root: Path) -> str:
    """Our key `labels:`, a folder beside `images`; other tools' key of that name means something else."""
    if not isinstance(value, str) or not value or os.path.basename(value) != value:
        return "labels"
    for source in (source for sources in splits.values() for source in sources):
        head, found, _ = f"{source}{os.sep}".rpartition(f"{os.sep}images{os.sep}")
        beside = head if found else root if source.suffix == ".txt" else None
        if beside is not None and os.path.isdir(os.path.join(beside, value)):
            return value
    return "labels"


def _kpt_shape(value: Any, yaml: Path) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong_kind("kpt_shape", value, "the number of keypoints and 2 or 3 values of each", yaml)
    return tuple(_integer(size, "kpt_shape", yaml, MAX_POINTS) for size in value)


def _integer(value: Any, key: str, yaml: Path, most: int) -> int:
    try:
        number = whole(value)
        if not 1 <= number <= most:
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise _wrong_kind(key, value, f"a whole number of 1 to {most}", yaml) from None
    return number


def _wrong_kind(key: str, value: Any, expected: str, yaml: Path) -> InputError:
    shown = " ".join(repr(value).split())
    return InputError(f"'{key}' in {yaml} is {shown[:60]}", f"it has to be {expected}")


def _images_of(source: Path, dataset: Dataset, split: str) -> list[Path]:
    if os.path.isdir(source):
        if source.parent == source:
            raise InputError(f"split '{split}' of {dataset.yaml} is every file there is", "give a folder of images")
        return _images_in_folder(source)
    if not os.path.exists(source):
        remedy = "correct the path in the YAML"
        if dataset.download:
            remedy += " or fetch the data yourself (its 'download:' key is never run)"
        raise InputError(f"split '{split}' of {dataset.yaml}: {_shown(source)} does not exist", remedy)
    if source.suffix.lower() in IMAGE_SUFFIXES:
        return [source]
    return _images_in_list(source, dataset.root)


def _images_in_folder(folder: Path) -> list[Path]:
    images = (path for path in files_below(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    return list(without_masks(images, folder))


def _images_in_list(listing: Path, root: Path) -> list[Path]:
    try:
        lines = read_text(listing, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = f" ({error})" if isinstance(error, UnfitFileError) else ""
        raise InputError(f"{listing} cannot be read as a list of images{reason}", "give one path per line") from error
    written = [Path(line.strip()) for line in lines]
    images = [_listed(path, listing, root) for path in written if path.suffix.lower() in IMAGE_SUFFIXES]
    missing = [image for image in images if not os.path.isfile(image)]
    if missing:
        raise InputError(
            f"{listing} names {len(missing)} images that do not exist, the first is {_shown(missing[0])}",
            "correct the list",
        )
    return images


def _listed(path: Path, listing: Path, root: Path) -> Path:
    bases = (listing.parent, root, Path.cwd())
    return next((base / path for base in bases if os.path.isfile(base / path)), bases[0] / path)


def _size(image: Path) -> int:
    try:
        return image.stat().st_size
    except OSError as error:
        raise _unreadable(image, error) from error


def _digest(image: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open_given(image) as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError as error:
        raise _unreadable(image, error) from error
    return digest.digest()


def _unreadable(image: Path, error: OSError) -> InputError:
    return InputError(f"image {image} cannot be read ({error.strerror})", "restore or remove it")


def label_path(image: Path, folder: str = "labels") -> Path:
    """Where Ultralytics looks for an image's labels: the last `images` folder in its path becomes `labels`.

    With a key `labels:` in its YAML, which is ours, images can have labels for several tasks in other folders.
    """
    head, found, tail = str(image.absolute()).rpartition(f"{os.sep}images{os.sep}")
    place = f"{head}{os.sep}{folder}{os.sep}{tail}" if found else str(image)
    return Path(place).with_suffix(".txt")
