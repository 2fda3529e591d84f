"""Fidelity against what it must be for known detections."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import demo_checkpoint
from torch import Tensor

from qexport.data.evaluation_set import EvaluationSet
from qexport.detections.matching import CONFIDENCE
from qexport.measurement import accuracy
from qexport.measurement.recorder import BoxRecorder, Detections
from qexport.measurement.shards import left_out
from qexport.tasks import SCORING

Found = tuple[Any, Any]


def found(*rows: tuple[float, float, float, float, int]) -> Found:
    table = np.array(rows, dtype=np.float32).reshape(-1, 5)
    return table[:, :4], table[:, 4]


A = (0.0, 0.0, 10.0, 10.0, 0)
A_SHIFTED = (0.0, 0.0, 10.0, 6.0, 0)  # 60 of 100 pixels: IoU 0.6
B = (50.0, 50.0, 60.0, 60.0, 1)


def fidelity_of(predictions: dict[str, tuple[Found, Tensor]], reference: Detections) -> float | None:
    """Feed predictions (boxes, classes) with confidences to the recorder, as the validator does."""
    from ultralytics.models.yolo.detect import DetectionValidator

    demo_checkpoint()  # repairs torchvision where it needs it
    validator: Any = DetectionValidator()
    validator.metrics.names = {0: "circle", 1: "square"}
    validator.niou = 10
    validator.iouv = torch.linspace(0.5, 0.95, 10)
    recorder = BoxRecorder(reference, {name: Path(name) for name in predictions}, SCORING["detect"])
    for name, ((boxes, classes), confidence) in predictions.items():
        prediction = {"bboxes": torch.from_numpy(boxes), "cls": torch.from_numpy(classes), "conf": confidence}
        recorder.record(validator, [prediction], loaded(name))
    scores = {each.name: each.fidelity_scores for each in recorder.records if each.fidelity_scores}
    return accuracy.fidelity_of(scores)


def loaded(name: str) -> dict[str, Any]:
    """A batch of one image of the input's size, as a data loader gives it."""
    whole = {"img": torch.zeros(1, 3, 96, 96), "ori_shape": [(96, 96)], "ratio_pad": [((1.0, 1.0), (0, 0))]}
    return {"im_file": [f"/somewhere/{name}"], **whole}


def test_the_references_own_detections_have_fidelity_one() -> None:
    reference = {"a.jpg": found(A, B), "b.jpg": found(A)}
    same = {name: (boxes, torch.full((len(boxes[0]),), 0.9)) for name, boxes in reference.items()}
    assert fidelity_of(same, reference) == pytest.approx(0.995, abs=1e-6)  # what Ultralytics' mAP gives a perfect model


def test_missing_detections_and_looser_boxes_cost_fidelity() -> None:
    reference = {"a.jpg": found(A), "b.jpg": found(A)}
    half = {"a.jpg": (found(A), torch.tensor([0.9])), "b.jpg": (found(), torch.zeros(0))}
    assert fidelity_of(half, reference) == pytest.approx(0.5, abs=0.01)
    # IoU 0.6 counts at the thresholds 0.5, 0.55 (and perhaps 0.6) of ten.
    loose = {name: (found(A_SHIFTED), torch.tensor([0.9])) for name in reference}
    score = fidelity_of(loose, reference)
    assert score is not None
    assert 0.19 < score < 0.31


def test_without_a_reference_or_without_anything_in_it_there_is_no_fidelity() -> None:
    prediction = {"a.jpg": (found(A), torch.tensor([0.9]))}
    assert fidelity_of(prediction, {"a.jpg": found()}) is None
    assert accuracy.fidelity_of({}) is None


@pytest.mark.parametrize(("task", "metrics"), [("segment", "Segment"), ("pose", "Pose"), ("obb", "OBB")])
def test_the_validators_own_matches_are_kept(task: str, metrics: str) -> None:
    from ultralytics.utils import metrics as module

    kept = getattr(module, f"{metrics}Metrics")({0: "a", 1: "b"})
    right, wrong = np.ones((1, 10), dtype=bool), np.zeros((1, 10), dtype=bool)
    one = np.array([1.0])
    stats = dict.fromkeys(kept.stats, wrong) | {SCORING[task].correct: right}
    kept.update_stats(
        {**stats, "conf": one * 0.7, "pred_cls": one, "target_cls": one, "target_img": one, "im_name": "a"}
    )
    recorder = BoxRecorder(None, {"a.jpg": Path("a.jpg")}, SCORING[task])
    boxes = {"bboxes": torch.zeros(0, 5 if task == "obb" else 4), "conf": torch.zeros(0), "cls": torch.zeros(0)}
    recorder.record(None, [boxes], loaded("a.jpg"))
    recorder.record_scores(SimpleNamespace(metrics=kept))
    (record,) = recorder.records
    found, around = record.scores, record.box_scores
    assert found
    assert (around is None) == (task == "obb")
    assert around is None or not around.correct.any()
    assert (found.confidence.tolist(), found.classes.tolist(), found.labels.tolist()) == ([0.7], [1.0], [1.0])
    kept.process()
    assert getattr(kept, SCORING[task].metric).map == pytest.approx(0.995)
    assert found.correct.all()


def test_only_confident_detections_become_a_reference() -> None:
    recorder = BoxRecorder(None, {"a.jpg": Path("a.jpg")}, SCORING["detect"])
    confidence = torch.tensor([0.9, CONFIDENCE, 0.2])
    prediction = {
        "bboxes": torch.arange(12.0).reshape(3, 4),
        "cls": torch.tensor([0.0, 1, 2]),
        "conf": confidence,
    }
    recorder.record(None, [prediction], loaded("a.jpg"))
    boxes, classes = recorder.records[0].confident
    assert classes.tolist() == [0.0, 1.0]
    assert boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    prediction["bboxes"].zero_()
    assert boxes[1].tolist() == [4, 5, 6, 7]  # a copy: the validator scales boxes in place afterwards


@pytest.mark.parametrize("content", [b"garbage", b"", b"\x89PNG\r\n\x1a\nbut no more"])
def test_an_image_that_is_none_is_said_to_be_left_out_for_that(content: bytes, tmp_path: Path) -> None:
    """And not for a decoder of another format, which Ultralytics looks for then."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(content)
    data = EvaluationSet(tmp_path / "data.yaml", {"a.jpg": tmp_path / "photo.jpg"})
    said = left_out(data, "a.jpg")
    assert said.startswith("photo.jpg (")
    assert "pi_heif" not in said
    assert any(word in said for word in ("corrupt", "identify"))
