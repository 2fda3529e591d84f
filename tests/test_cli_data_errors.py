"""Data and calibration tables that cannot be used: one line that names them, or a count of what was skipped.

The refusals of options, models and places are in test_cli_errors.py.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from refusals import DATA, INPUT, INT8, MODEL, SHAPES, Refusal, description

from qexport.calibration.calibration_table import CalibrationTable, save_table
from qexport.cli.app import main

CORRUPT = b"\xff\xd8\xff\xe0 this is no JPEG"

pytestmark = pytest.mark.usefixtures("logging_level")


def dataset(folder: Path, train: int, val: int, corrupt: dict[str, int] | None = None) -> Path:
    """Copy the first images and labels of the demo data; the first `corrupt[split]` images are damaged."""
    for split, count in {"train": train, "val": val}.items():
        for kind, suffix in {"images": "jpg", "labels": "txt"}.items():
            (folder / kind / split).mkdir(parents=True)
            for file in sorted((SHAPES / kind / split).glob(f"*.{suffix}"))[:count]:
                shutil.copy(file, folder / kind / split / file.name)
        for file in sorted((folder / "images" / split).iterdir())[: (corrupt or {}).get(split, 0)]:
            file.write_bytes(CORRUPT)
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    return description(folder / "data.yaml", content)


def test_missing_dataset(refused: Refusal) -> None:
    assert "no/such.yaml" in refused(*INT8, "--data", "no/such.yaml", code=INPUT)


@pytest.mark.parametrize("split", ["train", "val"])
def test_dataset_without_the_split(refused: Refusal, tmp_path: Path, split: str) -> None:
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    content["path"] = str(SHAPES)
    del content[split]
    config = str(description(tmp_path / "lacking.yaml", content))
    line = refused(str(MODEL), "--int8", "--data", config, code=INPUT)
    assert f"no split '{split}'" in line
    assert "lacking.yaml" in line


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_images(refused: Refusal, tmp_path: Path, split: str) -> None:
    counts = {"train": 2, "val": 2} | {split: 0}
    config = dataset(tmp_path / "data", train=counts["train"], val=counts["val"])
    line = refused(str(MODEL), "--int8", "--data", str(config), code=INPUT)
    assert f"no images in split '{split}'" in line


def test_images_without_labels_for_fp32_alone(refused: Refusal, tmp_path: Path) -> None:
    config = dataset(tmp_path / "data", train=2, val=2)
    shutil.rmtree(tmp_path / "data" / "labels")
    # Known before anything slow: the run need not have written a model to find out.
    line = refused(str(MODEL), "--imgsz", "96", "--no-latency", "--data", str(config), code=INPUT)
    assert "label" in line
    assert "--no-eval" in line


def test_dataset_of_other_classes(refused: Refusal, tmp_path: Path) -> None:
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    content.update(path=str(SHAPES), names=["cat", "dog"])
    line = refused(str(MODEL), "--data", str(description(tmp_path / "pets.yaml", content)), code=INPUT)
    assert "pets.yaml has 2 classes" in line
    assert "has 6" in line


def test_dataset_mostly_corrupt(refused: Refusal, tmp_path: Path) -> None:
    config = dataset(tmp_path / "data", train=4, val=1, corrupt={"train": 3})
    line = refused(*INT8, "--data", str(config), code=INPUT)
    assert "1 of 4" in line
    assert "corrupt" in line


def test_calibration_of_another_model(refused: Refusal, tmp_path: Path, demo_table: CalibrationTable) -> None:
    save_table(demo_table, tmp_path / "other.npz")  # of the other head, and of 320 pixels
    line = refused(*INT8, "--data", DATA, "--calibration", "other.npz", code=INPUT)
    assert "other.npz" in line
    assert "another model" in line


@pytest.mark.parametrize("kind", ["missing", "text", "other npz", "npy", "no table"])
def test_calibration_that_is_none(refused: Refusal, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "table.npz"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other npz":
        np.savez(path, weights=np.zeros(3))
    elif kind == "npy":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "no table":
        np.savez(path, head=np.array(json.dumps([1])), scalars=np.zeros(1), counts=np.zeros(1))
    line = refused(*INT8, "--data", DATA, "--calibration", "table.npz", code=INPUT)
    assert "table.npz" in line
    assert "calibration" in line


@pytest.mark.slow
def test_a_corrupt_calibration_image_is_skipped_counted_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = dataset(tmp_path / "data", train=6, val=1, corrupt={"train": 1})
    (damaged,) = (file for file in (tmp_path / "data" / "images" / "train").iterdir() if file.read_bytes() == CORRUPT)
    quick = ("--format", "onnx", "--no-eval", "--no-latency")
    assert main([*INT8, *quick, "--data", str(config), "--out", str(tmp_path / "out")]) == 0
    calibration = json.loads((tmp_path / "out" / "report.json").read_text())["calibration"]
    assert calibration["images"] == 5
    assert [entry["image"] for entry in calibration["skipped"]] == [damaged.name]
    assert "corrupt" in calibration["skipped"][0]["reason"]
    shown = " ".join(capfd.readouterr().out.split())
    assert "warning: 1 calibration image" in shown
    assert damaged.name in shown


@pytest.mark.slow
def test_a_corrupt_evaluation_image_is_skipped_counted_and_named(tmp_path: Path) -> None:
    config = dataset(tmp_path / "data", train=1, val=5, corrupt={"val": 1})
    (damaged,) = (file for file in (tmp_path / "data" / "images" / "val").iterdir() if file.read_bytes() == CORRUPT)
    arguments = [
        str(MODEL),
        "--format",
        "onnx",
        "--imgsz",
        "96",
        "--no-latency",
        "--data",
        str(config),
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(arguments) == 0
    text = (tmp_path / "out" / "report.json").read_text()
    report = json.loads(text)
    assert report["artifacts"][0]["accuracy"]["images"] == 4
    assert damaged.name in text
