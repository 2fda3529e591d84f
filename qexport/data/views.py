"""Other pictures of a few images, so that what is measured on them is not of those few alone.

Ranges from four images clip what a fifth one shows, and of a pass's two images there is nothing that two can prove.
The pictures are files, so that they go wherever image files go.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from qexport.data.augmentation import Augmentation, Pixels, augment
from qexport.data.images import COLOURS, MIN_SIDE, read_image
from qexport.data.input_form import InputSpec
from qexport.errors import InputError

ENOUGH = 32
"""Images, from which on they are seen as they are; fewer are filled up with views to as many."""
STRENGTH = Augmentation(plain=0.0, mosaic=0.5, flip=0.5, scale=(0.5, 1.5))
"""What is done to them; none is left as it was, as the images themselves are there, too."""
MAX_STEM = 200
"""Bytes of an image's name that its views have: names of files have 255."""
HELD = 8
"""Images that are kept in memory while views are made."""


@contextmanager
def with_views(images: Sequence[Path], wanted: InputSpec, enough: int = ENOUGH) -> Iterator[tuple[Path, ...]]:
    """Give the images and, of fewer than `enough`, so many views of those that can be read that there are as many.

    A view is one image mirrored, scaled, cut, in other colours, or a mosaic of them, of the network's size. They
    depend on the images alone, in whatever order those are given, and are there as long as the block runs.
    """
    given, count = tuple(images), view_count(len(images), wanted, enough)
    if not count:
        yield given
        return
    with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
        yield (*given, *_views(given, wanted, count, Path(folder)))


def view_count(images: int, wanted: InputSpec, enough: int = ENOUGH) -> int:
    """How many views are made of so many images, where all can be read; none of a size that no image may have."""
    return max(enough - images, 0) if images and min(wanted.imgsz) >= MIN_SIDE else 0


def _views(images: Sequence[Path], wanted: InputSpec, count: int, folder: Path) -> list[Path]:
    """Write views of images in turn."""
    read = lru_cache(HELD)(lambda path: read_image(path, wanted.channels))
    usable = [path for path in sorted(images, key=lambda path: (path.name, path)) if _readable(path, wanted.channels)]
    made: list[Path] = []
    for number, path in enumerate(islice(cycle(usable), count)):
        rng = np.random.default_rng((len(usable), number))

        def others(rng: np.random.Generator = rng) -> list[Pixels]:
            return [read(usable[index]) for index in rng.integers(len(usable), size=3)]

        view = augment(read(path), others, wanted, STRENGTH, rng)
        name = os.fsdecode(os.fsencode(path.stem)[:MAX_STEM])
        made.append(_written(view, folder / f"{name}-view{number:02d}"))
    return made


def _readable(path: Path, channels: int) -> bool:
    try:
        read_image(path, channels)
    except InputError:
        return False
    return True


def _written(picture: Pixels, path: Path) -> Path:
    """Write a picture so that `read_image` reads the same bytes: as PNG, or with every band as a page of a TIFF."""
    import cv2

    if picture.shape[2] in (1, COLOURS):
        path = path.with_name(f"{path.name}.png")
        encoded = cv2.imencode(".png", np.ascontiguousarray(picture), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1]
    else:
        path = path.with_name(f"{path.name}.tiff")
        pages = [np.ascontiguousarray(band) for band in picture.transpose(2, 0, 1)]
        encoded = cv2.imencodemulti(".tiff", pages)[1]
    path.write_bytes(encoded.tobytes())
    return path
