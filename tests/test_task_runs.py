"""Whole runs of other tasks: the demo detector's weights under another head, which is not trained itself.

Its boxes and classes are trained, so that their scores mean something; masks and keypoints only have to come through.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import demo_checkpoint, demo_images

from qexport.export import export
from qexport.job import make_job
from qexport.progress import Silent
from qexport.report import Report

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
pytestmark = pytest.mark.slow

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
LEVELS = [16, 19, 22]
HEADS: dict[str, tuple[str, list[Any]]] = {
    "segment": ("SegmentationModel", [LEVELS, 1, "Segment26", ["nc", 32, 256]]),
    "obb": ("OBBModel", [LEVELS, 1, "OBB26", ["nc", 1]]),
    "classify": ("ClassificationModel", [-1, 1, "Classify", ["nc"]]),
}


def checkpoint(task: str, folder: Path) -> Path:
    """Save the demo model with a task's head; what both have in common is trained."""
    from ultralytics.nn import tasks

    builder, head = HEADS[task]
    layout = yaml.safe_load((DEMO / "shapes26.yaml").read_text(encoding="utf-8"))
    layout["head"] = [*([] if task == "classify" else layout["head"][:-1]), head]
    torch.manual_seed(0)
    model = getattr(tasks, builder)(layout, verbose=False)
    trained = demo_checkpoint()
    own = model.state_dict()
    shared = {k: v for k, v in trained.module.state_dict().items() if k in own and own[k].shape == v.shape}
    model.load_state_dict(shared, strict=False)
    model.names, model.args, model.task = trained.names, {"task": task}, task
    if task == "classify":  # Ultralytics numbers the folders of classes by their names
        model.names = dict(enumerate(sorted(trained.names.values())))
    path = folder / f"{task}.pt"
    torch.save({"model": model.half(), "train_args": {"task": task, "imgsz": 320}}, path)
    return path


def few(task: str, folder: Path) -> Path:
    """A data set of eight validation images with a task's labels."""
    content = yaml.safe_load((DEMO / "shapes" / f"shapes-{task}.yaml").read_text(encoding="utf-8"))
    listing = folder / "few.txt"
    listing.write_text("\n".join(map(str, demo_images("val", 8))), encoding="utf-8")
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump({**content, "path": str(DEMO / "shapes"), "val": str(listing)}), encoding="utf-8")
    return path


def check_evidence(accuracy: dict[str, Any], by_image: bool = False) -> None:
    """Classes that are computed from the validator's statistics have to add up to the validator's own figure."""
    figures = [(each["map"], each["labels"] if by_image else 1) for each in accuracy["per_class"]]
    mean = sum(figure * weight for figure, weight in figures) / sum(weight for _, weight in figures)
    assert mean == pytest.approx(accuracy["map"], abs=2e-5)
    low, high = accuracy["map_interval"]
    assert low < accuracy["map"] < high
    assert accuracy["resamples"] == 1000
    if accuracy["map_float"] is not None:
        low, high = accuracy["drop_interval"]
        assert low <= accuracy["drop"] <= high
        assert accuracy["confidence"]["matched"] > 10
        assert sum(accuracy["confidence"]["counts"]) == accuracy["confidence"]["matched"]


def ran(task: str, folder: Path, **options: Any) -> Report:
    data = DEMO / "shapes" / "crops" if task == "classify" else few(task, folder)
    given = {"format": "onnx", "int8": True, "calib_images": 4, "no_latency": True, **options}
    job = make_job({"model": str(checkpoint(task, folder)), "data": str(data), "out": folder / "out", **given})
    return export(job, Silent())


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_a_run_scores_what_the_task_is_about(task: str, tmp_path: Path) -> None:
    report = ran(task, tmp_path)
    whole, small = sorted(report.artifacts, key=lambda artifact: artifact.precision)
    assert report.model["task"] == task
    assert whole.accuracy is not None
    assert small.accuracy is not None
    if task == "obb":  # an angle of nothing trained: most shapes look alike when they are turned
        assert (whole.accuracy["map"] or 0) > 0.5
        assert "box_map" not in whole.accuracy
    else:  # untrained masks, trained boxes
        assert (whole.accuracy["box_map"] or 0) > 0.7 > (whole.accuracy["map"] or 0)
    assert (small.accuracy["fidelity"] or 0) > 0.9
    check_evidence(whole.accuracy)
    check_evidence(small.accuracy)
    for picture in small.gallery or ():
        for box in (*picture.kept, *picture.lost, *picture.gained):
            left, top, right, bottom = box["box"]
            assert 0 <= left < right <= picture.width == 320
            assert 0 <= top < bottom <= picture.height == 320
    assert small.verification is not None
    assert (small.verification.agreement or 0) > 0.8
    assert report.evaluation is not None
    assert report.evaluation["metrics"] == (
        ["mask mAP50-95", "mask mAP50"] if task == "segment" else ["mAP50-95", "mAP50"]
    )


def test_a_classifier_is_calibrated_and_scored_on_folders_of_classes(tmp_path: Path) -> None:
    report = ran("classify", tmp_path, imgsz="96")
    whole, small = sorted(report.artifacts, key=lambda artifact: artifact.precision)
    assert whole.accuracy is not None
    assert small.accuracy is not None
    assert small.accuracy["images"] == 6 * 32
    assert 0 < (whole.accuracy["map"] or 0) < (whole.accuracy["map50"] or 0)  # top-1 of guesses, and top-5 of six
    for entry in (whole.accuracy, small.accuracy):
        check_evidence(entry, by_image=True)
        assert [each["labels"] for each in entry["per_class"]] == [32] * 6
    assert small.accuracy["confidence"]["matched"] == small.accuracy["images"]
    assert small.gallery == ()
    assert (small.accuracy["fidelity"] or 0) > 0.9
    assert report.calibration is not None
    assert report.calibration["preprocess"] == "centre crop 96x96, RGB, 0..1"
    assert report.warnings == ()


def test_tflite_masks_come_through_a_transposed_convolution_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    from ai_edge_litert.interpreter import Interpreter

    from qexport.backends.tflite import TFLiteBackend

    report = ran("segment", tmp_path, format="tflite", no_eval=True, imgsz="96")
    (artifact,) = report.artifacts
    assert artifact.accuracy is None
    assert artifact.gallery is None
    assert artifact.layers is not None
    noisy = {layer.name: layer.sqnr_db for layer in artifact.layers if layer.dtype == "int8"}
    assert all(decibels is not None and 5 < decibels < 150 for decibels in noisy.values())
    assert artifact.histograms is not None
    assert len(artifact.histograms) == 8
    stored = TFLiteBackend().read(Path(artifact.path))
    weight = stored.tensors["model_23_proto_upsample_conv_transpose.weight"]
    assert weight.dtype == "int8"
    assert weight.integers is not None
    loaded = Interpreter(artifact.path)
    shapes = sorted((list(each["shape"]), each["dtype"].__name__) for each in loaded.get_output_details())
    assert shapes == [([1, 32, 24, 24], "float32"), ([1, 189, 38], "float32")]
