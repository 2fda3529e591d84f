"""What a folder or a YAML of the field holds: exports of labelling services, class folders with company, masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import demo_checkpoint
from refusals import INPUT, INT8, Refusal

from qexport.data.choice import MAX_CALIBRATION, note_of
from qexport.data.classes import class_numbers
from qexport.data.dataset import image_list, load_dataset, load_folder
from qexport.data.evaluation_set import make_evaluation_set
from qexport.data.selection import ImageChoice, RunImages, select_images
from qexport.errors import InputError
from qexport.measurement.dataset_check import check_data, mismatch
from qexport.tasks import TaskSpec

PETS = {0: "bird", 1: "cat", 2: "dog"}


def put(*places: Path, grey: bool = False) -> None:
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix in (".jpg", ".png"):
            cv2.imwrite(str(place), np.zeros((12, 12) if grey else (12, 12, 3), np.uint8))
        else:
            place.write_text("names: [a, b]\ntrain: train\nval: valid\n" if place.suffix == ".yaml" else "")


def names(images: tuple[Path, ...], folder: Path) -> list[str]:
    return [str(image.relative_to(folder)) for image in images]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_the_export_of_a_labelling_service_is_no_classifiers(tmp_path: Path, val: str) -> None:
    put(tmp_path / "train/images/a.jpg", tmp_path / "train/labels/a.txt", tmp_path / val / "images/b.jpg")
    plain = load_folder(tmp_path)
    assert (plain.by_folder, plain.names) == (False, {})
    assert names(image_list(plain, "train"), tmp_path) == ["train/images/a.jpg"]
    assert names(image_list(plain, "val"), tmp_path) == [f"{val}/images/b.jpg"]
    (tmp_path / "data.yaml").write_text(f"names: [x, y]\ntrain: ../train/images\nval: ../{val}/images\n")
    put(tmp_path / "other.yaml")
    described = load_folder(tmp_path)
    assert (described.yaml, described.names) == (tmp_path / "data.yaml", {0: "x", 1: "y"})
    assert names(image_list(described, "val"), tmp_path) == [f"{val}/images/b.jpg"]


def test_the_layout_of_ultralytics_own_data_sets_keeps_splits_apart(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.jpg", tmp_path / "images/val/b.jpg", tmp_path / "labels/train/a.txt")
    assert names(image_list(load_folder(tmp_path), "train"), tmp_path) == ["images/train/a.jpg"]


def test_of_several_yamls_one_has_to_be_given(tmp_path: Path) -> None:
    put(tmp_path / "train/images/a.jpg", tmp_path / "a.yaml", tmp_path / "b.yaml")
    with pytest.raises(InputError, match=r"has several YAMLs \(a.yaml, b.yaml\): give one of them"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    "beside",
    ["masks/a.png", "labels/a.png", "annotations/a.png", "images/.thumbs/a.jpg", "@eaDir/a.jpg", "images/@eaDir/a.jpg"],
)
@pytest.mark.parametrize("given", ["folder", "yaml"])
def test_masks_and_thumbnails_are_no_images(tmp_path: Path, beside: str, given: str) -> None:
    put(tmp_path / "train/images/a.jpg", tmp_path / "train" / beside)
    if given == "yaml":
        (tmp_path / "d.yaml").write_text("names: [x]\ntrain: train\n")
    data = load_dataset(tmp_path / "d.yaml") if given == "yaml" else load_folder(tmp_path / "train")
    assert names(image_list(data, "train"), tmp_path) == ["train/images/a.jpg"]


def test_a_mask_is_told_by_its_name_and_its_pixels(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg", tmp_path / "face.jpg", tmp_path / "face_mask.jpg", tmp_path / "b_mask.png")
    put(tmp_path / "a_mask.png", grey=True)
    kept = names(image_list(load_folder(tmp_path), "train"), tmp_path)
    assert kept == ["a.jpg", "b_mask.png", "face.jpg", "face_mask.jpg"]  # a photo of a mask is a photo


@pytest.mark.parametrize(
    ("value", "folder"),
    [
        ("labels-b", "labels-b"),
        ("[cat, dog]", "labels"),
        ("{0: cat}", "labels"),
        ("train/labels", "labels"),
        ("cat", "labels"),
        ("5", "labels"),
        ("true", "labels"),
        ("''", "labels"),
    ],
)
def test_a_foreign_key_called_labels_is_not_ours(tmp_path: Path, value: str, folder: str) -> None:
    put(tmp_path / "images/train/a.jpg", tmp_path / "labels-b/train/a.txt")
    (tmp_path / "d.yaml").write_text(f"names: [x]\ntrain: images/train\nlabels: {value}\n")
    assert load_dataset(tmp_path / "d.yaml").labels == folder


@pytest.mark.parametrize("character", ["\x00", "\x07", "\x1b", "\x7f", "\x9d", "\ufffe"])
def test_characters_that_yaml_forbids_are_taken_out(tmp_path: Path, character: str) -> None:
    text = f"# made by a tool{character}\nnames: [x, caf\u00e9]\ntrain: images # {character}\n"
    (tmp_path / "d.yaml").write_text(text, encoding="utf-8")
    assert load_dataset(tmp_path / "d.yaml").names == {0: "x", 1: "caf\u00e9"}


@pytest.mark.parametrize(("kind", "advice"), [("folder", "--eval-data"), ("list", "--eval-data"), ("yaml", "'val: ")])
def test_advice_is_about_what_was_given(tmp_path: Path, kind: str, advice: str) -> None:
    put(tmp_path / "pictures/a.jpg")
    (tmp_path / "d.txt").write_text("pictures/a.jpg\n")
    (tmp_path / "d.yaml").write_text("names: [x]\ntrain: pictures\n")
    place = {"folder": tmp_path / "pictures", "list": tmp_path / "d.txt", "yaml": tmp_path / "d.yaml"}[kind]
    with pytest.raises(InputError, match="no split 'val'") as refused:
        select_images(ImageChoice(data=str(place)))
    assert advice in refused.value.remedy
    assert ("'val:" in refused.value.remedy) == (kind == "yaml")


# Folders of classes


def classes(folder: Path, **extra: str) -> None:
    for split in ("train", "val"):
        put(*(folder / split / name / f"{name}.jpg" for name in PETS.values()))
    put(*(folder / place for place in extra.values()))


def pets(task: str = "classify", known: dict[int, str] | None = None) -> TaskSpec:
    return TaskSpec(Path("pets.pt"), task, known or PETS, 3)


def scored(folder: Path) -> RunImages:
    data = load_folder(folder)
    return RunImages(evaluation=image_list(data, "val"), evaluation_data=data)


@pytest.mark.parametrize(
    "place",
    [
        "val/.ipynb_checkpoints/x.jpg",
        "val/@eaDir/x.jpg",
        "val/__MACOSX/cat/x.jpg",
        "train/.ipynb_checkpoints/x.jpg",
        "train/@eaDir/x.jpg",
        "val/cat/@eaDir/x.jpg",
        "val/stray.jpg",
        "val/notes.txt",
        "train/stray.jpg",
        "train/empty/.keep",
        "val/empty/readme.md",
    ],
)
def test_company_of_class_folders_changes_nothing(tmp_path: Path, place: str) -> None:
    classes(tmp_path, extra=place)
    images = scored(tmp_path)
    assert names(images.evaluation, tmp_path) == ["val/bird/bird.jpg", "val/cat/cat.jpg", "val/dog/dog.jpg"]
    said = check_data(pets(), images).notes
    assert said == (
        ("1 evaluation images beside the folders of classes are of no class and left out",)
        if "val/stray" in place
        else ()
    )
    assert images.evaluation_data is not None
    made = make_evaluation_set(images.evaluation_data, images.evaluation, tmp_path / "scratch", PETS)
    assert class_of_links(made.yaml) == {"bird": 0, "cat": 1, "dog": 2}


def class_of_links(folder: Path) -> dict[str, int]:
    """Image → class as torchvision's ImageFolder, which Ultralytics uses, numbers them."""
    demo_checkpoint()  # repairs torchvision where it needs it
    from torchvision.datasets import ImageFolder

    found = ImageFolder(str(folder / "val"), allow_empty=True)
    return {Path(path).stem.partition("-")[2]: number for path, number in found.samples}


def test_nested_folders_are_of_the_class_that_they_are_in(tmp_path: Path) -> None:
    classes(tmp_path, deep="val/dog/husky/young/rex.jpg")
    images = scored(tmp_path)
    check_data(pets(), images)
    assert images.evaluation_data is not None
    made = make_evaluation_set(images.evaluation_data, images.evaluation, tmp_path / "scratch", PETS)
    assert class_of_links(made.yaml)["rex"] == 2


def test_classes_are_matched_by_name_where_some_are_missing(tmp_path: Path) -> None:
    """Neither the number nor the order of the folders is the model's."""
    classes(tmp_path)
    images = scored(tmp_path)
    known = {0: "ant", 1: "dog", 2: "cat", 3: "bird", 4: "zebra"}
    assert check_data(pets(known=known), images).notes == ()
    assert images.evaluation_data is not None
    made = make_evaluation_set(images.evaluation_data, images.evaluation, tmp_path / "scratch", known)
    assert class_of_links(made.yaml) == {"bird": 3, "cat": 2, "dog": 1}


def test_a_hidden_folder_that_the_model_was_trained_with_keeps_its_number(tmp_path: Path) -> None:
    classes(tmp_path)
    known = {0: ".ipynb_checkpoints", 1: "bird", 2: "cat", 3: "dog"}
    assert class_numbers(load_folder(tmp_path), known)["dog"] == 3


def test_other_names_mean_the_same_order(tmp_path: Path) -> None:
    classes(tmp_path)
    known = {0: "Vogel", 1: "Katze", 2: "Hund"}
    assert class_numbers(load_folder(tmp_path), known) == {"bird": 0, "cat": 1, "dog": 2}


@pytest.mark.parametrize("place", ["val/horse/h.jpg", "val/Cat/c.jpg", "val/cats/deep/c.jpg"])
def test_a_folder_of_no_class_is_named(tmp_path: Path, place: str) -> None:
    classes(tmp_path, extra=place)
    with pytest.raises(InputError, match=f"val has a folder '{place.split('/')[1]}', which is no class of the model"):
        check_data(pets(), scored(tmp_path))


def test_a_folder_too_many_to_train_with_is_named(tmp_path: Path) -> None:
    classes(tmp_path, extra="train/horse/h.jpg")
    assert "has 4 classes" in (said := mismatch(pets(), load_folder(tmp_path)))
    assert "no class of it: horse" in said
    assert mismatch(pets("detect"), load_folder(tmp_path)) != ""


# How many images


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ({}, 512),
        ({"count": 0}, 2000),
        ({"count": 7}, 7),
        ({"count": 700}, 700),
        ({"fraction": 0.5}, 1000),
        ({"fraction": 0.5, "count": 9}, 9),
    ],
)
def test_calibration_has_a_limit_unless_somebody_sets_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], count: int
) -> None:
    every = tuple(Path(f"{i:06d}.jpg") for i in range(2000))
    put(tmp_path / "a.jpg")
    monkeypatch.setattr("qexport.data.selection.image_list", lambda *_: every)
    images = select_images(ImageChoice(data=str(tmp_path), calibrates=True, evaluates=False, **given))
    assert (len(images.calibration), images.available) == (count, 2000)
    steps = {int(b.stem) - int(a.stem) for a, b in zip(images.calibration, images.calibration[1:], strict=False)}
    assert max(steps) - min(steps) <= 1  # evenly chosen
    assert images.notes == (
        ("calibrated on 512 of 2000 images, evenly chosen; --calib-images all takes all",) if not given else ()
    )


def test_a_small_data_set_is_taken_whole_and_nothing_is_said() -> None:
    assert note_of(None, 1.0, MAX_CALIBRATION) == ""
    assert note_of(None, 1.0, 118_287).startswith("calibrated on 512 of 118287 images")


@pytest.mark.parametrize("value", ["0", "-3", "0.5", "none", "ALL"])
def test_a_number_of_images_that_is_none_is_refused(refused: Refusal, value: str) -> None:
    line = refused(*INT8, "--data", "coco8.yaml", "--calib-images", value, code=2)
    assert "--calib-images" in line
    assert "all" in line


def test_a_class_folder_in_the_way_is_refused_before_anything_slow(refused: Refusal, tmp_path: Path) -> None:
    classes(tmp_path)
    line = refused(*INT8[:1], "--int8", "--data", str(tmp_path), code=INPUT)
    assert "is for classification" in line
