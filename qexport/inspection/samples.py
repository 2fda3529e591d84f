"""A few inputs and what each artifact found in them, beside the artifacts, so that a file can be tried again later.

Images are kept as the network saw them (`samples.npz`), so that neither the data set nor the checkpoint is needed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.artifact import SAMPLES
from qexport.data.images import COLOURS, PREPROCESS
from qexport.data.input_form import UNIT, InputForm
from qexport.detections.agreement import Findings, findings
from qexport.detections.detections import Detections
from qexport.detections.layout import HeadLayout, from_json, to_json
from qexport.detections.numpy_decode import detected_format
from qexport.errors import InputError
from qexport.system.files import write_whole
from qexport.system.given_files import open_arrays
from qexport.system.json_form import from_plain, parse_json

if TYPE_CHECKING:
    from qexport.backends.protocol import Runner
    from qexport.programs.program import Program

SCHEMA = 2
FILE = SAMPLES
IMAGES = 2
"""Batches that are kept."""


@dataclass(frozen=True)
class SampleInput:
    """How images become the network's inputs.

    Attributes:
        batch: images in one run.
        preprocess: how they are brought to size, an entry of `qexport.data.images.PREPROCESS`.
        form: what the network wants of its pixels.
    """

    batch: int
    preprocess: str = "letterbox"
    form: InputForm = UNIT


@dataclass(frozen=True)
class Samples:
    """Images, and what each artifact found in them.

    Attributes:
        images: (n, height, width, channels) uint8, colours RGB, n a multiple of the batch.
        found: artifact's file name → findings in every image; empty where an earlier version wrote the file, which
            kept no scores.
    """

    layout: HeadLayout
    input: SampleInput
    images: NDArray[np.uint8]
    found: Mapping[str, tuple[Findings, ...]] = field(default_factory=dict)

    @property
    def batches(self) -> list[NDArray[np.float32]]:
        """The network's inputs, (batch, channels, height, width) unless it wants channels last."""
        return batches_of(self.images, self.input)


def batches_of(images: NDArray[np.uint8], given: SampleInput) -> list[NDArray[np.float32]]:
    """Inputs of one run each from (n, height, width, channels) uint8; a last one that is not full is left out."""
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
    each = [given.form.applied(image) for image in planes]
    return [np.stack(each[i : i + given.batch]) for i in range(0, len(each) - given.batch + 1, given.batch)]


def sample_images(program: Program, paths: Sequence[Path]) -> Samples | None:
    """The first readable images; None where there is none, or nobody knows what outputs mean."""
    from qexport.programs.sample_inputs import sample_pixels

    if program.layout.head == "unknown":
        return None
    pixels = sample_pixels(paths, program, IMAGES)
    if not pixels:
        return None
    # The pixels were made of bytes, so that rounding gives the same bytes.
    images = np.rint(np.concatenate(pixels) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    given = program.input
    return Samples(program.layout, SampleInput(given.batch, given.preprocess, given.form), images)


def detect(runner: Runner, batches: Sequence[NDArray[np.float32]], layout: HeadLayout) -> tuple[Findings, ...]:
    """What a runner finds in every image."""
    return tuple(findings(image, layout) for batch in batches for image in runner(batch)[0])


def save_samples(samples: Samples, path: Path) -> None:
    """Write the file whole or not at all; equal samples give equal files."""
    given = {**asdict(samples.input), "layout": to_json(samples.layout)}
    arrays = {
        f"{FOUND}{name}/{part}": array for name, each in samples.found.items() for part, array in _arrays(each).items()
    }
    with write_whole(path) as temporary, temporary.open("wb") as stream:
        head: Any = np.array(json.dumps({"schema": SCHEMA, **given}))
        np.savez_compressed(stream, head=head, images=samples.images, **arrays)


PARTS = {"boxes": "boxes", "scores": "scores", "classes": "classes", "extras": "further"}
"""Field of `Detections` → what the file calls it."""
FOUND = "found/"


def _arrays(found: Sequence[Findings]) -> dict[str, Any]:
    """Findings of all images as arrays: how many in each, one below the other."""
    each = [image.detections for image in found]
    parts = {key: np.concatenate([getattr(one, part) for one in each]) for part, key in PARTS.items()}
    return {"count": [len(one.scores) for one in each], "best": np.stack([image.scores for image in found]), **parts}


def _findings(content: Mapping[str, Any], name: str, box_format: str) -> tuple[Findings, ...]:
    count, best, *parts = (content[f"{FOUND}{name}/{part}"] for part in ("count", "best", *PARTS.values()))
    shapes, rows = [each.shape for each in parts], int(count.sum())
    extras = shapes[-1][-1] if shapes[-1] else 0
    if count.ndim != 1 or count.min(initial=0) < 0 or shapes != [(rows, 4), (rows,), (rows,), (rows, extras)]:
        raise ValueError(f"detections of the shapes {', '.join(map(str, shapes))}")
    split = (np.split(part, np.cumsum(count)[:-1]) for part in parts)
    return tuple(
        Findings(Detections(boxes, scores, classes, extras, box_format), every)
        for boxes, scores, classes, extras, every in zip(*split, best, strict=True)
    )


def load_samples(path: Path) -> Samples:
    """Read the file.

    Raises:
        InputError: it is none, or of a later version.
    """
    try:
        with open_arrays(path) as content:
            return _read(parse_json(str(content["head"])), content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no samples ({error})", "give the samples.npz of qexport") from error


def _read(head: dict[str, Any], content: Any) -> Samples:
    if head["schema"] == 1:
        return _earlier(head, content["images"])
    if head["schema"] != SCHEMA:
        raise ValueError("of another version")
    if head["form"].keys() - asdict(UNIT).keys():
        raise ValueError("of a later version")
    given = from_plain(SampleInput, head)
    images = content["images"]
    colours = images.shape[-1] if given.form == UNIT else COLOURS
    if given.batch < 1 or given.preprocess not in PREPROCESS or images.dtype != np.uint8:
        raise ValueError("of another form of input")
    if images.ndim != 4 or images.shape[3] != colours:
        raise ValueError(f"images of the shape {images.shape}")
    names = dict.fromkeys(key.removeprefix(FOUND).rpartition("/")[0] for key in content.files if key.startswith(FOUND))
    layout = from_json(head["layout"])
    found = {name: _findings(content, name, detected_format(layout)) for name in names}
    return Samples(layout, given, images, found)


def _earlier(head: Mapping[str, Any], images: NDArray[np.uint8]) -> Samples:
    """Read what versions before 2 wrote: images, and detections without scores, which nothing can be compared with."""
    layout = HeadLayout(
        strides=(),
        imgsz=(images.shape[1], images.shape[2]),
        classes=head["classes"],
        end2end=head["final"],
        extras="angles" if head["turned"] else "",
        head="classifier" if head["classifier"] else "",
    )
    return Samples(layout, SampleInput(head["batch"], layout.preprocess), images)
