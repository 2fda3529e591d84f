"""The report: the fields that others read by name, figures by hand, and warnings that must not be left out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import demo_checkpoint, demo_images

from qexport.backends.artifact import Artifact
from qexport.backends.registry import find_backend, reported_packages
from qexport.calibration.calibration_table import CalibrationTable
from qexport.data.dataset import Dataset
from qexport.data.selection import RunImages
from qexport.errors import ConversionError, EngineNotBuiltError
from qexport.job.options import ExportJob, make_job
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures
from qexport.programs.program import Program
from qexport.publish import run_options
from qexport.reporting.assemble import Inputs, Measured, make_report, with_artifacts
from qexport.reporting.renderings import save_report
from qexport.reporting.report import Report, Warning, to_json
from qexport.reporting.warnings import accuracy_warnings, latency_warnings, reference_warnings
from qexport.system.machine import environment
from qexport.verification.outcome import Verification
from qexport.verification.result import ArtifactResult

INT8 = Artifact(Path("out/demo_int8.tflite"), "tflite", "int8", "a" * 64, 987_654)
FP32 = Artifact(Path("out/demo_fp32.tflite"), "tflite", "fp32", "b" * 64, 2_345_678)
TYPES = {"activations": "int8", "weights": "int8, full range", "cpu": "any"}


def figures() -> dict[Path, Figures]:
    return {
        INT8.path: Figures(Accuracy(0.396, 0.55, 0.912345678, 100, (), {}), Latency(12.5, 14.0, 12.0, 40)),
        FP32.path: Figures(Accuracy(0.4, 0.56, None, 100, (), {}), Latency(40.0, 41.0, 39.0, 40)),
    }


def job(**changes: Any) -> ExportJob:
    return make_job({"model": "demo.pt", "data": "shapes.yaml", "int8": True, "threads": 3, **changes})


def images(both: int = 0, evaluation: int = 100) -> RunImages:
    chosen = tuple(demo_images("val", evaluation))
    data = Dataset(Path("shapes.yaml"), Path(), {}, demo_checkpoint().names, 3, None)
    return RunImages(tuple(demo_images("train", 4)), chosen, data, chosen[:both])


def make(program: Program, table: CalibrationTable | None, **changes: Any) -> Report:
    backend = find_backend("tflite")
    checked = Verification(123, 4, 0.97, 4, 0.987654, min_agreement=0.8, overlap=0.98, shift=-0.01)
    written = [
        ArtifactResult(INT8, backend, checked, Path("out/plan.json"), TYPES),
        ArtifactResult(FP32, backend),
    ]
    settings = {"images": images(), "written": written, "figures": figures(), "failures": (), "job": job(), **changes}
    options = run_options(settings["job"], "qexport demo.pt --int8")
    inputs = Inputs(options, demo_checkpoint(), program, table, settings["images"])
    measured = Measured(settings["written"], settings["figures"])
    begun = make_report(inputs, environment(reported_packages()), settings["failures"])
    return with_artifacts(begun, measured, inputs, {"read": 1.25, "calibrate": 2.5})


@pytest.fixture(scope="module")
def report(demo_one2many: Program, demo_table: CalibrationTable) -> Report:
    return make(demo_one2many, demo_table)


def test_the_json_has_the_documented_fields_of_an_artifact(report: Report) -> None:
    content = json.loads(to_json(report))
    int8, fp32 = content["artifacts"]
    assert int8["path"] == "out/demo_int8.tflite"
    assert (int8["format"], int8["precision"], int8["sha256"], int8["bytes"]) == (
        "tflite",
        "int8",
        "a" * 64,
        987_654,
    )
    assert int8["accuracy"] == {
        "map": 0.396,
        "map50": 0.55,
        "map_float": 0.4,
        "map50_float": 0.56,
        "drop": 0.004,
        "retention": 0.99,  # 0.396 / 0.4
        "fidelity": 0.91235,
        "fidelity_ceiling": 0.995,
        "images": 100,
    }
    assert int8["latency_ms"] == {"p50": 12.5, "p95": 14.0, "min": 12.0}
    assert int8["latency_float_ms"] == {"p50": 40.0, "p95": 41.0, "min": 39.0}
    assert int8["speedup"] == 3.2
    assert int8["runtime"] == fp32["runtime"] == find_backend("tflite").info.runtime
    assert "XNNPACK" in int8["runtime"]
    assert int8["int8_mac_coverage"] == 0.9877
    assert int8["verification"] == {
        "tensors": 123,
        "unnamed": 4,
        "agreement": 0.97,
        "images": 4,
        "coverage": 0.987654,
        "cosine": None,
        "min_agreement": 0.8,
        "planned_coverage": None,
        "overlap": 0.98,
        "shift": -0.01,
        "remark": "",
    }
    assert int8["plan"] == "out/plan.json"
    assert int8["quantisation"] == {"activations": "int8", "weights": "int8, full range", "cpu": "any"}
    assert fp32["plan"] is fp32["quantisation"] is fp32["verification"] is None
    assert int8["warnings"] == fp32["warnings"] == []
    assert content["failures"] == []
    assert fp32["latency_float_ms"] is fp32["speedup"] is fp32["int8_mac_coverage"] is None
    assert int8["gallery"] is int8["layers"] is int8["histograms"] is None
    assert fp32["accuracy"]["map"] == 0.4
    assert fp32["accuracy"]["retention"] is None


def test_the_json_says_where_and_of_what_the_figures_are(
    report: Report, demo_one2many: Program, demo_table: CalibrationTable
) -> None:
    content = json.loads(to_json(report))
    assert content["schema"] == 2
    assert content["command"] == "qexport demo.pt --int8"
    assert content["threads"] == 3
    assert content["seconds"] == {"read": 1.25, "calibrate": 2.5}
    environment = content["environment"]
    assert set(environment) >= {"python", "system", "processor", "cores", "packages"}
    assert {"torch", "ultralytics", "numpy", "ai-edge-litert"} <= set(environment["packages"])
    checkpoint = Path(demo_checkpoint().path)
    model = content["model"]
    assert model["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert model["program"] == demo_one2many.fingerprint
    assert (model["task"], model["head"], model["imgsz"], model["classes"]) == (
        "detect",
        "one2many",
        [320, 320],
        6,
    )
    calibration, evaluation = content["calibration"], content["evaluation"]
    assert (calibration["images"], calibration["fingerprint"]) == (4, demo_table.images)
    assert (evaluation["data"], evaluation["images"]) == ("shapes.yaml", 100)
    assert len(evaluation["fingerprint"]) == 32
    assert evaluation["also_calibrated_on"] == []


def test_formats_that_failed_are_named_with_their_reason_and_exit_code(
    demo_one2many: Program, demo_table: CalibrationTable
) -> None:
    failures = [
        ("openvino", ConversionError("no such kernel", "try another")),
        ("tensorrt", EngineNotBuiltError("no TensorRT")),
    ]
    assert json.loads(to_json(make(demo_one2many, demo_table, failures=failures)))["failures"] == [
        {"format": "openvino", "reason": "no such kernel: try another", "exit_code": 5},
        {"format": "tensorrt", "reason": "no TensorRT", "exit_code": 8},
    ]


def test_each_format_is_compared_with_its_own_float_file(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    onnx = find_backend("onnx")
    int8 = replace(INT8, path=Path("out/demo_int8.onnx"), format="onnx")
    fp32 = replace(FP32, path=Path("out/demo_fp32.onnx"), format="onnx")
    lite = find_backend("tflite")
    written = [
        ArtifactResult(INT8, lite),
        ArtifactResult(FP32, lite),
        ArtifactResult(int8, onnx),
        ArtifactResult(fp32, onnx),
    ]
    measured = figures()
    measured[int8.path] = Figures(Accuracy(0.3, 0.4, 0.8, 100, (), {}), Latency(20.0, 21.0, 19.0, 40))
    measured[fp32.path] = Figures(Accuracy(0.5, 0.6, None, 100, (), {}), Latency(30.0, 31.0, 29.0, 40))
    made = make(demo_one2many, demo_table, written=written, figures=measured)
    rows = [(entry.format, entry.precision, entry.speedup) for entry in made.artifacts]
    assert rows == [("tflite", "int8", 3.2), ("tflite", "fp32", None), ("onnx", "int8", 1.5), ("onnx", "fp32", None)]
    retained = [entry.accuracy.retention if entry.accuracy else 0 for entry in made.artifacts]
    assert retained == [0.99, None, 0.6, None]


def test_the_file_is_the_json(report: Report, tmp_path: Path) -> None:
    save_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == json.loads(to_json(report))


def test_what_is_kept_of_next_to_nothing_says_nothing() -> None:
    exact = Accuracy(0.01, 0.02, None, 100, (), {})
    assert reference_warnings(None) == reference_warnings(exact) == ()
    (told,) = reference_warnings(replace(exact, map=0.0))
    text = "FP32's accuracy is 0.0000: retention and drop say nothing; is it trained, on such data?"
    assert told == Warning("accuracy", text)


def test_few_images_are_warned_of(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    few = {path: replace(f, accuracy=replace(f.accuracy, images=49)) for path, f in figures().items() if f.accuracy}
    made = make(demo_one2many, demo_table, figures=few)
    assert all("49 images only" in artifact.warned("accuracy")[0].text for artifact in made.artifacts)
    assert accuracy_warnings(50, (), 0) == ()
    (told,) = accuracy_warnings(98, ("a.jpg", "b.jpg"), 0)
    assert told == Warning("accuracy", "2 evaluation images or their labels could not be read: a.jpg, b.jpg")


def test_an_overlap_is_warned_of_and_named(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    made = make(demo_one2many, demo_table, images=images(both=2))
    assert any("2 of 100 evaluation images were calibrated on" in w.text for w in made.artifacts[0].warned("accuracy"))
    assert json.loads(to_json(made))["evaluation"]["also_calibrated_on"] == ["val00000.jpg", "val00001.jpg"]


@pytest.mark.parametrize(("p95", "warned"), [(12.0, False), (12.1, True)])
def test_a_restless_machine_is_warned_of(p95: float, warned: bool) -> None:
    steady, restless = Latency(10.0, 10.1, 9.0, 40), Latency(10.0, p95, 9.0, 40)
    assert bool(latency_warnings(steady, restless)) == bool(latency_warnings(restless)) == warned
    if warned:
        (told,) = latency_warnings(steady, restless)
        assert told == Warning("latency", "latency varied: the 95th percentile is 21% above the median")


def test_skipped_calibration_images_are_named(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    table = replace(demo_table, skipped=(("a.jpg", "image a.jpg is empty"),))
    made = make(demo_one2many, table)
    assert made.warnings[0] == Warning("run", "1 calibration images were skipped: a.jpg (image a.jpg is empty)")
    assert json.loads(to_json(made))["calibration"]["skipped"] == [{"image": "a.jpg", "reason": "image a.jpg is empty"}]


def test_other_class_names_and_an_unchecked_table_are_warned_of(
    demo_one2many: Program, demo_table: CalibrationTable
) -> None:
    chosen = images()
    assert chosen.evaluation_data is not None
    named = replace(chosen, evaluation_data=replace(chosen.evaluation_data, names={i: str(i) for i in range(6)}))
    (told,) = make(demo_one2many, demo_table, images=named).warnings
    assert (told.about, "class names of shapes.yaml differ" in told.text) == ("accuracy", True)
    reused = make(demo_one2many, demo_table, images=replace(chosen, calibration=()), job=job(calibration="c.npz"))
    assert "were not compared with those of --calibration" in reused.warnings[0].text


def test_what_was_not_measured_is_null(demo_one2many: Program, demo_table: CalibrationTable) -> None:
    nothing = dict.fromkeys((INT8.path, FP32.path), Figures())
    made = make(demo_one2many, demo_table, figures=nothing, job=job(no_eval=True), images=RunImages())
    content = json.loads(to_json(made))
    assert content["evaluation"] is None
    int8 = content["artifacts"][0]
    assert int8["accuracy"] is int8["latency_ms"] is int8["latency_float_ms"] is int8["speedup"] is None


def test_without_calibration_there_is_no_calibration_entry(demo_one2many: Program) -> None:
    assert make(demo_one2many, None).calibration is None


def test_a_float_model_that_finds_nothing_has_no_retention(
    demo_one2many: Program, demo_table: CalibrationTable
) -> None:
    measured = figures()
    measured[FP32.path] = Figures(Accuracy(0.0, 0.0, None, 100, (), {}))
    accuracy = make(demo_one2many, demo_table, figures=measured).artifacts[0].accuracy
    assert accuracy is not None
    assert accuracy.retention is None
