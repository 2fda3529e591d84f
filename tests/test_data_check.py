"""Data sets that are not for the model: refused where accuracy is asked for, a warning where it is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import DEMO, demo_checkpoint, demo_images

from qexport.data.dataset import load_dataset, load_folder
from qexport.data.selection import RunImages
from qexport.errors import InputError
from qexport.measurement.dataset_check import check_data, mismatch
from qexport.tasks import TaskSpec

SHAPES = DEMO / "shapes"
YAMLS = {task: SHAPES / f"shapes{'' if task == 'detect' else f'-{task}'}.yaml" for task in ("detect", "segment", "obb")}
YAMLS["pose"] = SHAPES / "shapes-pose.yaml"


def model(task: str, points: list[int] | None = None) -> TaskSpec:
    """The demo checkpoint as if it were of another task."""
    head = SimpleNamespace(kpt_shape=points)
    return replace(demo_checkpoint(), task=task, module=SimpleNamespace(model=[head])).task_spec


def scored(path: Path) -> RunImages:
    return RunImages(evaluation=tuple(demo_images("val", 8)), evaluation_data=load_dataset(path))


def pose_shape() -> list[int]:
    shape: list[int] = yaml.safe_load(YAMLS["pose"].read_text(encoding="utf-8"))["kpt_shape"]
    return shape


@pytest.mark.parametrize("task", list(YAMLS))
def test_the_data_of_a_task_suit_its_model(task: str) -> None:
    check_data(model(task, pose_shape()), scored(YAMLS[task]))


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        ("segment", "detect", "labels for segment do not have 5 columns"),
        ("obb", "detect", "labels for obb do not have 5 columns"),
        ("obb", "pose", "labels for obb do not have"),
        ("detect", "pose", "labels for detect do not have"),
        ("segment", "pose", "labels for segment do not have"),
        ("pose", "detect", r"has no kpt_shape, .* has \["),
        ("classify", "detect", "is a YAML, and .* is a classifier"),
    ],
)
def test_data_of_another_task_are_refused(task: str, data: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_data(model(task, pose_shape()), scored(YAMLS[data]))


def test_polygons_are_labels_for_detection() -> None:
    check_data(model("detect"), scored(YAMLS["segment"]))  # COCO's come that way


def test_other_keypoints_and_channels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has kpt_shape .* has \[17, 3\]"):
        check_data(model("pose", [17, 3]), scored(YAMLS["pose"]))
    grey = tmp_path / "grey.yaml"
    content = yaml.safe_load(YAMLS["detect"].read_text(encoding="utf-8"))
    grey.write_text(yaml.safe_dump({**content, "channels": 1}), encoding="utf-8")
    with pytest.raises(InputError, match=r"images of 1 channels, .* takes 3"):
        check_data(model("detect"), scored(grey))


@pytest.mark.parametrize("order", [(1, 0, 2, 3, 4, 5), (5, 4, 3, 2, 1, 0), (0, 1, 2, 3, 5, 4)])
def test_the_same_classes_in_another_order_are_refused(order: tuple[int, ...]) -> None:
    """Labels are numbers: they would be scored as other classes."""
    data = load_dataset(YAMLS["detect"])
    names = {i: data.names[number] for i, number in enumerate(order)}
    with pytest.raises(InputError, match=r"number the same classes differently: '\w+' is \d here and \d there"):
        check_data(model("detect"), replace(scored(YAMLS["detect"]), evaluation_data=replace(data, names=names)))


def test_numbers_in_place_of_names_say_nothing_of_an_order() -> None:
    data = replace(load_dataset(YAMLS["detect"]), names={i: str((i + 1) % 6) for i in range(6)})
    nameless = replace(model("detect"), names={i: str(i) for i in range(6)})
    check_data(nameless, replace(scored(YAMLS["detect"]), evaluation_data=data))


@pytest.mark.parametrize("names", [["a", "b", "c", "d", "e", "f"], ["circle", "box", "triangle", "star", "ring", "x"]])
def test_other_names_for_the_classes_are_taken(names: list[str]) -> None:
    data = replace(load_dataset(YAMLS["detect"]), names=dict(enumerate(names)))
    check_data(model("detect"), replace(scored(YAMLS["detect"]), evaluation_data=data))


@pytest.mark.parametrize(("name", "message"), [("zircle", "no class of it: zircle"), ("Circle", ""), ("disc", "disc")])
def test_folders_that_are_called_otherwise_are_matched_only_where_the_order_holds(
    name: str, message: str, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        for folder in (SHAPES / "crops" / split).iterdir():
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / (name if folder.name == "circle" else folder.name)).symlink_to(folder)
    classifier = replace(model("classify"), names=dict(enumerate(sorted(demo_checkpoint().names.values()))))
    found = mismatch(classifier, load_folder(tmp_path))
    assert message in found if message else not found


def test_folders_of_classes_are_for_classifiers_only() -> None:
    crops = load_folder(SHAPES / "crops")
    assert mismatch(model("classify"), crops) == ""
    assert "is for classification" in mismatch(model("detect"), crops)
    assert mismatch(model("detect"), load_folder(SHAPES / "images" / "train")) == ""


def test_empty_label_files_are_refused(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    image = tmp_path / "images" / "a.jpg"
    image.symlink_to(demo_images("val", 1)[0])
    (tmp_path / "labels" / "a.txt").write_text("\n")
    data = load_dataset(YAMLS["detect"])
    with pytest.raises(InputError, match=r"label files of .* are empty"):
        check_data(model("detect"), RunImages(evaluation=(image,), evaluation_data=data))
