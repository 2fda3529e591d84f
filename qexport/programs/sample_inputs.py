"""Images that artifacts are tried on."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qexport.programs.program import Program


def sample_inputs(paths: Sequence[Path], program: Program, count: int = 4) -> list[NDArray[np.float32]]:
    """Read up to `count` batches of different images, each of the program's shape; a short last one is filled up."""
    return [given for _, given in named_inputs(paths, program, count)]


def named_inputs(
    paths: Sequence[Path], program: Program, count: int = 4
) -> list[tuple[tuple[Path, ...], NDArray[np.float32]]]:
    """The same, each with the files that its images are from."""
    batches = _read(paths, program, count)
    applied = program.input.form.applied
    return [
        (tuple(path for path, _ in batch), np.stack([applied(image) for image in _pixels(batch)])) for batch in batches
    ]


def sample_pixels(paths: Sequence[Path], program: Program, count: int) -> list[NDArray[np.float32]]:
    """The same before the network's own form of pixels: (n, channels, height, width) in 0..1, colours RGB."""
    return [np.stack(_pixels(batch)) for batch in _read(paths, program, count)]


Read = list[tuple[Path, NDArray[np.float32]]]


def _read(paths: Sequence[Path], program: Program, count: int) -> list[Read]:
    """Up to `count` batches of as many images as the program takes, the last one repeating itself."""
    from qexport.data.images import stream

    size = program.input.batch
    read = list(islice(stream(paths, program.input.imgsz, lambda *_: None, *program.input.image_form), count * size))
    batches = [read[i : i + size] for i in range(0, len(read), size)]
    return [[batch[i % len(batch)] for i in range(size)] for batch in batches]


def _pixels(batch: Read) -> list[NDArray[np.float32]]:
    return [image for _, image in batch]
