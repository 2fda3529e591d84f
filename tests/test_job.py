"""What is to be done: merging, converting and every refusal that needs no model."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from qexport.errors import InputError, MissingExtraError, UsageError
from qexport.job.options import ExportJob, make_job
from qexport.system.machine import cores

PASS = ("bias-correction",)
GOOD: dict[str, Any] = {"model": "yolo26n.pt", "data": "coco8.yaml", "int8": True}


def test_defaults_are_those_of_the_documentation() -> None:
    job = make_job({"model": "a/yolo26n.pt", "data": "coco8.yaml"})
    assert job == ExportJob(model="a/yolo26n.pt", data="coco8.yaml")
    assert (job.format, job.precision, job.imgsz, job.head, job.batch) == (("tflite",), "fp32", None, None, 1)
    assert (job.fraction, job.calib_images, job.range_method, job.threads) == (1.0, None, "auto", min(2, cores()))
    assert (job.opset, job.dynamic, job.cpu, job.no_build) == (None, False, "auto", False)
    assert (job.workspace, job.timing_cache, job.dla) == (None, None, None)
    assert (job.stem, job.folder) == ("yolo26n", Path("qexport_out/yolo26n"))
    assert make_job({**GOOD, "out": "build"}).folder == Path("build")
    assert make_job(GOOD).precision == "int8"


@pytest.mark.parametrize(
    ("given", "page", "report"),
    [
        (None, None, "out/report.json"),
        ("r.json", None, "r.json"),
        ("r.html", "r.html", "out/report.json"),
        ("R.HTM", "R.HTM", "out/report.json"),
        ("html", None, "html"),
    ],
)
def test_a_name_that_ends_in_html_is_a_page_beside_the_report(given: str | None, page: str | None, report: str) -> None:
    job = make_job({**GOOD, "out": "out", "report": given})
    assert (job.page and str(job.page), str(job.report_json)) == (page, report)


@pytest.mark.parametrize("report", ["gone/report.json", "."])
def test_a_report_that_cannot_be_written_is_refused_before_anything_runs(report: str) -> None:
    with pytest.raises(InputError, match=rf"^--report {re.escape(report)} cannot be written: give a file in a folder"):
        make_job({**GOOD, "report": report})


def test_a_job_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        make_job(GOOD).batch = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.0}, r"--fraction 0\.0 is out of range: give more than 0 and at most 1"),
        ({"fraction": -0.5}, r"--fraction -0\.5 is out of range"),
        ({"fraction": 1.01}, r"--fraction 1\.01 is out of range"),
        ({"fraction": float("nan")}, r"--fraction nan is out of range"),
        ({"min_images": 0}, r"--min-images 0 is out of range: give 1 or more"),
        ({"min_images": "few"}, r"--min-images cannot be 'few': give a whole number"),
        ({"calib_images": 0}, r"--calib-images 0 is out of range: give 1 or more"),
        ({"batch": 0}, r"--batch 0 is out of range: give 1 or more"),
        ({"batch": -3}, r"--batch -3 is out of range"),
        ({"threads": 0}, r"--threads 0 is out of range"),
        ({"jobs": 0}, r"--jobs 0 is out of range"),
        ({"head": "both"}, r"--head both is out of range: give end2end or one2many"),
        (
            {"ranges": "average"},
            r"--ranges average is out of range: give percentile, minmax, average-minmax, .* or auto",
        ),
        ({"device": "cuda:0"}, r"--device cuda:0 is not supported"),
        ({"opset": 17}, r"--opset 17 is out of range: give 18 to 23$"),
        ({"opset": 24}, r"--opset 24 is out of range"),
        ({"cpu": "sparc"}, r"--cpu sparc is out of range: give auto, vnni, avx2 or arm$"),
        ({"cpu": "any"}, r"--cpu any is out of range"),
        ({"workspace": 0}, r"--workspace 0\.0 is out of range: give more than 0 GiB"),
        ({"workspace": -1.5}, r"--workspace -1\.5 is out of range"),
        ({"workspace": float("nan")}, r"--workspace nan is out of range"),
        ({"workspace": float("inf")}, r"--workspace inf is out of range"),
        ({"dla": -1}, r"--dla -1 is out of range: give the number of a core, 0 or more"),
        ({"imgsz": 16}, r"--imgsz 16x16 is out of range: give 32 pixels or more"),
        ({"imgsz": "640,0"}, r"--imgsz 640x0 is out of range"),
        ({"half": True}, r"--int8 and --half exclude each other"),
        (
            {"data": None, "eval_data": "val.yaml"},
            r"--int8 needs images to calibrate with and to verify on: add --data",
        ),
        ({"data": None, "calibration": "c.npz", "no_eval": True}, r"--int8 needs images to calibrate with and"),
        ({"data": None, "int8": False, "half": True, "min_fidelity": 0.9}, r"--min-fidelity needs images to measure"),
        ({"format": []}, r"--format names no format"),
        ({"nms": True, "head": "end2end"}, r"--nms and --head end2end exclude each other"),
        ({"format": "tensorrtx"}, r"unknown format tensorrtx: choose from .*tflite"),
        ({"format": "tflite,coreml9"}, r"unknown format coreml9"),
        ({"format": "tflit", "data": None}, r"unknown format tflit: .*did you mean tflite"),
        ({"cpu": "vnn", "data": None}, r"--cpu vnn is out of range: .*did you mean vnni"),
        (
            {"int8": False, "precision": "int8-full", "format": "onnx"},
            r"format onnx cannot be written as int8-full: it can as ",
        ),
        (
            {"int8": False, "precision": "int8-full", "nms": True},
            r"--nms and --precision int8-full exclude each other: qexport\.decode",
        ),
        ({"precision": "int8-full"}, r"--int8 and --precision int8-full exclude each other"),
        ({"target": "pc"}, r"--target pc is out of range: give raspberrypi5, .* or mcu$"),
        ({"io": "int4"}, r"--io int4 is out of range: give int8 or uint8"),
        ({"io": "uint8"}, r"--io uint8 is for integer-only files: give --precision int8-full"),
        ({"target": "mcu", "int8": False, "half": True}, r"--target mcu is for integer-only files"),
        ({"target": "mcu", "format": "onnx"}, r"--target mcu is for TFLite files only"),
        ({"format": "tflite,edgetpu", "int8": False, "precision": "int8-full"}, r"formats tflite and edgetpu write"),
        ({"int8": False, "half": True, "precision": "fp32"}, r"--half and --precision fp32 exclude each other"),
        (
            {"int8": False, "precision": "int4"},
            r"--precision int4 is out of range: give fp32, .* or w8a16",
        ),
        (
            {"int8": False, "precision": "int8-full", "data": None},
            r"--precision int8-full needs images to calibrate with",
        ),
        (
            {"int8": False, "precision": "int8-full", "format": "tflite,tensorrt"},
            r"format tensorrt cannot be written as int8-full: it can as fp16, fp32, int8$",
        ),
        ({"dynamic": True}, r"format tflite has a fixed number of images: leave out --dynamic, or the format"),
        ({"dynamic": True, "format": "onnx,openvino,tflite"}, r"format tflite has a fixed number of images"),
        ({"model": None}, r"no model given: qexport MODEL\.pt"),
        (
            {"optimise": "bias-corection"},
            r"--optimise bias-corection is out of range: give mixed-precision, .* or .*; did you mean bias-correction$",
        ),
        ({"optimise": ["bias-correction", ""]}, r"--optimise  is out of range: give mixed-precision, .*$"),
        ({"effort": "bset"}, r"--effort bset is out of range: give none, fast, balanced or best; did you mean best$"),
        (
            {"optimise": PASS, "int8": False, "precision": "int8-dynamic"},
            r"--optimise and --precision int8-dynamic exclude each other: passes are for integer activations",
        ),
        ({"optimise": PASS, "int8": False}, r"--optimise and --precision fp32 exclude each other"),
        (
            {"optimise": PASS, "data": None, "calibration": "c.npz", "eval_data": "val.yaml"},
            r"--optimise needs calibration images: add --data DATA\.yaml$",
        ),
        ({"repair": True}, r"--repair needs a bound to meet: add --max-drop PERCENT, or leave it out$"),
        (
            {"repair": True, "max_drop": 1, "int8": False, "precision": "int8-full"},
            r"--repair and --precision int8-full exclude each other: it keeps values in float beside integers",
        ),
        ({"repair": True, "max_drop": 1, "int8": False}, r"--repair and --precision fp32 exclude each other"),
        ({"tune": "speed"}, r"--tune speed is out of range: give latency$"),
        ({"tune": "latency", "tune_seconds": 0}, r"--tune-seconds 0.* is out of range: give more than 0 seconds$"),
        ({"tune_seconds": 60}, r"--tune-seconds is for a search: add --tune latency, or leave it out$"),
        ({"tune": "latency", "int8": False}, r"--tune and --precision fp32 exclude each other: it chooses between"),
        (
            {"tune": "latency", "int8": False, "precision": "int8-full"},
            r"--tune and --precision int8-full exclude each other",
        ),
        (
            {"tune": "latency", "int8": False, "precision": "int8-dynamic"},
            r"--tune and --precision int8-dynamic exclude",
        ),
        ({"tune": "latency", "plan": "plan.json"}, r"--tune plans, and a plan was given: leave out --tune, or --plan"),
        (
            {"tune": "latency", "no_latency": True},
            r"--tune and --no-latency exclude each other: leave out one of them$",
        ),
        ({"tune": "latency", "target": "jetson-orin"}, r"--tune and --target jetson-orin exclude each other"),
        (
            {"tune": "latency", "format": "onnx,tensorrt"},
            r"--tune times files as they are written, which this machine cannot for tensorrt: leave it out$",
        ),
        ({"repair": True, "max_drop": 1, "plan": "plan.json"}, r"--repair plans, and a plan was given: leave out"),
        ({"candidate": "c.npz", "optimise": PASS}, r"--candidate and --optimise exclude each other: the candidate is"),
        ({"candidate": "c.npz", "plan": "plan.json"}, r"--candidate and --plan exclude each other"),
        ({"candidate": "c.npz", "ranges": "mse"}, r"--candidate and --ranges mse exclude each other"),
        ({"candidate": "c.npz", "keep_float": "a"}, r"--candidate and --keep-float exclude each other: what stays"),
        ({"candidate": "c.npz", "format": "onnx,tflite"}, r"--candidate is of one format, and onnx and tflite are to"),
        ({"candidate": "c.npz", "int8": False}, r"--candidate and --precision fp32 exclude each other"),
    ],
)
def test_what_no_model_could_make_possible_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=f"^{message}") as caught:
        make_job({**GOOD, **changes})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"fraction": 1.0},
        {"fraction": 1e-6},
        {"calib_images": 1},
        {"imgsz": 32},
        {"head": "one2many", "nms": True},
        {"data": None, "int8": False, "no_eval": True, "no_latency": True},
        {"data": None, "calibration": "c.npz", "eval_data": "val.yaml"},
        {"ranges": "mse"},
        {"optimise": PASS},
        {"optimise": PASS, "calibration": "c.npz"},
        {"optimise": PASS, "plan": "plan.json", "format": ("onnx",)},
        {"data": None, "candidate": "c.npz", "eval_data": "val.yaml"},
        {"opset": 18},
        {"opset": 23},
        {"cpu": "vnni"},
        {"cpu": "avx2"},
        {"cpu": "arm"},
        {"workspace": 0.001},
        {"dla": 0},
        {"no_build": True},
        {"format": ("onnx", "openvino", "tensorrt", "tflite")},
        {"format": ("onnx", "openvino", "tensorrt"), "dynamic": True},
        {"format": ("onnx", "openvino", "tensorrt"), "dynamic": True, "batch": 8},
    ],
)
def test_what_lies_just_inside_the_bounds_is_accepted(changes: dict[str, Any]) -> None:
    job = make_job({**GOOD, **changes})
    for name, value in changes.items():
        if name not in ("imgsz", "calibration", "plan", "candidate"):
            assert getattr(job, name) == value


def test_a_format_whose_package_is_missing_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.plugins.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qexport\[tflite\]'"):
        make_job(GOOD)


@pytest.mark.parametrize(
    "changes",
    [
        "batch=0",
        "config=1",
        "half=True",
        "format='unknown'",
        "dynamic=True",
        "",
        "format='onnx,openvino,tensorrt,tflite'",
    ],
    ids=["range", "name", "precision", "format", "batch", "accepted", "every format"],
)
def test_a_job_is_made_or_refused_without_torch(changes: str) -> None:
    code = (
        "import sys\nfrom qexport.job.options import make_job\n"
        f"try:\n make_job(dict(model='m.pt', data='d.yaml', {changes}))\nexcept Exception:\n pass\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("line", ["trust-checkpoint: true", "trust_checkpoint: false", "trust-checkpoint:"])
def test_a_file_does_not_say_whom_the_user_trusts(line: str, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"model: m.pt\n{line}\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"trust-checkpoint is not for files, .*: type --trust-checkpoint yourself"):
        make_job({"trust_checkpoint": True}, config)
    config.write_text("model: m.pt\n", encoding="utf-8")
    assert make_job({"trust_checkpoint": True}, config).trust_checkpoint


def test_the_best_effort_repairs_where_there_is_a_bound_to_meet() -> None:
    def repairs(**changes: Any) -> bool:
        return make_job({**GOOD, **changes}).repairs

    assert repairs(effort="best", max_drop=1)
    assert repairs(effort="none", max_drop=1, repair=True)
    assert not repairs(effort="best")
    assert not repairs(effort="balanced", max_drop=1)
    assert not repairs(effort="best", max_drop=1, plan="plan.json")
    assert not repairs(effort="best", max_drop=1, int8=False, precision="int8-full")


def test_an_effort_is_passes_and_those_that_are_named_go_before_them(tmp_path: Path) -> None:
    def passes(**options: Any) -> tuple[str, ...]:
        given = {"model": "m.pt", "int8": True, "data": "d.yaml", "format": "onnx", **options}
        return make_job(given).passes

    assert passes(effort="none") == ()
    assert passes(effort="fast") == ("score-shift",)
    balanced = ("equalisation", "weight-scales", "adaptive-rounding", "score-shift")
    assert passes() == passes(effort="balanced") == balanced
    assert passes(effort="best") == ("mixed-precision", *balanced)
    assert passes(effort="best", optimise="equalisation") == ("equalisation",)
    assert passes(effort="best", plan="plan.json") == passes(effort="best", candidate="c.npz") == ()
    assert (
        passes(effort="fast", model="m.onnx") == passes(effort="fast", int8=False, half=True) == passes(effort="fast")
    )
    config = tmp_path / "c.yaml"
    config.write_text("effort: fast\n", encoding="utf-8")
    assert make_job({"model": "m.pt", "int8": True, "data": "d.yaml"}, config).effort == "fast"


@pytest.mark.parametrize(("there", "threads"), [(1, 1), (2, 2), (64, 2)])
def test_no_more_threads_than_cores_unless_somebody_says_so(
    there: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qexport.system.machine.cores", lambda: there)
    assert make_job({"model": "a.pt"}).threads == threads
    assert make_job({"model": "a.pt", "threads": 3}).threads == 3
