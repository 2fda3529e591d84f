"""Whole runs of every other task on its demo model: INT8 keeps what the task is about.

`make bench-tasks` measures all of the validation images and TFLite, too; here it is a few of them.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEMO, demo_images, validated

from qexport.backends.registry import find_backend
from qexport.cli.demo import DEMOS
from qexport.data.dataset import image_list, load_dataset, load_folder
from qexport.data.evaluation_set import make_evaluation_set
from qexport.inspection.recheck import _scored_layout
from qexport.job.options import make_job
from qexport.measurement.accuracy import evaluate
from qexport.pipeline import export
from qexport.progress import Silent
from qexport.reporting.report import ArtifactReport, Report
from qexport.system.json_form import to_plain
from qexport.tasks import SCORING

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
pytestmark = pytest.mark.slow

METRICS = {
    "segment": ["mask mAP50-95", "mask mAP50"],
    "pose": ["pose mAP50-95", "pose mAP50"],
    "obb": ["mAP50-95", "mAP50"],
    "classify": ["top-1", "top-5"],
}
IMAGES = 16


def few(task: str, folder: Path) -> Path:
    """A data set of some validation images with a task's labels; of crops all, for they are small."""
    if task == "classify":
        return DEMO / DEMOS[task].data
    content = yaml.safe_load((DEMO / DEMOS[task].data).read_text(encoding="utf-8"))
    listing = folder / "few.txt"
    listing.write_text("\n".join(map(str, demo_images("val", IMAGES))), encoding="utf-8")
    path = folder / "few.yaml"
    path.write_text(yaml.safe_dump({**content, "path": str(DEMO / "shapes"), "val": str(listing)}), encoding="utf-8")
    return path


def check_evidence(accuracy: dict[str, Any], by_image: bool) -> None:
    """Classes that are computed from the validator's statistics have to add up to the validator's own figure."""
    figures = [(each["map"], each["labels"] if by_image else 1) for each in accuracy["per_class"]]
    mean = sum(figure * weight for figure, weight in figures) / sum(weight for _, weight in figures)
    assert mean == pytest.approx(accuracy["map"], abs=2e-5)
    low, high = accuracy["map_interval"]
    assert low <= accuracy["map"] <= high
    assert accuracy["resamples"] == 1000
    low, high = accuracy["drop_interval"]
    assert low <= accuracy["drop"] <= high
    assert accuracy["confidence"]["matched"] > 10
    assert sum(accuracy["confidence"]["counts"]) == accuracy["confidence"]["matched"]


def check_gallery(artifact: ArtifactReport, task: str) -> None:
    """Boxes lie in their images; a classifier has none."""
    assert artifact.gallery is not None
    if task == "classify":
        assert artifact.gallery == ()
    for picture in artifact.gallery:
        for box in (*picture.kept, *picture.lost, *picture.gained):
            left, top, right, bottom = box["box"]
            assert 0 <= left < right <= picture.width == 320
            assert 0 <= top < bottom <= picture.height == 320


def ran(task: str, folder: Path, **options: Any) -> Report:
    given = {"format": "onnx", "int8": True, "effort": "none", "calib_images": 16, "no_latency": True, **options}
    job = make_job(
        {"model": str(DEMO / DEMOS[task].model), "data": str(few(task, folder)), "out": folder / "out", **given}
    )
    return export(job, Silent())


def check_validated(artifact: ArtifactReport, report: Report, folder: Path) -> None:
    """`YOLO(file).val()`, which loads the file itself, gives the figures of the report."""
    task = report.model.task or ""
    dataset = load_folder(few(task, folder)) if task == "classify" else load_dataset(few(task, folder))
    names = dict(enumerate(report.model.names))
    place = Path(tempfile.mkdtemp(dir=folder))
    metrics = validated(
        Path(artifact.path), task, make_evaluation_set(dataset, image_list(dataset, "val"), place / "set", names), place
    )
    own = getattr(metrics, SCORING[task].metric) if SCORING[task].metric else None
    figures = (own.map, own.map50) if own else (metrics.top1, metrics.top5)
    assert artifact.accuracy is not None
    assert (artifact.accuracy.map, artifact.accuracy.map50) == tuple(round(float(each), 5) for each in figures)
    if SCORING[task].other:
        assert artifact.accuracy.box_map == round(float(metrics.box.map), 5)


def check_unlabelled(report: Report, folder: Path) -> None:
    """Fidelity is the same without labels."""
    small, whole = report.artifacts
    task, names = report.model.task or "", dict(enumerate(report.model.names))
    data = load_folder(few(task, folder)) if task == "classify" else load_dataset(few(task, folder))
    images = image_list(data, "val")
    place = folder / "unlabelled"
    linked = make_evaluation_set(replace(data, by_folder=False), images, place, names, task=task, labelled=False)
    layout, runners = (
        _scored_layout(report.model),
        [find_backend(each.format).runner(Path(each.path), 1) for each in (whole, small)],
    )
    reference = evaluate(runners[0], layout, task, linked)
    found = evaluate(runners[1], layout, task, linked, reference=reference.detections)
    assert (found.map, found.map50, found.box_map, found.images) == (None, None, None, len(images))
    assert small.accuracy is not None
    assert found.fidelity == pytest.approx(small.accuracy.fidelity, abs=1e-5)


def check_scores(artifact: ArtifactReport, least: float) -> None:
    """FP32 has learnt the task, and INT8 keeps it."""
    assert artifact.accuracy is not None
    assert (artifact.accuracy.map_float or 0) > least
    assert (artifact.accuracy.retention or 0) > 0.95
    assert (artifact.accuracy.fidelity or 0) > 0.9
    assert artifact.verification is not None
    assert (artifact.verification.agreement or 0) > 0.9


@pytest.mark.parametrize(
    ("task", "name", "least"),
    [("segment", "onnx", 0.6), ("pose", "openvino", 0.5), ("obb", "onnx", 0.6), ("classify", "openvino", 0.9)],
)
def test_int8_keeps_what_a_task_is_about(task: str, name: str, least: float, tmp_path: Path) -> None:
    """The two formats are written from one graph, so each task goes through one of them."""
    pytest.importorskip(name if name == "openvino" else "onnxruntime", reason=f"needs the extra qexport[{name}]")
    report = ran(task, tmp_path, format=name)
    assert report.model.task == task
    assert report.evaluation is not None
    assert report.evaluation.metrics == tuple(METRICS[task])
    assert report.evaluation.images == (6 * 32 if task == "classify" else IMAGES)
    artifact = report.artifacts[0]
    assert (artifact.format, artifact.precision) == (name, "int8")
    check_scores(artifact, least)
    assert artifact.accuracy is not None
    assert (artifact.accuracy.box_map is not None) == (task in ("segment", "pose"))
    check_evidence(to_plain(artifact.accuracy), by_image=task == "classify")
    check_gallery(artifact, task)
    check_validated(artifact, report, tmp_path)
    check_unlabelled(report, tmp_path)


@pytest.mark.parametrize(("task", "least"), [("segment", 0.5), ("pose", 0.4)])
def test_integer_only_files_keep_it_too(task: str, least: float, tmp_path: Path) -> None:
    """Scored through `qexport.decode`, which makes of integers what the float file gives."""
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    report = ran(task, tmp_path, format="tflite", int8=False, precision="int8-full")
    small, whole = report.artifacts
    assert small.int8_mac_coverage == 1.0
    check_validated(whole, report, tmp_path)  # of integer-only files it can make nothing
    check_scores(small, least)
    check_gallery(small, task)


def test_a_classifier_is_calibrated_as_it_is_run_and_optimised(tmp_path: Path) -> None:
    """Its distance is of probabilities; what is about boxes and scores is not run."""
    report = ran("classify", tmp_path, no_eval=True, calib_images=8, effort="balanced")
    assert report.calibration is not None
    assert report.calibration.preprocess == "centre crop 96x96, RGB, 0..1"
    assert report.calibration.images == 8
    (warning,) = report.warnings
    assert warning.text == "8 calibration images were also seen mirrored, scaled and cut: 24 views"
    (artifact,) = report.artifacts
    tried = {each.name: (each.before or 0) > 0 for each in artifact.passes}
    assert tried == {"equalisation": False, "weight-scales": True, "adaptive-rounding": True, "score-shift": False}
    reasons = [each["why"] for each in json.loads(Path(artifact.plan or "").read_text())["tensors"].values()]
    assert sum(why.startswith("auto (weighted-mse)") for why in reasons) > 50
    assert artifact.verification is not None
    assert (artifact.verification.agreement or 0) > 0.9


def test_tflite_masks_come_through_a_transposed_convolution_in_integers(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
    from ai_edge_litert.interpreter import Interpreter

    from qexport.backends.tflite.backend import TFLiteBackend

    report = ran("segment", tmp_path, format="tflite", no_eval=True, imgsz="96", calib_images=4)
    (artifact,) = report.artifacts
    assert artifact.accuracy is None
    assert artifact.gallery is None
    assert artifact.layers is not None
    noisy = {layer.name: layer.sqnr_db for layer in artifact.layers if layer.dtype == "int8"}
    assert all(decibels is not None and 0 < decibels < 150 for decibels in noisy.values())  # logits are cut at -8
    assert artifact.histograms is not None
    assert len(artifact.histograms) == 8
    stored = TFLiteBackend().read(Path(artifact.path))
    weight = stored.tensors["model_23_proto_upsample_conv_transpose.weight"]
    assert weight.dtype == "int8"
    assert weight.integers is not None
    loaded = Interpreter(artifact.path)
    shapes = sorted((list(each["shape"]), each["dtype"].__name__) for each in loaded.get_output_details())
    assert shapes == [([1, 32, 24, 24], "float32"), ([1, 189, 38], "float32")]
