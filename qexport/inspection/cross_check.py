"""Run a `.tflite` file on two implementations of its operators and compare what they find.

LiteRT with XNNPACK and TensorFlow's reference kernels round differently: single scores deep in a net drift by 0.1 and
more. So detections are compared, and the first quantised layer, where at most one step may lie between the two.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.compat.torchvision import repair
from qexport.data.images import COLOURS, stream
from qexport.detections.agreement import FAINT, compare_all
from qexport.detections.detections import Detections, corners_of
from qexport.detections.layout import CORNERS, HeadLayout, layout_of
from qexport.detections.matching import CONFIDENCE
from qexport.detections.numpy_decode import as_columns, detections_in
from qexport.errors import InputError, VerificationError
from qexport.inspection.samples import detect
from qexport.measurement.accuracy import score_against
from qexport.system.whole import whole

MIN_MAP = 0.95
"""mAP50-95 of one implementation's detections against the other's, from which they agree."""
MAX_STEPS = 1


@dataclass(frozen=True)
class CrossCheck:
    """What a comparison found.

    Attributes:
        images: how many were run.
        map: mAP50-95 of TensorFlow's detections scored against LiteRT's confident ones, None where there are none; of a
            classifier the share of probability that both give to the same classes.
        first_layer: name of the first convolution in integers, "" where there is none.
        steps: how far the two implementations' integers of it are apart at most.
        gpu: what keeps the GPU delegate from taking the graph, "" where nothing does.
    """

    images: int
    map: float | None
    first_layer: str
    steps: int
    gpu: str

    def check(self) -> None:
        """Raise `VerificationError` where the two do not agree."""
        if self.map is not None and self.map < MIN_MAP:
            raise VerificationError(
                f"TensorFlow's detections reach {self.map:.3f} mAP50-95 against LiteRT's, {MIN_MAP} is expected",
                "a kernel of one of the two differs: report the model and both versions",
            )
        if self.steps > MAX_STEPS:
            raise VerificationError(
                f"{self.first_layer} is {self.steps} steps apart between TensorFlow and LiteRT",
                "a kernel of one of the two differs: report the model and both versions",
            )


def cross_check(path: Path, images: Sequence[Path], threads: int) -> CrossCheck:
    """Run `path` on LiteRT and on TensorFlow's reference kernels.

    Raises:
        InputError: not a file that qexport has written, or no image can be read.
        MissingExtraError: TensorFlow is not installed.
    """
    from qexport.backends.tflite.backend import interpreter, runner_of
    from qexport.backends.tflite.reference_kernels import first_layer_steps, gpu_delegate_findings, reference_runner
    from qexport.decode.metadata import tflite_metadata

    repair()
    try:
        metadata = tflite_metadata(path)
        layout, channels = layout_of(metadata), whole(metadata.get("channels", COLOURS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a .tflite file with metadata", "give a file that qexport wrote") from error
    read = stream(images, layout.imgsz, lambda *_: None, layout.preprocess, channels)
    batches = [pixels[None] for _, pixels in read]
    if not batches:
        raise InputError("no image to compare on can be read", "give --data with other images")
    try:
        ours = runner_of(interpreter(path, threads), metadata)
        theirs = reference_runner(path)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} cannot be run here ({reason})",
            "of a file for the Edge TPU, give the one that it was compiled from",
        ) from error
    score = _score(ours, theirs, batches, layout)
    name, steps = first_layer_steps(path, batches[0], threads)
    return CrossCheck(len(batches), score, name, steps, gpu_delegate_findings(path))


def _score(ours: Runner, theirs: Runner, batches: Sequence[NDArray[np.float32]], layout: HeadLayout) -> float | None:
    """mAP50-95 of the one's detections against the other's; of a classifier the share of probability in common."""
    if layout.classifier:
        return compare_all(detect(ours, batches, layout), detect(theirs, batches, layout), layout).share
    found, truth = {}, {}
    for number, batch in enumerate(batches):
        found[str(number)] = _rows(_detections(theirs, batch, layout))
        rows = _rows(_detections(ours, batch, layout).confident(CONFIDENCE))
        truth[str(number)] = (rows[:, :4], rows[:, 5])
    return score_against(found, truth)


def _detections(runner: Runner, batch: NDArray[np.float32], layout: HeadLayout) -> Detections:
    """What a runner finds in a batch of one image; of rotated boxes those that are not rotated, which are scored."""
    found = detections_in(as_columns(runner(batch)[0][0], layout), layout, FAINT)
    if not found.is_rotated:
        return found
    return replace(found, boxes=corners_of(found.boxes), box_format=CORNERS)


def _rows(found: Detections) -> torch.Tensor:
    """(n, 6) as a validator of Ultralytics takes them: corners in pixels, score, class."""
    columns = np.stack((found.scores, found.classes.astype(np.float32)), axis=1)
    return torch.from_numpy(np.concatenate((found.boxes, columns), axis=1))
