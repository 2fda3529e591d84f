"""Whole runs on the demo model, most of them of the installed command, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_models import saved, small_model

from qexport.cli.app import main

ROOT = Path(__file__).resolve().parents[1]
COMMAND = str(Path(sys.executable).with_name("qexport"))
DEMO = ROOT / "calibration_data"
SHAPES = DEMO / "shapes"
MODEL = str(DEMO / "shapes26.pt")
JOB = (MODEL, "--format", "tflite", "--int8", "--data", str(SHAPES / "shapes.yaml"), "--imgsz", "320")
UNMEASURED = ("--no-eval", "--no-latency")
OTHER_HEAD = ("--head", "one2many", "--effort", "none", "--calib-images", "32")
IMAGES = {"train": 128, "val": 100}
ARTIFACTS = {f"shapes26_{precision}.tflite{end}" for precision in ("int8", "fp32") for end in ("", ".manifest.json")}
FULL = ARTIFACTS | {"calibration.npz", "plan.json", "report.json", "samples.npz"}
PASSES = ["equalisation", "weight-scales", "adaptive-rounding", "score-shift"]

VALIDATE = """
import sys
from qexport.compat.quiet import quiet_libraries
quiet_libraries()
from qexport.compat.torchvision import repair
repair()
from ultralytics import YOLO
model, data, project = sys.argv[1:]
metrics = YOLO(model).val(data=data, imgsz=320, device="cpu", plots=False, verbose=False, project=project)
print("map", float(metrics.box.map))
"""

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

    def artifact(self, precision: str) -> dict[str, Any]:
        (found,) = (entry for entry in self.report["artifacts"] if entry["precision"] == precision)
        return dict(found)

    @property
    def candidate(self) -> set[str]:
        """What is there where a pass was kept."""
        return {"candidate.npz"} if any(each["kept"] for each in self.artifact("int8")["passes"]) else set()

    def bytes_of(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()


def run(folder: Path, *words: str) -> Run:
    command = [COMMAND, *words, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=folder.parent, timeout=600)
    assert done.returncode == 0, done.stderr
    return Run(folder, done.stdout, done.stderr)


def here(folder: Path, *words: str) -> Run:
    """The same in this process, with everything that it or a library writes: what no other process is needed for."""
    level = logging.getLogger().level
    with ExitStack() as stack:
        said = [stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8")) for _ in range(2)]
        stack.callback(logging.getLogger().setLevel, level)  # which the command line silences for good
        for number, file in enumerate(said, 1):  # compiled code writes to the descriptor
            kept = os.dup(number)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, number)
            os.dup2(file.fileno(), number)
        stack.enter_context(redirect_stdout(said[0]))
        stack.enter_context(redirect_stderr(said[1]))
        code = main([*words, "--out", str(folder)])
        for file in said:
            file.seek(0)
        output, errors = (file.read() for file in said)
    assert code == 0, errors
    return Run(folder, output, errors)


def below(folder: Path) -> set[str]:
    """Everything in a folder, hidden files and subfolders included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`qexport demo`, with a check that it writes nowhere but to its folder."""
    parent = tmp_path_factory.mktemp("demo")
    before = below(DEMO)
    finished = run(parent / "out", "demo")
    assert below(DEMO) == before
    assert {path.name for path in parent.iterdir()} == {"out"}
    return finished


@pytest.fixture(scope="module")
def one2many(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The other head, scored, in silence, with a page of the report."""
    folder = tmp_path_factory.mktemp("one2many")
    page = str(folder / "page.html")
    return here(folder / "out", *JOB, *OTHER_HEAD, "--no-latency", "--quiet", "--report", page)


@pytest.fixture(scope="module")
def again(one2many: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same job with the other's calibration, not measured, reported as JSON."""
    table = str(one2many.folder / "calibration.npz")
    folder = tmp_path_factory.mktemp("again") / "out"
    return run(folder, *JOB, *OTHER_HEAD, *UNMEASURED, "--json", "--calibration", table)


@pytest.fixture(scope="module")
def shapes_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo data in a place where Ultralytics may leave its caches."""
    folder = tmp_path_factory.mktemp("copy") / "shapes"
    shutil.copytree(SHAPES, folder)
    content = {**yaml.safe_load((SHAPES / "shapes.yaml").read_text()), "path": str(folder)}
    (folder / "shapes.yaml").write_text(yaml.safe_dump(content))
    return folder / "shapes.yaml"


def validated(model: Path, data: Path, scratch: Path) -> float:
    """mAP50-95 as a user of Ultralytics computes it, in a process of its own."""
    words = [sys.executable, "-c", VALIDATE, str(model), str(data), str(scratch)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=scratch, timeout=300)
    assert done.returncode == 0, done.stderr
    return float(done.stdout.splitlines()[-1].removeprefix("map "))


def test_the_folder_holds_these_files_and_no_others(demo: Run) -> None:
    assert below(demo.folder) == FULL | demo.candidate


def test_the_report_says_what_went_in_and_where_it_ran(demo: Run) -> None:
    report = demo.report
    assert report["schema"] == 2
    assert report["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "ultralytics", "litert-torch", "ai-edge-litert"} <= set(report["environment"]["packages"])
    assert report["model"]["sha256"] == hashlib.sha256(Path(MODEL).read_bytes()).hexdigest()
    assert (report["model"]["head"], report["model"]["imgsz"], report["model"]["classes"]) == ("end2end", [320, 320], 6)
    assert report["calibration"]["images"] == IMAGES["train"]
    assert report["evaluation"]["images"] == IMAGES["val"]
    assert report["calibration"]["fingerprint"] != report["evaluation"]["fingerprint"]
    assert report["evaluation"]["also_calibrated_on"] == []
    assert report["command"].startswith("qexport demo --out ")


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_the_report_describes_the_files(demo: Run, precision: str) -> None:
    entry = demo.artifact(precision)
    content = Path(entry["path"]).read_bytes()
    assert Path(entry["path"]) == demo.folder / f"shapes26_{precision}.tflite"
    assert entry["format"] == "tflite"
    assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    assert entry["bytes"] == len(content)
    # All 100 images are scored, and the model is a good one: only times on a busy machine may be warned of.
    timed = ("latency varied", "tflite runs float32 files faster")
    assert [text for text in entry["warnings"] if not text.startswith(timed)] == []


def test_int8_is_as_accurate_as_it_has_to_be(demo: Run) -> None:
    accuracy = demo.artifact("int8")["accuracy"]
    assert accuracy["images"] == IMAGES["val"]
    assert accuracy["map_float"] == demo.artifact("fp32")["accuracy"]["map"]
    assert accuracy["map_float"] >= 0.80
    assert accuracy["retention"] == pytest.approx(accuracy["map"] / accuracy["map_float"], abs=1e-4)
    assert accuracy["retention"] >= 0.95
    assert 0.85 <= accuracy["fidelity"] <= 1


def test_the_evidence_belongs_to_the_figures(demo: Run) -> None:
    entry = demo.artifact("int8")
    accuracy = entry["accuracy"]
    assert sum(each["map"] for each in accuracy["per_class"]) / 6 == pytest.approx(accuracy["map"], abs=2e-5)
    low, high = accuracy["drop_interval"]
    assert low <= accuracy["drop"] <= high
    assert high - low < 0.05
    assert -0.1 < accuracy["confidence"]["shift"] < 0.05
    assert [each["name"] for each in entry["layers"]][:2] == ["images", "model_0_conv"]
    integers = [each for each in entry["layers"] if each["dtype"] == "int8"]
    # A second process has measured it; what the plan cuts on purpose, above what no reader can tell apart, is low.
    assert min(each["sqnr_db"] for each in integers if " above " not in each["why"]) > 10
    assert min(each["sqnr_db"] for each in integers) > 0
    assert len(entry["histograms"]) == 8
    for picture in entry["gallery"]:
        assert Path(picture["path"]).is_file()
        assert picture["lost"] or picture["gained"]


def test_int8_is_small_and_runs_in_integers(demo: Run) -> None:
    int8, fp32 = demo.artifact("int8"), demo.artifact("fp32")
    assert int8["bytes"] < fp32["bytes"] / 2
    assert 0.9 <= int8["int8_mac_coverage"] <= 1
    assert int8["verification"]["tensors"] > 100
    assert int8["verification"]["agreement"] >= 0.75


def test_the_default_effort_tries_its_passes_and_says_what_became_of_them(demo: Run) -> None:
    """The demo model has no ReLU to equalise across; of what is tried, only what helps is kept."""
    report, entry = demo.report, demo.artifact("int8")
    assert report["calibration"]["ranges"] == "auto"
    first, *tried = entry["passes"]
    assert [each["name"] for each in (first, *tried)] == PASSES
    assert first["reason"].startswith("not run: ")
    for each in tried:
        assert min(each["before"], each["after"], each["noise"]) > 0
        assert each["images"] == min(IMAGES["train"] // 2, 40)
        assert each["kept"] != each["reason"].startswith("reverted: ")
    assert report["seconds"]["optimise_tflite_int8"] > 0
    words = [COMMAND, "verify", str(demo.folder / "shapes26_int8.tflite"), "--json"]
    verified = subprocess.run(words, capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert verified.returncode == 0, verified.stderr
    checks = json.loads(verified.stdout)["checks"]
    assert {"hash", "plan"} <= {check["name"] for check in checks}
    assert all(check["passed"] for check in checks)


def test_latencies_are_ordered_and_the_speedup_is_their_ratio(demo: Run) -> None:
    int8, fp32 = demo.artifact("int8"), demo.artifact("fp32")
    for latency in (int8["latency_ms"], fp32["latency_ms"]):
        assert 0 < latency["min"] <= latency["p50"] <= latency["p95"]
    assert int8["latency_float_ms"] == fp32["latency_ms"]
    ratio = int8["latency_float_ms"]["p50"] / int8["latency_ms"]["p50"]
    assert int8["speedup"] == pytest.approx(ratio, rel=0.02)


def test_the_terminal_shows_the_figures_of_the_report_in_80_columns(demo: Run) -> None:
    lines = demo.output.splitlines()
    table = [line for line in lines if line.startswith(" ")]  # sentences are whole in a pipe
    assert len(table) > 4
    assert max(map(len, table)) <= 80
    accuracy, coverage = demo.artifact("int8")["accuracy"], demo.artifact("int8")["int8_mac_coverage"]
    for figure in (f"{accuracy['map']:.4f}", f"{accuracy['retention']:.1%}", f"{coverage:.1%}"):
        assert figure in demo.output
    _, verdict, *advice = lines[lines.index(f"report: {demo.folder / 'report.json'}") :]
    assert verdict.startswith("verdict: INT8 TFLite keeps ")
    assert all(line.startswith("try: qexport ") for line in advice)  # where INT8 is slower on this CPU


def test_no_library_talks_on_stderr(demo: Run) -> None:
    strange = [line for line in demo.errors.splitlines() if line.strip() and not line.startswith(("→ ", "✓ ", "… "))]
    assert strange == []


def test_ultralytics_validates_the_file_to_the_same_figure(demo: Run, shapes_copy: Path, tmp_path: Path) -> None:
    found = validated(demo.folder / "shapes26_int8.tflite", shapes_copy, tmp_path)
    assert found == pytest.approx(demo.artifact("int8")["accuracy"]["map"], abs=6e-6)  # as rounded there


def test_the_one_to_many_head_is_as_accurate_as_it_has_to_be(one2many: Run) -> None:
    entry = one2many.artifact("int8")
    assert one2many.report["model"]["head"] == "one2many"
    assert entry["accuracy"]["retention"] >= 0.95
    assert entry["accuracy"]["fidelity"] >= 0.85
    assert entry["int8_mac_coverage"] >= 0.9
    assert entry["latency_ms"] is None


def test_quiet_prints_nothing(one2many: Run) -> None:
    assert (one2many.output, one2many.errors) == ("", "")


def test_a_page_is_written_where_it_is_asked_for_and_report_json_as_usual(one2many: Run) -> None:
    assert below(one2many.folder) == FULL
    page = (one2many.folder.parent / "page.html").read_text(encoding="utf-8")
    size = one2many.artifact("int8")["bytes"]
    assert f'<data data-figure="artifacts.0.bytes" value="{size}">{size / 1e6:.2f}</data>' in page
    assert one2many.report["model"]["sha256"] in page


def test_json_prints_the_report_and_nothing_else(again: Run) -> None:
    assert again.output.encode() == again.bytes_of("report.json")
    assert again.errors == ""


def test_an_unmeasured_run_writes_no_float_file_and_none_that_it_was_given(again: Run) -> None:
    floats = {"shapes26_fp32.tflite", "shapes26_fp32.tflite.manifest.json"}
    assert below(again.folder) == FULL - {"calibration.npz", *floats}
    (entry,) = again.report["artifacts"]
    assert entry["precision"] == "int8"
    assert (entry["accuracy"], entry["latency_ms"], entry["speedup"]) == (None, None, None)
    assert again.report["evaluation"] is None


def test_a_saved_calibration_gives_the_same_plan_and_file_in_another_process(one2many: Run, again: Run) -> None:
    """The other file was written in this process; `test_verify_file.py` has that two calibrate to the same table."""
    for name in ("plan.json", "shapes26_int8.tflite"):
        assert again.bytes_of(name) == one2many.bytes_of(name)
    assert again.report["calibration"]["table"] == str(one2many.folder / "calibration.npz")
    assert "calibrate" not in again.report["seconds"]


def test_float_export_without_data(tmp_path: Path) -> None:
    model = saved(small_model("Detect", end2end=True, reg_max=1), tmp_path / "small.pt")
    words = (str(model), "--imgsz", "64", "96", *UNMEASURED, "--report", str(tmp_path / "r.json"))
    finished = here(tmp_path / "out", *words)
    assert below(finished.folder) == {"small_fp32.tflite", "small_fp32.tflite.manifest.json"}
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["model"]["imgsz"] == [64, 96]
    assert report["calibration"] is None
    assert report["artifacts"][0]["precision"] == "fp32"
    assert report["artifacts"][0]["int8_mac_coverage"] is None
