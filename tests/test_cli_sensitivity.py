"""The verb `sensitivity`: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import DEMO, demo_images
from page_reader import read_page

from qexport.cli.app import main
from qexport.errors import InputError
from qexport.optimisation.sensitivity_record import Sensitivity, SensitivityRow
from qexport.reporting.page.sensitivity_page import write_sensitivity
from qexport.reporting.sensitivity_file import load_sensitivity, save_sensitivity

MODEL = str(DEMO / "shapes26.pt")
ROW = SensitivityRow(
    name="model.3",
    kind="block",
    operation="",
    block="model.3",
    macs=0.125,
    alone=0.03,
    left_out=0.01,
    noise=0.002,
    values=("model_3_conv", "model_3_mul"),
)
LAYER = replace(ROW, name="model_3_<conv>", kind="layer", operation="conv", values=("model_3_conv",))
FOUND = Sensitivity(profile="tflite", program="f0", images=8, whole=0.04, noise=0.003, rows=(ROW, LAYER), skipped=5)


def test_a_checkpoint_is_measured_printed_and_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, logging_level: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "few.txt").write_text("\n".join(str(each) for each in demo_images("train", 3)), encoding="utf-8")
    few = {"path": str(tmp_path), "train": "few.txt", "val": "few.txt", "names": {0: "a", 1: "b", 2: "c", 3: "d"}}
    names = yaml.safe_load((DEMO / "shapes" / "shapes.yaml").read_text(encoding="utf-8"))["names"]
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({**few, "names": names}), encoding="utf-8")
    words = ["--data", "few.yaml", "--format", "onnx", "--imgsz", "32", "--images", "1", "--quick"]
    assert main(["sensitivity", MODEL, *words, "--json", "found.json", "--out", "found.html"]) == 0
    output, _ = capfd.readouterr()
    found = load_sensitivity("found.json")
    assert (found.images, found.profile) == (1, "onnx")
    blocks = [row for row in found.rows if row.kind == "block"]
    assert {"model.0", "model.16", "model.23.one2one_cv3.2"} <= {row.name for row in blocks}
    assert found.skipped > 0
    assert output.index(f" {blocks[0].name} ") < output.index(f" {blocks[1].name} ")
    assert f"{found.share(blocks[0]):.0%}" in output
    page = read_page((tmp_path / "found.html").read_text(encoding="utf-8"))
    assert len(page.all("svg", role="img")) == 2
    assert not (tmp_path / "qexport_out").exists()


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    save_sensitivity(FOUND, tmp_path / "a.json")
    assert load_sensitivity(tmp_path / "a.json") == FOUND
    written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    for content in ({**written, "schema": 9}, {"schema": 1}, {}):
        (tmp_path / "b.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(InputError, match=r"b\.json"):
            load_sensitivity(tmp_path / "b.json")


def test_the_page_has_every_figure(tmp_path: Path) -> None:
    write_sensitivity(FOUND, tmp_path / "a.html", "m.pt")
    page = read_page((tmp_path / "a.html").read_text(encoding="utf-8"))
    rows = [[cell.text for cell in row if cell.tag in ("th", "td")] for row in page.all("tbody")[0].all("tr")]
    assert [row[:2] for row in rows] == [["model.3", "block"], ["model_3_<conv>", "conv"]]
    assert [row[2] for row in rows] == ["0.03", "0.03"]
    assert [row[4] for row in rows] == ["0.03", "0.03"]
    cards = [each.attributes["data-card"].splitlines() for each in page.all("g", data_card="")]
    assert [card[0] for card in cards] == ["model.3", "model_3_<conv>"]
    assert "75.0" in cards[0][1]
    assert "5 more were not measured" in page.text


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((MODEL,), 2, "sensitivity needs images to measure on: add --data DATA.yaml"),
        ((MODEL, "--data", "a.yaml", "--images", "0"), 2, "--images 0 is out of range"),
        ((MODEL, "--data", "a.yaml", "--precision", "fp16"), 2, "--precision fp16 has nothing that is planned"),
        ((MODEL, "--data", "a.yaml", "--format", "onnxx"), 2, "onnxx"),
        (("missing/m.pt", "--data", "coco8.yaml"), 3, "missing/m.pt does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    words: tuple[str, ...], code: int, said: str, capfd: pytest.CaptureFixture[str], logging_level: None
) -> None:
    assert main(["sensitivity", *words]) == code
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert said in line
