"""train.json and train.html, of a training whose figures are made up."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from reports import report

from qexport.errors import InputError
from qexport.optimisation.pass_record import PassRecord
from qexport.reporting.page.render import render
from qexport.reporting.page.training_page import write_training
from qexport.reporting.report import from_json, to_json
from qexport.reporting.training_report import ProfileTraining, TrainingReport, load_training, save_training
from qexport.training.recipe import Recipe
from qexport.training.record import EpochRecord, TrainingRecord

EPOCHS = tuple(
    EpochRecord(
        number=number,
        loss=1 / number,
        distance=distance,
        rates={"weights": 0.02 / number, "biases": 0.0, "scales": 0.002},
        seconds=30.5,
    )
    for number, distance in enumerate((0.041, 0.0375, 0.039), 1)
)
RECORD = TrainingRecord("tensorrt", EPOCHS, 0.05, 2, "all epochs", 112, 16, Recipe(epochs=3), "cpu", 91.5)
REPORT = TrainingReport(
    model="a<b.pt",
    sha256="ab" * 32,
    file=Path("out/a_qat.pt"),
    command="qexport qat a.pt",
    version="1",
    data="data.yaml",
    precision="int8",
    imgsz=(480, 640),
    profiles=(
        ProfileTraining(("tensorrt",), RECORD, (PassRecord("equalisation", True, 0.06, 0.05),), 0.941, 0.962),
        ProfileTraining(("tflite", "onnx"), replace(RECORD, profile="tflite", epochs=(), best=0)),
    ),
    seconds={"read": 1.5},
    notes=("left out b.jpg: it is empty",),
)


def page(folder: Path, report: TrainingReport = REPORT) -> str:
    write_training(report, folder / "train.html")
    return (folder / "train.html").read_text(encoding="utf-8")


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    save_training(REPORT, tmp_path / "train.json")
    assert load_training(tmp_path / "train.json") == REPORT
    content = json.loads((tmp_path / "train.json").read_text(encoding="utf-8"))
    assert content["schema"] == 1
    assert content["profiles"][0]["record"]["epochs"][1]["distance"] == 0.0375
    assert content["profiles"][0]["record"]["recipe"]["epochs"] == 3


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 9}', '{"schema": 1, "model": 3}'])
def test_what_is_none_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"train\.json .*: (train again)"):
        load_training(path)


def test_the_page_has_the_figures_and_loads_nothing(tmp_path: Path) -> None:
    text = page(tmp_path)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    for figure in ("0.05 by post-training quantisation", "0.0375 behind epoch 2", "0.941 before training, 0.962 now"):
        assert figure in words
    assert "no epoch was better" in words  # of the other profile
    assert "a&lt;b.pt" in text
    assert "left out b.jpg" in text
    assert not re.search(r"(src|href)=\"(?!#)", text)


def test_the_curve_has_a_point_for_each_epoch_and_lines_for_ptq_and_fp32(tmp_path: Path) -> None:
    text = page(tmp_path)
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert [re.search(r'aria-label="([^,"]*)', each).group(1) for each in charts] == [  # type: ignore[union-attr]
        "Distance from FP32 over 3 epochs",
        "Loss over 3 epochs",
        "Learning rates over 3 epochs",
    ]
    assert re.findall(r'data-card="epoch (\d)&#10;loss ([^&]*)&#10;distance ([^"]*)"', charts[0]) == [
        ("1", "1", "0.041"),
        ("2", "0.5", "0.0375"),
        ("3", "0.3333", "0.039"),
    ]
    assert {"before training", "FP32"} <= set(re.findall(r"<text[^>]*>([^<]*)</text>", charts[0]))
    named = set(re.findall(r"<text[^>]*>([^<]*)</text>", charts[2]))
    assert {"weights", "scales"} <= named
    assert "biases" not in named  # their rate is 0, which a logarithmic scale has no place for


def test_the_same_record_gives_the_same_page(tmp_path: Path) -> None:
    assert page(tmp_path) == page(tmp_path)


def test_the_report_of_an_export_from_such_a_checkpoint_has_the_curve() -> None:
    given = replace(report(), training=(RECORD,))
    assert from_json(json.loads(to_json(given))).training == (RECORD,)
    text = render(given)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))
    assert "For tensorrt: the simulated network was 0.05 from FP32 on 16 held-out images" in words
    assert "Distance from FP32 over 3 epochs" in text
    assert 'id="training"' not in render(report())
