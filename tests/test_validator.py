"""Ultralytics' validators around runners of a made-up format: figures that follow from what was found by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from conftest import DEMO, demo_checkpoint, demo_images, lowering, validated
from numpy.typing import NDArray

from qexport.backends.protocol import Backend
from qexport.backends.registry import find_backend
from qexport.data.dataset import class_of, image_list, load_dataset, load_folder
from qexport.data.evaluation_set import EvaluationSet, make_evaluation_set
from qexport.detections.layout import HeadLayout
from qexport.inspection.recheck import _scored_layout
from qexport.lowering.metadata import artifact_metadata
from qexport.measurement.accuracy import evaluate
from qexport.programs.capture import capture
from qexport.programs.heads import split_head
from qexport.reporting.report import ModelInfo

SIZE = (96, 160)
"""Height and width: not square, so that a wrong order is found, too."""
PERFECT = 0.995
"""What Ultralytics' interpolation gives where everything is found and nothing else."""
PHOTOS = ((120, 200), (96, 160), (200, 120), (240, 400), (150, 150))
"""(height, width) of the images; the number of each is the brightness of its centre over 40, minus one."""
BOX = (0.5, 0.5, 0.6, 0.7)
"""The one object of each image: centre and size in 0..1 of the image; its class is the image's number modulo 2."""


class MadeUpRunner:
    """Runs files that say what is found: by the image's number rows of x1 y1 x2 y2 score class in input pixels.

    Attributes:
        form: how boxes are written: "end2end", "one2many", "queries", or "classifier" (probabilities alone).
        seen: shapes of the batches.
    """

    def __init__(self, path: Path, form: str) -> None:
        self.rows: list[list[list[float]]] = json.loads(path.read_text())
        self.form = form
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """One image after the other, known by its brightness."""
        assert batch.dtype == np.float32
        assert 0 <= batch.min() <= batch.max() <= 1
        self.seen.append(batch.shape)
        height, width = batch.shape[2:]
        numbers = [round(255 * float(image[0, height // 2, width // 2]) / 40) - 1 for image in batch]
        found = np.stack([self._found(self.rows[n] if n >= 0 else [], height, width) for n in numbers])
        found.flags.writeable = False  # as a runtime may own its memory
        return (found,)

    def _found(self, rows: list[list[float]], height: int, width: int) -> NDArray[np.float32]:
        if self.form == "classifier":
            return np.array(rows[0] if rows else [0, 0, 1], dtype=np.float32)
        table = np.zeros((300, 6), dtype=np.float32)
        if rows:
            table[: len(rows)] = rows
        if self.form == "end2end":
            return table
        centred = np.concatenate(((table[:, :2] + table[:, 2:4]) / 2, table[:, 2:4] - table[:, :2]), axis=1)
        if self.form == "queries":
            return np.concatenate((centred / (width, height, width, height), table[:, 4:]), axis=1).astype(np.float32)
        scores = np.where(table[:, 5, None] == (0, 1), table[:, 4, None], 0)
        return np.concatenate((centred, scores), axis=1).T.astype(np.float32)


def photo(number: int) -> NDArray[np.uint8]:
    return np.full((*PHOTOS[number], 3), 40 * (number + 1), dtype=np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> EvaluationSet:
    """The photos with their labels."""
    demo_checkpoint()  # mends torchvision where it needs that
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(len(PHOTOS)):
        cv2.imwrite(str(tmp_path / f"images/{number}.png"), photo(number))
        (tmp_path / f"labels/{number}.txt").write_text(f"{number % 2} {' '.join(map(str, BOX))}")
    content = {"path": str(tmp_path), "train": "images", "val": "images", "names": ["a", "b"]}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(content))
    dataset = load_dataset(tmp_path / "data.yaml")
    return make_evaluation_set(dataset, image_list(dataset, "val"), tmp_path / "set")


def place(number: int, form: str) -> list[float]:
    """The object of an image in the input's pixels: stretched for queries, else scaled evenly into the middle."""
    (height, width), (photo_height, photo_width) = SIZE, PHOTOS[number]
    if form == "queries":
        scaled_width, scaled_height = float(width), float(height)
    else:
        scale = min(height / photo_height, width / photo_width)
        scaled_width, scaled_height = photo_width * scale, photo_height * scale
    left, top = (width - scaled_width) / 2, (height - scaled_height) / 2
    x, y = left + BOX[0] * scaled_width, top + BOX[1] * scaled_height
    half_width, half_height = BOX[2] * scaled_width / 2, BOX[3] * scaled_height / 2
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def made_up(folder: Path, form: str, found_in: Sequence[int] = range(len(PHOTOS))) -> MadeUpRunner:
    """A runner that finds the object in some of the images, and nothing in the others."""
    rows = [[[*place(n, form), 0.9, n % 2]] if n in found_in else [] for n in range(len(PHOTOS))]
    (folder / "model.madeup").write_text(json.dumps(rows))
    return MadeUpRunner(folder / "model.madeup", form)


def layout(form: str) -> HeadLayout:
    return HeadLayout((8, 16, 32), SIZE, 2, end2end=form != "one2many", head=form)


@pytest.mark.parametrize("form", ["end2end", "one2many", "queries"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_format_that_ultralytics_cannot_load_is_scored(
    form: str, batch: int, data: EvaluationSet, tmp_path: Path
) -> None:
    from ultralytics.nn.autobackend import AutoBackend

    runner, images = made_up(tmp_path, form), list[None]()
    with pytest.raises(TypeError, match="not a supported model format"):
        AutoBackend(str(tmp_path / "model.madeup"))
    found = evaluate(runner, layout(form), "detect", data, batch=batch, on_image=lambda: images.append(None))
    assert set(runner.seen) == {(batch, 3, *SIZE)}  # the last of two is one photo and one of zeros
    assert len(images) == found.images == len(PHOTOS)
    assert [found.map, found.map50] == pytest.approx([PERFECT, PERFECT])
    assert found.fidelity is None
    assert found.unread == ()
    for name, link in data.links.items():
        boxes, classes = found.detections[name]
        number = int(link.stem)
        assert classes.tolist() == [number % 2]
        np.testing.assert_allclose(boxes[0], place(number, form), atol=1e-3)


def test_what_is_not_found_costs_accuracy_and_fidelity(data: EvaluationSet, tmp_path: Path) -> None:
    whole = evaluate(made_up(tmp_path, "end2end"), layout("end2end"), "detect", data)
    # Of class 0 one of three, of class 1 both: recall 1/3 covers 34 of the 101 points of the curve.
    partly = made_up(tmp_path, "end2end", (0, 1, 3))
    found = evaluate(partly, layout("end2end"), "detect", data, reference=whole.detections)
    expected = (34 / 101 + PERFECT) / 2
    assert found.map == pytest.approx(expected, abs=0.01)
    assert found.fidelity == pytest.approx(found.map)
    assert [len(found.detections[name][1]) for name in sorted(data.links)] == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("head", "nms", "rows", "boxes"),
    [
        ("end2end", False, True, "corners"),
        ("one2many", False, False, "centre"),
        ("one2many", True, True, "corners"),
        ("queries", False, True, "unit centre"),
        ("classifier", False, False, ""),
    ],
)
def test_a_report_says_how_its_models_outputs_are_scored(head: str, nms: bool, rows: bool, boxes: str) -> None:
    model = ModelInfo(path="a.pt", sha256="", head=head, nms=nms, imgsz=(96, 160), batch=1, classes=7)
    found = _scored_layout(model)
    assert (found.imgsz, found.classes, found.end2end, found.box_format) == ((96, 160), 7, rows, boxes)


@pytest.mark.slow
def test_ultralytics_validates_one_to_many_files_to_the_same_figures(tmp_path: Path) -> None:
    """The end-to-end head: `test_dynamic`, and `test_end_to_end` for TFLite; other tasks: `test_task_runs`."""
    for package in ("onnxruntime", "onnxscript", "openvino"):
        pytest.importorskip(package, reason="needs the extras qexport[onnx,openvino]")
    from qexport.backends.openvino.backend import OpenVINORunner

    program = capture(split_head(demo_checkpoint().module, "one2many", SIZE), SIZE)
    dataset = load_dataset(DEMO / "shapes" / "shapes.yaml")
    data = make_evaluation_set(dataset, demo_images("val", 12), tmp_path / "set")
    for name in ("onnx", "openvino"):
        backend: Backend = find_backend(name)
        path = tmp_path / f"model{backend.info.suffix}"
        metadata = artifact_metadata(demo_checkpoint(), program, "fp32", None)
        backend.lower(lowering(program, "fp32", None, metadata), path)
        # Ultralytics leaves it to OpenVINO whether FP32 files are computed in BF16.
        runner = OpenVINORunner(path, 1, exact=False) if name == "openvino" else backend.runner(path, 1)
        found = evaluate(runner, program.layout, "detect", data)
        theirs = validated(path, "detect", data, tmp_path / name).box
        assert (found.map or 0) > 0.1
        assert (found.map, found.map50) == (theirs.map, theirs.map50)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_classifiers_answers_are_kept_by_the_image_that_they_are_of(batch: int, tmp_path: Path) -> None:
    demo_checkpoint()
    labels, answers = (2, 0, 1, 0, 2), (2, 1, 1, 0, 0)
    for number, label in enumerate(labels):
        for split in ("train", "val"):
            folder = tmp_path / split / "abc"[label]
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / f"{number}.png"), photo(number))
    dataset = load_folder(tmp_path)
    data = make_evaluation_set(dataset, image_list(dataset, "val"), tmp_path / "set")
    (tmp_path / "model.madeup").write_text(json.dumps([[np.eye(3)[answer].tolist()] for answer in answers]))
    runner = MadeUpRunner(tmp_path / "model.madeup", "classifier")
    kind = HeadLayout((), (32, 32), 3, head="classifier")
    found = evaluate(runner, kind, "classify", data, batch=batch)
    assert set(runner.seen) == {(batch, 3, 32, 32)}
    assert [found.map, found.map50] == pytest.approx([3 / 5, 1])
    for name, link in data.links.items():
        number = int(link.stem)
        score: Any = found.scores[name]
        assert "abc"[int(score.labels[0])] == class_of(link, dataset.splits["val"])
        assert score.classes.item() == found.detections[name][1].item() == answers[number]
        assert bool(score.correct[0, 0]) == (answers[number] == labels[number])
    again = evaluate(runner, kind, "classify", data, batch=batch, reference=found.detections)
    assert again.fidelity == 1.0
