"""Whole runs of the installed command over several formats: one calibration, and a plan for each."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import logging
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import demo_images
from guides import DOCS, blocks, page
from refusals import CONVERSION, DATA, INPUT, MODEL, NOT_BUILT, PREFIX, UNMEASURED

from qexport.backends.registry import find_backend
from qexport.cli.app import main
from qexport.data.images import letterbox, read_image, to_tensor

COMMAND = str(Path(sys.executable).with_name("qexport"))
QUICK = ("--imgsz", "192", "--effort", "none")
DATASET = ("--data", DATA, "--calib-images", "32")
SCORED = 24
FEW = ("--data", DATA, "--calib-images", "4")
ALL = ("onnx", "openvino", "tensorrt", "tflite")
HALVED = ("onnx", "openvino")
SUFFIXES = {"onnx": ".onnx", "openvino": "_openvino_model", "tensorrt": "_tensorrt.onnx", "tflite": ".tflite"}

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """A finished run of the command."""

    folder: Path
    output: str
    errors: str

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        return content

    def artifact(self, name: str, precision: str) -> dict[str, Any]:
        entries = self.report["artifacts"]
        (found,) = (entry for entry in entries if (entry["format"], entry["precision"]) == (name, precision))
        return dict(found)

    @property
    def files(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


def run(folder: Path, *words: str, code: int = 0) -> Run:
    command = [COMMAND, str(MODEL), *QUICK, *words, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=folder.parent, timeout=500)
    assert done.returncode == code, done.stderr
    errors = "".join(line for line in done.stderr.splitlines(True) if not line.startswith(("→ ", "✓ ", "… ")))  # steps
    return Run(folder, done.stdout, errors)


def here(folder: Path, *words: str, code: int = 0) -> Run:
    """The same in this process: what another option changes is in the files and on stderr."""
    level = logging.getLogger().level
    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            assert main([str(MODEL), "--effort", "none", *words, "--quiet", "--out", str(folder)]) == code
    finally:
        logging.getLogger().setLevel(level)  # which the command line silences for good
    return Run(folder, "", errors.getvalue())


def artifacts(names: tuple[str, ...], *precisions: str) -> set[str]:
    """Artifacts, each with its manifest."""
    files = (f"shapes26_{precision}{SUFFIXES[name]}" for name in names for precision in precisions)
    return {f"{file}{end}" for file in files for end in ("", ".manifest.json")}


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A list of some validation images."""
    listing = tmp_path_factory.mktemp("scored") / "val.txt"
    listing.write_text("\n".join(map(str, demo_images("val", SCORED))))
    return str(listing)


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory, scored: str) -> Run:
    """INT8 in every format, scored; this machine has no TensorRT to build the engine with."""
    folder = tmp_path_factory.mktemp("every") / "out"
    words = ("--int8", *DATASET, "--eval-data", scored, "--no-latency")
    return run(folder, "--format", ",".join(ALL), *words, code=NOT_BUILT)


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, scored: str) -> Run:
    """FP16, scored."""
    folder = tmp_path_factory.mktemp("half") / "out"
    words = ("--data", DATA, "--eval-data", scored, "--no-latency", "--no-build")
    return here(folder, "--format", ",".join(HALVED), "--half", "--imgsz", "192", *words)


def test_every_format_is_written_beside_its_plan(every: Run) -> None:
    beside = {
        "calibration.npz",
        "report.json",
        "samples.npz",
        "build_engine.py",
        *(f"plan_{name}.json" for name in ALL),
    }
    assert every.files == artifacts(ALL, "int8", "fp32") | beside
    for name in ALL:
        plan = every.artifact(name, "int8")["plan"]
        assert plan == str(every.folder / f"plan_{name}.json")
        assert json.loads(Path(plan).read_text())["profile"] == name


def test_all_formats_share_one_calibration(every: Run) -> None:
    report = every.report
    assert report["calibration"]["images"] == 32
    assert [step for step in report["seconds"] if "calibrat" in step] == ["calibrate"]
    for name in ALL:
        steps = {
            f"{step}_{name}_{precision}" for step in ("lower", "verify", "evaluate") for precision in ("int8", "fp32")
        }
        assert steps <= set(report["seconds"])


def documented(every: Run, name: str, image: Path = Path()) -> list[str]:
    """The Python blocks of a page, for the files of a run and an image of the demo data."""
    parts = blocks(page(name), "python")
    return [
        each.replace("yolo26n_int8", f"{every.folder}/shapes26_int8").replace("bus.jpg", str(image)) for each in parts
    ]


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_documented_thresholds_are_the_reports(every: Run) -> None:
    (code,) = documented(every, "accuracy.md")
    found: dict[str, Any] = {}
    exec(code, found)
    told = every.artifact("onnx", "int8")["likeness"]["thresholds"]
    assert found["threshold"] == told["classes"].get("0", told["everything"])


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_documented_code_finds_what_is_in_an_image(
    every: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With each plain runtime: the pixels of the calibration, and the objects of the label file."""
    monkeypatch.chdir(tmp_path)
    image = demo_images("val", 1)[0]
    tools, suppress, *runtimes, draw, _ = documented(every, "formats.md", image)
    names: dict[str, Any] = {}
    exec(tools, names)
    exec(suppress, names)
    pixels, *_ = names["letterbox"](str(image), 160, 192)
    np.testing.assert_array_equal(pixels[0], to_tensor(letterbox(read_image(image), (160, 192))))
    # Two boxes of one class that overlap, one of another class, one that is unlikely; margins and factor by hand.
    output = np.array([[[50, 52, 50, 80], [50, 50, 50, 40], [20, 20, 20, 8], [40, 40, 40, 8], *[[0.0] * 4] * 2]])
    output[0, 4:] = [[0.9, 0.8, 0.1, 0.2], [0.1, 0.1, 0.6, 0.1]]
    rows = names["suppressed"](output)
    assert [(row[5], row[4]) for row in rows[0]] == [(0, 0.9), (1, 0.6)]
    assert names["found"](rows, ["a", "b"], 0.5, 10, 20) == [
        ("a", 0.9, [60, 20, 100, 100]),
        ("b", 0.6, [60, 20, 100, 100]),
    ]
    shares = output / np.array([100, 200, 100, 200, 1, 1])[None, :, None]  # as TFLite files have them
    np.testing.assert_allclose(names["suppressed"](shares, unit=(100, 200)), rows)
    assert len(runtimes) == 3
    for code in runtimes:
        capsys.readouterr()
        exec(code, names)
        _like_the_labels(image, names, capsys.readouterr().out)
    exec(draw, names)
    edge = names["y1"], (names["x1"] + names["x2"]) // 2  # of the last box
    assert tuple(names["image"][edge]) == (0, 255, 0) != tuple(read_image(image)[edge])
    assert read_image(Path("found.jpg")).shape == read_image(image).shape


def _like_the_labels(image: Path, names: dict[str, Any], printed: str) -> None:
    """Whatever is found is an object of its class, and lies there: in the image's own pixels."""
    text = Path(str(image).replace("images", "labels")).with_suffix(".txt").read_text()
    height, width = read_image(image).shape[:2]
    labels = np.array([line.split() for line in text.splitlines()], float)
    centres, sizes = labels[:, 1:3] * (width, height), labels[:, 3:] * (width, height)
    wanted = np.hstack([centres - sizes / 2, centres + sizes / 2])
    found = names["found"](*(names[each] for each in ("rows", "names", "factor", "left", "top")))
    assert len(printed.splitlines()) == len(found) > 0
    for name, score, box in found:
        assert f"{name} {score:.2f} {box}" in printed
        errors = np.abs(wanted - box).max(axis=1)
        assert name == names["names"][int(labels[errors.argmin(), 0])]
        assert errors.min() < 0.1 * sizes[errors.argmin()].max()


@pytest.mark.parametrize("name", ALL)
def test_files_say_which_thresholds_to_use(every: Run, name: str) -> None:
    """In their metadata, from calibration images; in the report from evaluation images, too, and from nothing far."""
    entry = every.artifact(name, "int8")
    stored = find_backend(name).read(every.folder / Path(entry["path"]).name).metadata["thresholds"]
    assert (ast.literal_eval(stored) if isinstance(stored, str) else stored) == entry["likeness"]["thresholds"]
    assert entry["likeness"]["images"] == 24  # at most, of 32
    assert entry["accuracy"]["thresholds"]["images"] == SCORED
    assert entry["accuracy"]["thresholds"]["everything"] == pytest.approx(0.25, abs=0.08)
    assert "likeness" not in entry["warnings_about"]
    whole = every.artifact(name, "fp32")
    assert whole["likeness"] is None
    assert "thresholds" not in whole["accuracy"]
    assert "thresholds" not in find_backend(name).read(every.folder / Path(whole["path"]).name).metadata


@pytest.mark.parametrize("name", ALL)
def test_int8_is_as_accurate_as_it_has_to_be(every: Run, name: str) -> None:
    entry = every.artifact(name, "int8")
    accuracy = entry["accuracy"]
    assert accuracy["images"] == SCORED
    assert accuracy["map_float"] == every.artifact(name, "fp32")["accuracy"]["map"]
    assert accuracy["map_float"] >= 0.65
    assert accuracy["retention"] >= 0.92
    assert 0.9 <= accuracy["fidelity"] <= 1
    assert 0.9 <= entry["int8_mac_coverage"] <= 1
    assert entry["verification"]["agreement"] >= 0.7


def test_float_files_of_all_formats_find_the_same(every: Run) -> None:
    scores = [every.artifact(name, "fp32")["accuracy"]["map"] for name in ALL]
    assert max(scores) - min(scores) < 1e-3


@pytest.mark.parametrize(("name", "activations"), [("tflite", "int8"), ("tensorrt", "int8"), ("onnx", "uint8")])
def test_the_report_says_which_integers_were_chosen(every: Run, name: str, activations: str) -> None:
    entry = every.artifact(name, "int8")
    assert entry["quantisation"]["activations"] == activations
    assert entry["quantisation"]["weights"].startswith("int8")
    assert every.artifact(name, "fp32")["quantisation"] is None


def test_the_table_has_a_row_for_each_artifact_in_80_columns(every: Run) -> None:
    lines = every.output.splitlines()
    rows = [" ".join(line.split()[:2]) for line in lines if line.startswith(tuple(f" {name} " for name in ALL))]
    mark = {"tensorrt": "†"}  # something else ran it
    written = [f"{name} {precision}{mark.get(name, '')}" for name in ALL for precision in ("int8", "fp32")]
    assert rows == [*written, "tensorrt ✗"]
    (legend,) = (at for at, line in enumerate(lines) if line.startswith("† tensorrt int8, tensorrt fp32: run by"))
    assert "ONNX Runtime" in lines[legend]
    table = (line for line in lines[:legend] if line.startswith(" "))
    assert max(map(len, table)) <= 80


@pytest.mark.parametrize("name", HALVED)
def test_half_precision_loses_next_to_nothing(half: Run, name: str) -> None:
    entry = half.artifact(name, "fp16")
    single = half.artifact(name, "fp32")
    assert entry["accuracy"]["map_float"] == single["accuracy"]["map"]
    assert entry["accuracy"]["map"] == pytest.approx(single["accuracy"]["map"], abs=0.01)
    assert entry["accuracy"]["fidelity"] >= 0.97
    assert entry["int8_mac_coverage"] is None
    assert entry["bytes"] < 0.85 * single["bytes"]


def test_half_precision_needs_no_calibration(half: Run) -> None:
    assert half.files == artifacts(HALVED, "fp16", "fp32") | {"report.json", "samples.npz"}
    assert half.report["calibration"] is None


def test_without_tensorrt_the_graph_is_written_and_the_run_says_how_to_build(every: Run) -> None:
    (line,) = every.errors.splitlines()
    assert line.startswith(f"{PREFIX}tensorrt: shapes26_int8_tensorrt.onnx is ready")
    assert "build_engine.py shapes26_int8_tensorrt.onnx" in line
    assert "--no-build" in line
    failures = every.report["failures"]
    assert [(entry["format"], entry["exit_code"]) for entry in failures] == [("tensorrt", NOT_BUILT)]
    assert " tensorrt ✗" in every.output


def test_a_format_that_cannot_be_converted_does_not_lose_the_other(tmp_path: Path) -> None:
    """Operator set 18 has no FP16 scales, which TensorRT's graph is made of."""
    words = ("--format", "tensorrt,onnx", "--opset", "18", "--int8", *FEW, *UNMEASURED, "--no-build")
    partly = here(tmp_path / "out", *words, "--imgsz", "96", code=CONVERSION)
    (line,) = partly.errors.splitlines()
    assert line.startswith(f"{PREFIX}tensorrt: ")
    assert "--opset" in line
    assert [entry["format"] for entry in partly.report["artifacts"]] == ["onnx"]
    assert [entry["format"] for entry in partly.report["failures"]] == ["tensorrt"]
    assert artifacts(("onnx",), "int8") <= partly.files
    assert not artifacts(("tensorrt",), "int8") & partly.files


def test_a_place_that_is_taken_does_not_lose_the_other_format(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    taken = tmp_path / "out" / "shapes26_fp32_openvino_model"
    taken.write_text("a file of the user's")
    partly = here(tmp_path / "out", "--format", "openvino,onnx", *UNMEASURED, "--imgsz", "96", code=INPUT)
    assert "shapes26_fp32_openvino_model cannot be written" in partly.errors
    assert partly.files == artifacts(("onnx",), "fp32") | {"shapes26_fp32_openvino_model", "report.json"}
    assert taken.read_text() == "a file of the user's"


def test_the_number_of_images_can_be_left_open(tmp_path: Path) -> None:
    words = ("--format", "onnx,openvino", "--int8", "--dynamic", *FEW, *UNMEASURED)
    finished = here(tmp_path / "out", *words, "--imgsz", "96", "160")  # as test_dynamic
    images = np.random.default_rng(0).random((3, 3, 96, 160), dtype=np.float32)
    for name in ("onnx", "openvino"):
        path = Path(finished.artifact(name, "int8")["path"])
        opened = find_backend(name).runner(path, 2)
        three = opened(images)[0]
        assert three.shape == (3, 300, 6)
        # Rows are ranked by score, so that scores are what can be compared across batch sizes.
        one = opened(images[1:2])[0]
        np.testing.assert_allclose(three[1, :20, 4], one[0, :20, 4], atol=0.02)
    assert finished.report["evaluation"] is None
