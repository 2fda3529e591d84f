"""A shard of the evaluation images, which any process can score: the same batches, and so the same figures.

A run's images are scored shard by shard whether one process does them all or several do.
"""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.backends.registry import find_backend
from qexport.data.evaluation_set import EvaluationSet
from qexport.detections.layout import HeadLayout
from qexport.errors import VerificationError, first_line
from qexport.measurement.attempt import MAX_REASON
from qexport.measurement.recorder import AnswerRecorder, BoxRecorder, Detections, ImageRecord
from qexport.measurement.validator import NothingReadableError, make_validator, model_of, validate
from qexport.tasks import QUERIES, SCORING, Scoring
from qexport.verification.finite import not_finite


@dataclass(frozen=True)
class ShardRequest:
    """What is to be scored; can be pickled.

    Attributes:
        layout, task, batch, reference: see `qexport.measurement.accuracy.evaluate`.
        data: images and labels of this shard alone.
    """

    layout: HeadLayout
    task: str
    data: EvaluationSet
    batch: int = 1
    reference: Detections | None = None

    @property
    def scoring(self) -> Scoring:
        """How Ultralytics scores it: "queries" as it scores RT-DETR."""
        return QUERIES if self.layout.head == "queries" else SCORING[self.task]


@dataclass(frozen=True)
class ShardScores:
    """What a shard comes to.

    Attributes:
        records: of each image that the validator took, in its order.
        unread: those that it left out because it could not read them or their labels, and why.
        fault: what it raised where that is all of them.
    """

    records: tuple[ImageRecord, ...]
    unread: tuple[str, ...] = ()
    fault: Exception | None = None


@dataclass(frozen=True)
class RunnerRequest:
    """A file that another process loads: its bytes are part of what it is, as a path may get others.

    Attributes:
        format: name of its backend.
        threads: CPU threads of the runner: another number may round otherwise.
    """

    format: str
    path: Path
    sha256: str
    threads: int


def score_shard(runner: Runner, request: ShardRequest, on_image: Callable[[], None] = lambda: None) -> ShardScores:
    """Score what a runner finds in a shard.

    Args:
        on_image: called after each image, for a progress bar.

    Raises:
        QexportError: the runner refuses its outputs, as a `FiniteRunner` does.
    """
    data, layout, reference = request.data, request.layout, request.reference
    classifies = request.task == "classify"
    recorder = (
        AnswerRecorder(reference, data.links) if classifies else BoxRecorder(reference, data.links, request.scoring)
    )
    fault: Exception | None = None
    with tempfile.TemporaryDirectory(prefix="qexport-") as folder:
        validator = make_validator(request.scoring, request.task, data, layout, request.batch, Path(folder))
        try:
            validate(validator, model_of(runner, layout, request.batch), recorder, on_image, data.labelled, data.links)
        except NothingReadableError as error:
            fault = error.reason
    records = recorder.records
    known = {each.name for each in records}
    return ShardScores(records, tuple(left_out(data, link) for link in data.links if link not in known), fault)


def left_out(data: EvaluationSet, link: str) -> str:
    """An image's name, and why Ultralytics leaves it out."""
    from ultralytics.data.utils import check_image

    root = data.yaml if data.yaml.is_dir() else data.yaml.parent
    reason = "its labels cannot be used"
    try:
        check_image(str(next(root.rglob(glob.escape(link)))))
    except ImportError:  # Ultralytics looks for a decoder of HEIF where none knows the file
        reason = "it is corrupt or not an image"
    except Exception as error:  # whatever a decoder raises of such a file
        reason = first_line(error).replace(str(root), "") or type(error).__name__
    return f"{data.links[link].name} ({reason[:MAX_REASON]})"


@dataclass(frozen=True)
class Loaded:
    """A runner in another process, which has no program to ask whether the model's outputs are not finite either."""

    runner: Runner

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch; see `qexport.backends.protocol.Runner`.

        Raises:
            VerificationError: some numbers are NaN or infinite.
        """
        found = self.runner(batch)
        if not_finite(found):
            raise VerificationError("outputs are not finite", "run it where the model is")
        return found


def load_runner(request: RunnerRequest) -> Loaded:
    """Load a file to score shards with."""
    return Loaded(find_backend(request.format).runner(request.path, request.threads))
