"""A few inputs and what each artifact found in them, beside the artifacts, so that a file can be tried again later.

Images are kept as the network saw them (`samples.npz`), so that neither the data set nor the checkpoint is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from qexport.data.input_form import UNIT
from qexport.errors import InputError
from qexport.files import write_whole
from qexport.verification.manifest import SAMPLES

if TYPE_CHECKING:
    from qexport.backends import Runner
    from qexport.programs.program import Program

SCHEMA = 1
FILE = SAMPLES
IMAGES = 2
"""Batches that are kept."""
SAME_BOX = 0.8
"""Intersection over union from which two boxes are the same detection."""

Found = NDArray[np.float32]
"""(n, 6): number of the image, corners x1 y1 x2 y2 in pixels of the input, class; a classifier gives no corners."""


@dataclass(frozen=True)
class Layout:
    """What it takes to read detections from an output.

    Attributes:
        batch: images in one run.
        final: the output's rows are detections.
        classes: how many there are.
        turned: boxes have an angle.
        classifier: the output is a probability for each class.
    """

    batch: int
    final: bool
    classes: int
    turned: bool
    classifier: bool


@dataclass(frozen=True)
class Samples:
    """Images, and the confident detections of each artifact in them.

    Attributes:
        images: (n, height, width, 3) uint8 RGB, n a multiple of the batch.
        found: artifact's file name → detections.
    """

    layout: Layout
    images: NDArray[np.uint8]
    found: Mapping[str, Found] = field(default_factory=dict)

    @property
    def batches(self) -> list[NDArray[np.float32]]:
        """The network's inputs: (batch, 3, height, width) in 0..1."""
        return batches_of(self.images, self.layout.batch)


def batches_of(images: NDArray[np.uint8], size: int) -> list[NDArray[np.float32]]:
    """Inputs of `size` images each, (size, 3, height, width) in 0..1, from (n, height, width, 3) uint8 RGB."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    return [planes[start : start + size] for start in range(0, len(planes), size)]


def layout_of(program: Program) -> Layout:
    """The layout of a program's decoded output."""
    turned = program.further.kind == "angles"
    return Layout(program.batch, program.final, program.classes, turned, program.head == "classifier")


def take_samples(
    program: Program, paths: Sequence[Path], runners: Mapping[str, Callable[[], Runner]]
) -> Samples | None:
    """Run every artifact on the first readable images; None where there is none.

    There is none either where nobody knows what the outputs mean, or the inputs are not what these bytes say.

    Args:
        runners: artifact's file name → what loads it.
    """
    from qexport.verification.verify import sample_inputs

    if program.head == "unknown" or program.form != UNIT:
        return None
    inputs = sample_inputs(paths, program, IMAGES)
    if not inputs:
        return None
    layout = layout_of(program)
    # The inputs were made of bytes, so that rounding gives the same bytes.
    images = np.rint(np.concatenate(inputs) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    samples = Samples(layout, images)
    return Samples(layout, images, {name: detect(load(), samples.batches, layout) for name, load in runners.items()})


def detect(runner: Runner, batches: Sequence[NDArray[np.float32]], layout: Layout) -> Found:
    """What a runner finds, as `verify.detections` chooses: the confident, or where there are none the best few."""
    import torch

    from qexport.verification.verify import detections

    rows: list[Found] = [np.zeros((0, 6), np.float32)]
    number = 0
    for batch in batches:
        output = torch.from_numpy(np.ascontiguousarray(runner.run(batch)))
        if layout.classifier:
            answers = output.argmax(dim=1).numpy()
            each = [(np.zeros((1, 4), np.float32), np.array([answer], np.float32)) for answer in answers]
        else:
            pairs = detections(output, layout.final, layout.classes, layout.turned)
            each = [(boxes.numpy(), classes.numpy()) for boxes, classes in pairs]
        for boxes, classes in each:
            numbers = np.full((len(boxes), 1), number)
            rows.append(np.concatenate((numbers, boxes, classes[:, None]), axis=1).astype(np.float32))
            number += 1
    return np.concatenate(rows)


def shared(one: Found, other: Found, classifier: bool = False) -> float | None:
    """Share of detections that two artifacts have in common, 0..1; None where neither finds anything."""
    import torch

    from qexport.measurement.accuracy import agreement

    if classifier:
        return float(np.mean(one[:, 5] == other[:, 5])) if len(one) == len(other) > 0 else 0.0
    paired = total = 0
    for number in np.unique(np.concatenate((one[:, 0], other[:, 0]))):
        a, b = (torch.from_numpy(found[found[:, 0] == number]) for found in (one, other))
        both, every = agreement((a[:, 1:5], a[:, 5]), (b[:, 1:5], b[:, 5]), SAME_BOX)
        paired, total = paired + both, total + every
    return paired / total if total else None


def save_samples(samples: Samples, path: Path) -> None:
    """Write the file whole or not at all; equal samples give equal files."""
    head = json.dumps({"schema": SCHEMA, **asdict(samples.layout)})
    arrays: dict[str, Any] = {f"found/{name}": found for name, found in samples.found.items()}
    with write_whole(path) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, head=np.array(head), images=samples.images, **arrays)


def load_samples(path: Path) -> Samples:
    """Read the file.

    Raises:
        InputError: it is none, or of a later version.
    """
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as content:
            head = json.loads(str(content["head"]))
            if head.pop("schema") != SCHEMA:
                raise ValueError("of another version")
            names = [name for name in content.files if name.startswith("found/")]
            found = {name.removeprefix("found/"): content[name] for name in names}
            return Samples(Layout(**head), content["images"], found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} holds no samples ({error})", "give the samples.npz of qexport") from error
