"""Accuracy of an artifact, through the Ultralytics validator on the artifact itself.

One pass gives three things: mAP against the labels, exactly as `YOLO(artifact).val()` computes it; the detections;
and fidelity, mAP against another model's detections as ground truth. Fidelity needs no labels and moves far less by
chance than mAP does, so it is the figure to compare quantisations by.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qexport.evaluation_set import EvaluationSet

TRUTH_CONFIDENCE = 0.25
"""Detections of the float model at least this confident are the ground truth of fidelity."""

Detections = Mapping[str, tuple[Tensor, Tensor]]
"""Image file name → boxes (n, 4) x1 y1 x2 y2 in input pixels, and classes (n,)."""


@dataclass(frozen=True)
class Accuracy:
    """What one artifact scores on one evaluation set.

    Attributes:
        map, map50: mAP50-95 and mAP50 over the classes that occur, 0..1.
        fidelity: mAP50-95 against the reference's detections, None without a reference.
        images: how many images were scored.
        unread: images that the validator left out because it could not read them or their labels.
        detections: confident detections, the reference for other artifacts.
    """

    map: float
    map50: float
    fidelity: float | None
    images: int
    unread: tuple[str, ...]
    detections: Detections


def evaluate(
    artifact: Path,
    task: str,
    data: EvaluationSet,
    scratch: Path,
    reference: Detections | None = None,
    on_image: Callable[[], None] = lambda: None,
) -> Accuracy:
    """Score an artifact.

    Args:
        artifact: anything `ultralytics.YOLO` loads.
        scratch: folder for what the validator writes.
        reference: detections of the float model for fidelity.
        on_image: called after each image, for a progress bar.
    """
    from ultralytics.models import YOLO
    from ultralytics.models.yolo.detect import DetectionValidator

    recorder = _Recorder(reference)

    class Validator(DetectionValidator):
        def update_metrics(self, preds: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
            recorder.record(self, preds, batch)
            super().update_metrics(preds, batch)

    model = YOLO(str(artifact), task=task)
    model.add_callback("on_val_batch_end", lambda _: on_image())
    with _without_fonts():
        metrics = model.val(
            validator=Validator,
            data=str(data.yaml),
            batch=1,
            device="cpu",
            plots=False,
            verbose=False,
            project=str(scratch),
            name="val",
            exist_ok=True,
        )
    return Accuracy(
        map=float(metrics.box.map),
        map50=float(metrics.box.map50),
        fidelity=recorder.fidelity(),
        images=len(recorder.confident),
        unread=tuple(path.name for link, path in data.links.items() if link not in recorder.confident),
        detections=recorder.confident,
    )


@contextmanager
def _without_fonts() -> Iterator[None]:
    """Keep the validator from downloading a font for plots that it does not draw."""
    from ultralytics.data import utils

    original = vars(utils)["check_font"]
    vars(utils)["check_font"] = lambda *_: None
    try:
        yield
    finally:
        vars(utils)["check_font"] = original


class _Recorder:
    """Keep an artifact's confident detections and score all of them against a reference."""

    def __init__(self, reference: Detections | None) -> None:
        from ultralytics.utils.metrics import DetMetrics

        self.reference = reference
        self.confident: dict[str, tuple[Tensor, Tensor]] = {}
        self.metrics = DetMetrics()

    def record(self, validator: Any, predictions: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        self.metrics.names = validator.metrics.names
        for file, found in zip(batch["im_file"], predictions, strict=True):
            name = Path(file).name
            keep = found["conf"] >= TRUTH_CONFIDENCE
            self.confident[name] = (found["bboxes"][keep].clone(), found["cls"][keep].clone())
            if self.reference is not None:
                self.score(validator, name, found, *self.reference[name])

    def score(self, validator: Any, name: str, found: dict[str, Tensor], boxes: Tensor, classes: Tensor) -> None:
        """Score one image's detections against boxes and classes."""
        truth = {"bboxes": boxes, "cls": classes}
        self.metrics.update_stats(
            {
                **validator._process_batch(found, truth),
                "target_cls": classes.numpy(),
                "target_img": np.unique(classes.numpy()),
                "conf": found["conf"].numpy(),
                "pred_cls": found["cls"].numpy(),
                "im_name": name,
            }
        )

    def fidelity(self) -> float | None:
        if self.reference is None or not any(len(classes) for _, classes in self.reference.values()):
            return None
        self.metrics.process()
        return float(self.metrics.box.map)


def score_against(found: Mapping[str, Tensor], truth: Detections) -> float | None:
    """mAP50-95 of detections with other detections as ground truth.

    Args:
        found: image → (n, 6) rows: corners in pixels, score, class.
        truth: image → boxes and classes.

    Returns:
        None where there is no ground truth.
    """
    from ultralytics.models.yolo.detect import DetectionValidator

    validator = DetectionValidator(args={"task": "detect", "plots": False})
    recorder = _Recorder(truth)
    recorder.metrics.names = {int(c): str(int(c)) for _, classes in truth.values() for c in classes}
    for name, rows in found.items():
        each = {"bboxes": rows[:, :4], "conf": rows[:, 4], "cls": rows[:, 5]}
        recorder.score(validator, name, each, *truth[name])
    return recorder.fidelity()


def agreement(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], iou: float = 0.5) -> tuple[int, int]:
    """Count detections of `a` and `b` (boxes, classes) that pair up, and how many there are in all.

    Each detection pairs at most once, with one of its class that overlaps it by at least `iou`.

    Returns:
        (paired, total): both sides counted, so that paired / total is 1 when they agree completely.
    """
    from ultralytics.utils.metrics import box_iou

    total = len(a[0]) + len(b[0])
    if not len(a[0]) or not len(b[0]):
        return 0, total
    overlaps = box_iou(a[0], b[0]) * (a[1][:, None] == b[1][None])
    free = torch.ones(len(b[0]), dtype=torch.bool)
    paired = 0
    for row in overlaps:
        best = int((row * free).argmax())
        if row[best] >= iou and free[best]:
            free[best] = False
            paired += 2
    return paired, total
