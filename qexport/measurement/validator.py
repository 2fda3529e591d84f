"""Ultralytics' validators around a runner of ours.

Data loading, non-maximum suppression, matching and metrics are Ultralytics'; the forward pass is a `Runner`, so that a
format that Ultralytics cannot load is scored as well. The steps are those of `BaseValidator.__call__`
(ultralytics/engine/validator.py, 8.4) for an exported file, whose input has a fixed size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from qexport.backends.protocol import Runner
from qexport.compat.patches import FONT_CHECK, replaced
from qexport.compat.torchvision import repair
from qexport.data.evaluation_set import EvaluationSet
from qexport.detections.layout import HeadLayout
from qexport.tasks import Scoring
from qexport.verification.finite import NotFiniteError

STRIDE = 32
"""Of a head without levels; no image is padded to it."""


class NothingReadableError(Exception):
    """A validator finds no image that it can read; `reason` is what it raised."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class Recorder(Protocol):
    """Keeps what is found on the way."""

    def record(self, validator: Any, predictions: Any, batch: dict[str, Any]) -> None:
        """Take a batch's predictions, which the validator may change afterwards."""
        ...

    def record_scores(self, validator: Any) -> None:
        """Take what the validator has just added to its statistics."""
        ...


@dataclass(frozen=True)
class Model:
    """A runner in the place of the model that a validator runs.

    Attributes:
        batch: images in one run; fewer are filled up with zeros.
        names: class index → its number: figures do not depend on what classes are called.
        end2end: the output's rows are detections, and are not suppressed.
    """

    runner: Runner
    batch: int
    names: dict[int, str]
    end2end: bool

    def __call__(self, images: Tensor) -> Tensor | list[Tensor]:
        """Run up to `batch` images (n, channels, height, width) in 0..1: the output, or all where there are several."""
        given = np.ascontiguousarray(images.numpy())
        if len(given) < self.batch:
            given = np.concatenate((given, np.zeros((self.batch - len(given), *given.shape[1:]), given.dtype)))
        outputs = [np.require(output, requirements="W") for output in self.runner(given)]  # as torch wants
        found = [torch.from_numpy(output)[: len(images)] for output in outputs]
        return found[0] if len(found) == 1 else found


def model_of(runner: Runner, layout: HeadLayout, batch: int) -> Model:
    """What a validator asks of the model that is behind a runner."""
    return Model(runner, batch, {number: str(number) for number in range(layout.classes)}, layout.end2end)


def make_validator(
    scoring: Scoring, task: str, data: EvaluationSet, layout: HeadLayout, batch: int, folder: Path
) -> Any:
    """A validator of Ultralytics with its data loader: images of the layout's size, in the order of the data set.

    Args:
        batch: images that are loaded at a time.
        folder: for what it writes.
    """
    repair()  # validators import torchvision
    from ultralytics.data.utils import check_cls_dataset, check_det_dataset

    base: Any = getattr(import_module(scoring.module), scoring.validator)
    arguments = {
        "task": task,
        "mode": "val",
        "data": str(data.yaml),
        "batch": batch,
        "rect": False,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "verbose": False,
        "single_cls": data.single_class,
    }
    validator = base(save_dir=folder, args=arguments)
    validator.args.imgsz = list(layout.imgsz)  # the constructor takes squares only
    validator.training = False
    validator.args.max_det = max(validator.args.max_det, data.most_objects)  # as it does itself for the whole set
    validator.device = torch.device("cpu")
    validator.stride = max(layout.strides, default=STRIDE)
    with replaced(FONT_CHECK, lambda *_: None):
        read = check_cls_dataset if task == "classify" else check_det_dataset
        validator.data = read(validator.args.data)
    return validator


@torch.inference_mode()
def validate(
    validator: Any,
    model: Model,
    recorder: Recorder,
    on_image: Callable[[], None],
    labelled: bool = True,
    links: Mapping[str, Path] = {},
) -> None:
    """Run the whole data set in its own order, and let the validator match what is found with the labels.

    Args:
        labelled: there are labels.
        on_image: called after each image, for a progress bar.
        links: file name of an image in the data set → the file that a refusal names.

    Raises:
        VerificationError: the runner refuses its outputs, as a `FiniteRunner` does.
        NothingReadableError: there is no image that the validator can read.
    """

    def named(batch: dict[str, Any], number: int, place: int) -> str:
        samples = getattr(validator.dataloader.dataset, "samples", None)  # of a classifier: batches have no names
        files = [each[0] for each in samples[number * validator.args.batch :]] if samples else batch["im_file"]
        file = files[min(place, len(files) - 1)]  # a batch may be filled up
        return str(links.get(Path(file).name, file))

    validator.names = model.names
    try:
        validator.dataloader = _in_order(validator)
    except (RuntimeError, FileNotFoundError) as error:  # the one of images in one folder, the other of classes
        raise NothingReadableError(error) from error
    validator.init_metrics(model)
    for number, loaded in enumerate(validator.dataloader):
        validator.batch_i = number
        batch = validator.preprocess(loaded)
        try:
            outputs = model(batch["img"])
        except NotFiniteError as error:
            raise error.named(named(batch, number, error.place)) from error
        with _one_thread():
            predictions = validator.postprocess(outputs)
            recorder.record(validator, predictions, batch)
            if labelled:
                validator.update_metrics(predictions, batch)
                recorder.record_scores(validator)
        for _ in predictions:
            on_image()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute in one thread: how it shares work among several decides on the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _in_order(validator: Any) -> Any:
    """The validator's data loader in the order of the data set; a classifier's own shuffles."""
    from ultralytics.data import build_dataloader

    batch = validator.args.batch
    dataset = validator.get_dataloader(validator.data[validator.args.split], batch).dataset
    return build_dataloader(dataset, batch, workers=0, shuffle=False, rank=-1, device=validator.device)
