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
    batches = sample_pixels(paths, program, count)
    return [np.stack([program.input.form.applied(image) for image in batch]) for batch in batches]


def sample_pixels(paths: Sequence[Path], program: Program, count: int) -> list[NDArray[np.float32]]:
    """The same before the network's own form of pixels: (n, channels, height, width) in 0..1, colours RGB."""
    from qexport.data.images import stream

    read = stream(paths, program.input.imgsz, lambda *_: None, *program.input.image_form)
    pixels = [image for _, image in islice(read, count * program.input.batch)]
    batches = [pixels[i : i + program.input.batch] for i in range(0, len(pixels), program.input.batch)]
    return [np.stack([batch[i % len(batch)] for i in range(program.input.batch)]) for batch in batches]
