"""The layout of a folder given instead of a YAML: folders of classes, images with labels, or images alone."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qexport.errors import InputError
from qexport.system.given_files import open_given

SPLIT_FOLDERS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "validation", "valid", "test"),
}
"""Split → names of its folder, the first that is there counts, as for Ultralytics."""
OF_SYSTEMS = frozenset({"@eaDir", "__MACOSX", "__pycache__", "lost+found", "$RECYCLE.BIN", "System Volume Information"})
"""Folders that systems and tools leave behind; hidden ones come besides."""
OF_DATA_SETS = frozenset({"images", "labels", "masks", "mask", "annotations", "labelTxt", "depth"})
"""Folders of one data set, whose names are no classes."""
BESIDE_IMAGES = OF_DATA_SETS - {"images"}
MASK_ENDINGS = ("_mask", "-mask", ".mask")
"""Of the name of a mask that lies beside its image."""
MASK_MODES = ("1", "L", "P", "I", "I;16")
"""Pillow's names of images with one number a pixel."""
MAX_ENTRIES = 2_000_000
"""Files and folders below one: more than the largest public data set has."""
SYSTEMS_OWN = ("/proc", "/sys", "/dev")
"""Folders whose files are made as they are read, without end."""
YAMLS = (".yaml", ".yml")


def own_folders(folder: Path) -> list[Path]:
    """Folders in a folder, sorted, without those of systems and tools."""
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    return [entry for entry in entries if entry.is_dir() and not is_foreign(entry.name)]


def is_foreign(name: str) -> bool:
    """Whether a folder is one of a system or tool: nobody's data."""
    return name.startswith(".") or name in OF_SYSTEMS


def class_folders(folder: Path) -> dict[str, Path]:
    """Split → its folder, of splits that have folders of classes."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        for place in (folder / name for name in names):
            inside = {entry.name for entry in own_folders(place)}
            if split not in found and inside and not inside <= OF_DATA_SETS:
                found[split] = place
    return found


def image_folders(folder: Path) -> dict[str, Path]:
    """Split → its folder of images, of a data set with labels: `train/images` or `images/train`."""
    found = {}
    for split, names in SPLIT_FOLDERS.items():
        places = [place for name in names for place in (folder / name / "images", folder / "images" / name)]
        there = next((place for place in places if place.is_dir()), None)
        if there is not None:
            found[split] = there
    return found


def yaml_in(folder: Path) -> tuple[Path, ...]:
    """YAMLs of a folder that may describe its data set: `data.yaml` alone if there is one."""
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in YAMLS and path.is_file())
    usual = [path for path in found if path.stem in ("data", "dataset")]
    return tuple(usual[:1] or found)


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and in those below it, linked ones too, each folder once; hidden ones are left out.

    Raises:
        InputError: there are more than `MAX_ENTRIES`, or a folder is the system's own (`SYSTEMS_OWN`).
    """
    own = _devices_of_system()
    seen: set[tuple[int, int]] = set()
    entries = 0
    # Ultralytics' glob follows linked folders, too, but goes round in them without end.
    for place, folders, files in os.walk(folder, followlinks=True):
        entries += len(folders) + len(files)
        if entries > MAX_ENTRIES:
            raise InputError(f"{folder} has more than {MAX_ENTRIES:,} files below it", "give a folder of images")
        state = _state(place)
        if state is None or (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        if state.st_dev in own:
            raise InputError(f"{place} is of the system, no folder of images", "give a folder of images")
        seen.add((state.st_dev, state.st_ino))
        shown = [name for name in folders if not name.startswith(".")]
        # A folder that is also linked to has its own name.
        folders[:] = sorted(shown, key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        yield from (Path(place, name) for name in files if not name.startswith("."))


def _devices_of_system() -> set[int]:
    """Numbers of the file systems that are no files on any medium; what else is mounted below them is not meant."""
    states = [_state(place) for place in (*SYSTEMS_OWN, os.sep)]
    *own, root = (state.st_dev if state else -1 for state in states)
    return set(own) - {root, -1}


def _state(place: str) -> os.stat_result | None:
    try:
        return os.stat(place)
    except OSError:
        return None


def without_masks(images: Iterable[Path], root: Path) -> Iterator[Path]:
    """Leave out masks and tools' folders among the images of a data set."""
    every = list(images)
    stems = {os.path.join(image.parent, image.stem) for image in every}
    parents: dict[Path, bool] = {}
    for image in every:
        if image.parent not in parents:
            parents[image.parent] = _is_beside(image.parent.relative_to(root), root)
        if not parents[image.parent] and not _is_mask(image, stems):
            yield image


def _is_beside(relative: Path, root: Path) -> bool:
    """Whether a folder holds no images but what belongs to images that lie in a folder beside it."""
    place = root
    for part in relative.parts:
        if is_foreign(part) or (part in BESIDE_IMAGES and (place / "images").is_dir()):
            return True
        place /= part
    return False


def _is_mask(image: Path, stems: set[str]) -> bool:
    """Whether an image is named after another one beside it and holds class numbers."""
    ending = next((ending for ending in MASK_ENDINGS if image.stem.endswith(ending)), "")
    if not ending or os.path.join(image.parent, image.stem[: -len(ending)]) not in stems:
        return False
    from PIL import Image

    try:
        with open_given(image) as stream, Image.open(stream) as opened:
            return opened.mode in MASK_MODES
    except Exception:  # Pillow raises anything of a damaged one; who reads it says so
        return False
