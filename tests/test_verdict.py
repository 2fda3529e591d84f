"""What a report comes to, in one line for each artifact, and what is to be typed next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from test_terminal import printed

from qexport.backends.device_fit import DeviceFit, Lacking
from qexport.measurement.attempt import Unmeasured
from qexport.optimisation.pass_record import PassRecord
from qexport.reporting.page.render import render
from qexport.reporting.report import (
    AccuracyInfo,
    ArtifactReport,
    CalibrationInfo,
    EvaluationInfo,
    Gate,
    LatencyInfo,
    ModelInfo,
    Outcome,
    Report,
    Warning,
)
from qexport.reporting.summary import to_markdown
from qexport.reporting.verdict import verdicts
from qexport.verification.outcome import OutputFidelity

ACCURACY = AccuracyInfo(map=0.3972, map_float=0.4, retention=0.993, fidelity=0.94, images=5000)
INT8 = ArtifactReport("out/m_int8.tflite", "tflite", "int8", "a", 2_900_000, accuracy=ACCURACY, speedup=2.81)
FP32 = ArtifactReport("out/m_fp32.tflite", "tflite", "fp32", "b", 9_860_000)
MODEL = ModelInfo(path="m.pt", sha256="c", head="end2end", imgsz=(640, 640), batch=1)
REPORT = Report(
    command="qexport m.pt --int8 --data d.yaml",
    model=MODEL,
    calibration=CalibrationInfo(data="d.yaml", images=128),
    evaluation=EvaluationInfo(data="d.yaml", images=5000),
    artifacts=(INT8, FP32),
    seconds={"read": 1.0},
    threads=2,
)
WON = "2.8× faster, 3.4× smaller"
KEEPS = f"tflite int8 keeps 99.3 % of mAP50-95, {WON}"
FAR = Warning("likeness", "far from FP32: fidelity 0.512, 0.85 is the least")
BROKEN = Outcome("max-drop", "m_int8.tflite", 0.7, None, 0.5, False, "loss of mAP 0.70% is over 0.50%")
TOO_BIG = Outcome("max-size", "m_int8.tflite", 2.9, None, 2.0, False, "size 2.90 MB is over 2.00 MB")
TRIED = tuple(
    PassRecord(name, True)
    for name in ("mixed-precision", "equalisation", "weight-scales", "adaptive-rounding", "score-shift")
)
LOST = replace(ACCURACY, map=0.36, retention=0.9)
OUTPUT = OutputFidelity("scores", 31.5, 0.999, 0.998, 16)
MCU = DeviceFit("TFLite Micro", 312, (Lacking("GELU", 2, "no kernel"),))


def verdict(changes: Mapping[str, Any], of_report: Mapping[str, Any]) -> tuple[str, str, str]:
    report = replace(REPORT, artifacts=(replace(INT8, **changes), FP32), **of_report)
    (found,) = verdicts(report, lambda artifact: artifact.label)
    return found.kind, found.text, found.then


@pytest.mark.parametrize(
    ("changes", "of_report", "expected"),
    [
        ({}, {}, ("fit", f"{KEEPS}: fit to ship", "")),
        (
            {"accuracy": replace(ACCURACY, images=49)},
            {},
            (
                "doubtful",
                f"{KEEPS}: looks fit to ship, but 49 images say little",
                "qexport m.pt --int8 --data d.yaml --eval-data DATA.yaml",
            ),
        ),
        (
            {"accuracy": replace(ACCURACY, images=4)},
            {"evaluation": EvaluationInfo(images=4, also_calibrated_on=("a.jpg", "b.jpg"))},
            (
                "doubtful",
                f"{KEEPS}: looks fit to ship, but 4 images say little and 2 of the 4 images were calibrated on",
                "qexport m.pt --int8 --data d.yaml --eval-data DATA.yaml",
            ),
        ),
        (
            {},
            {"warnings": (Warning("accuracy", "class names differ"),)},
            ("doubtful", f"{KEEPS}: looks fit to ship, but there is a warning about its accuracy", ""),
        ),
        (
            {"warnings": (Warning("latency", "latency varied"),)},
            {},
            ("fit", KEEPS.replace("faster", "faster (see the warning)") + ": fit to ship", ""),
        ),
        (
            {"warnings": (FAR,)},
            {},
            (
                "unfit",
                "tflite int8 keeps 99.3 % of mAP50-95, 2.8× faster (see the warning), 3.4× smaller: "
                "far from FP32, not fit to ship",
                "qexport m.pt --int8 --data d.yaml --effort best",
            ),
        ),
        (
            {"warnings": (FAR,), "passes": TRIED, "speedup": None},
            {},
            (
                "unfit",
                "tflite int8 keeps 99.3 % of mAP50-95, 3.4× smaller: far from FP32, not fit to ship",
                "qexport m.pt --int8 --data d.yaml --max-drop 3 --repair",
            ),
        ),
        (
            {"warnings": (FAR,), "passes": TRIED, "precision": "int8-full", "speedup": None},
            {},
            (
                "unfit",
                "tflite int8-full keeps 99.3 % of mAP50-95, 3.4× smaller: far from FP32, not fit to ship",
                "qexport sensitivity m.pt --data d.yaml --format tflite --precision int8-full",
            ),
        ),
        (
            {"warnings": (FAR,), "precision": "fp16", "speedup": 1.0},
            {"command": "qexport m.pt --half"},
            (
                "unfit",
                "tflite fp16 keeps 99.3 % of mAP50-95, as fast (see the warning), 3.4× smaller: "
                "far from FP32, not fit to ship",
                "",
            ),
        ),
        (
            {},
            {"gate": Gate(False, (BROKEN, TOO_BIG)), "command": "qexport m.pt --int8 --effort=none --max-drop .5"},
            (
                "unfit",
                f"{KEEPS}: not fit to ship by --max-drop and --max-size",
                "qexport m.pt --int8 --max-drop .5 --effort best",
            ),
        ),
        ({}, {"gate": Gate(False, (TOO_BIG,))}, ("unfit", f"{KEEPS}: not fit to ship by --max-size", "")),
        (
            {},
            {"gate": Gate(False, (replace(TOO_BIG, rule="min-odd"),))},
            ("unfit", f"{KEEPS}: not fit to ship by --rule min-odd", ""),
        ),
        (
            {"accuracy": LOST},
            {"command": "qexport --effort none -- m.pt"},
            (
                "doubtful",
                f"tflite int8 keeps 90.0 % of mAP50-95, {WON}: loses more than 3 % of FP32's accuracy",
                "qexport --effort best -- m.pt",
            ),
        ),
        (
            {"accuracy": LOST},
            {"gate": Gate(True, (replace(BROKEN, passed=True),))},
            ("fit", f"tflite int8 keeps 90.0 % of mAP50-95, {WON}: fit to ship", ""),
        ),
        (
            {"accuracy": replace(ACCURACY, map=0.001, map_float=0.001, retention=1.0, fidelity=None)},
            {},
            (
                "doubtful",
                f"tflite int8 {WON}: FP32 itself finds next to nothing in these images: is it trained, on such data?",
                "",
            ),
        ),
        (
            {"accuracy": AccuracyInfo(map=0.0, map_float=0.0, fidelity=0.93, images=100)},
            {},
            (
                "doubtful",
                f"tflite int8 has a fidelity of 0.930, {WON}: "
                "FP32 itself finds next to nothing in these images: is it trained, on such data?",
                "",
            ),
        ),
        (
            {"accuracy": AccuracyInfo(map=0.3972, images=5000)},
            {"unmeasured": (Unmeasured("m_fp32.tflite", "accuracy", "no", 7),)},
            (
                "doubtful",
                f"tflite int8 {WON}: whether it is fit is not known: there is nothing of FP32's to compare it with",
                "",
            ),
        ),
        (
            {"accuracy": None},
            {"evaluation": None, "command": "qexport m.pt --int8 --data d.yaml --no-eval"},
            (
                "doubtful",
                f"tflite int8 {WON}: whether it is fit is not known: accuracy was not measured",
                "qexport m.pt --int8 --data d.yaml",
            ),
        ),
        (
            {"accuracy": None},
            {"unmeasured": (Unmeasured("m_int8.tflite", "accuracy", "no", 7),)},
            ("doubtful", f"tflite int8 {WON}: whether it is fit is not known: accuracy could not be measured", ""),
        ),
        (
            {"accuracy": AccuracyInfo(fidelity=0.9412, images=100)},
            {},
            (
                "doubtful",
                f"tflite int8 has a fidelity of 0.941, {WON}: near FP32; without labels nobody knows how good that is",
                "",
            ),
        ),
        (
            {"accuracy": None, "outputs": (OUTPUT,)},
            {},
            (
                "doubtful",
                f"tflite int8 {WON}: near FP32; nobody knows what its outputs mean, so that nothing was scored",
                "",
            ),
        ),
        (
            {"speedup": 0.84},
            {},
            (
                "doubtful",
                "tflite int8 keeps 99.3 % of mAP50-95, 0.84× as fast, 3.4× smaller: "
                "slower than FP32 here, of use for its size alone",
                "qexport m.pt --int8 --data d.yaml --format tflite,onnx,openvino",
            ),
        ),
        (
            {"own_runtime": False, "runtime": "ONNX Runtime", "speedup": None, "bytes": 9_900_000},
            {},
            (
                "doubtful",
                "tflite int8 keeps 99.3 % of mAP50-95, as large: "
                "looks fit to ship as ONNX Runtime runs it: try it where it belongs",
                "",
            ),
        ),
        ({"device": MCU}, {}, ("unfit", f"{KEEPS}: does not run: TFLite Micro lacks GELU", "")),
        ({"device": replace(MCU, in_front=12)}, {}, ("fit", f"{KEEPS}: fit to ship", "")),
        (
            {"warnings": (FAR,), "speedup": None},
            {"command": "qexport demo"},
            (
                "unfit",
                "tflite int8 keeps 99.3 % of mAP50-95, 3.4× smaller: far from FP32, not fit to ship",
                "qexport m.pt --format tflite --int8 --data d.yaml --imgsz 640,640 --effort best",
            ),
        ),
        (
            {"warnings": (FAR,), "speedup": None},
            {"command": "qexport 'm.pt"},
            (
                "unfit",
                "tflite int8 keeps 99.3 % of mAP50-95, 3.4× smaller: far from FP32, not fit to ship",
                "--effort best",
            ),
        ),
    ],
)
def test_an_artifact_is_judged_in_one_line(
    changes: Mapping[str, Any], of_report: Mapping[str, Any], expected: tuple[str, str, str]
) -> None:
    assert verdict(changes, of_report) == expected


@pytest.mark.parametrize(
    ("command", "then"),
    [
        ("qexport m.pt", "qexport m.pt --data DATA.yaml"),
        ("qexport m.pt --no-eval --data d.yaml", "qexport m.pt --data d.yaml"),
        ("", "--data DATA.yaml"),
    ],
)
def test_fp32_files_that_nobody_scored_are_said_so(command: str, then: str) -> None:
    bare = replace(REPORT, artifacts=(FP32,), evaluation=None, calibration=None, command=command)
    (found,) = verdicts(bare, lambda artifact: artifact.label)
    assert (found.kind, found.text, found.then) == ("doubtful", "tflite fp32: accuracy was not measured", then)
    scored = replace(bare, artifacts=(replace(FP32, accuracy=ACCURACY),), evaluation=REPORT.evaluation)
    assert verdicts(scored, lambda artifact: artifact.label) == ()


def test_an_engine_is_judged_in_place_of_its_graph() -> None:
    graph = replace(INT8, format="tensorrt", accuracy=None, speedup=None)
    report = replace(REPORT, artifacts=(graph, replace(graph, engine=True, accuracy=ACCURACY)))
    (found,) = verdicts(report, lambda artifact: artifact.label)
    assert found.text == "engine int8 keeps 99.3 % of mAP50-95: fit to ship (not timed here)"


def test_a_rule_that_its_graph_breaks_is_said_of_an_engine() -> None:
    """Else the run ends by the gate, and nothing that it says is unfit."""
    graph = replace(INT8, format="tensorrt", accuracy=None, speedup=None)
    engine = replace(graph, path="out/m_int8.engine", engine=True, accuracy=ACCURACY)
    report = replace(REPORT, artifacts=(graph, engine), gate=Gate(False, (TOO_BIG,)))
    (found,) = verdicts(report, lambda artifact: artifact.label)
    assert found.text == "engine int8 keeps 99.3 % of mAP50-95: not fit to ship by --max-size"


DROP = Outcome("max-drop", "m_int8.tflite", 0.24, (-2.81, 3.8512), 2.0, True, "")


@pytest.mark.parametrize(
    ("accuracy", "rules", "open_"),
    [
        ({"retention_interval": (0.9612, 1.02), "images": 100}, (), "100 images cannot rule out a loss of 3.9 %"),
        ({"retention_interval": (0.9699, 1.02)}, (), "5000 images cannot rule out a loss of 3.01 %"),
        ({"retention_interval": (0.971, 1.02)}, (), ""),
        ({}, (DROP,), "5000 images cannot rule out a loss of 3.9 %"),
        ({"retention_interval": (0.95, 1.02)}, (replace(DROP, bound=6.0),), ""),
        ({}, (replace(DROP, interval=None),), ""),
        (
            {},
            (replace(DROP, rule="min-retention", figure=0.99, interval=(0.965, 1.01), bound=0.98),),
            "5000 images cannot rule out a loss of 3.5 %",
        ),
        (
            {},
            (DROP, replace(DROP, rule="min-fidelity", figure=0.94, interval=(0.9127, 0.96), bound=0.93)),
            "5000 images cannot rule out a loss of 3.9 % or a fidelity of 0.913",
        ),
        ({}, (replace(DROP, rule="max-size", interval=(1.0, 3.0)),), ""),
    ],
)
def test_what_the_images_cannot_rule_out_is_said_behind_fit(
    accuracy: Mapping[str, Any], rules: tuple[Outcome, ...], open_: str
) -> None:
    found = verdict({"accuracy": replace(ACCURACY, **accuracy)}, {"gate": Gate(True, rules)} if rules else {})
    assert found == ("fit", f"{KEEPS}: fit to ship{f' ({open_})' if open_ else ''}", "")


def test_what_was_not_timed_is_said_so() -> None:
    untimed = "tflite int8 keeps 99.3 % of mAP50-95, 3.4× smaller: fit to ship"
    assert verdict({"speedup": None}, {})[1] == f"{untimed} (not timed here)"
    alone = LatencyInfo(p50=3.0, p95=3.1, min=2.9)
    assert verdict({"speedup": None, "latency_ms": alone}, {})[1] == untimed
    crossed = {"speedup": None, "accuracy": replace(ACCURACY, retention_interval=(0.9, 1.0))}
    assert verdict(crossed, {})[1] == f"{untimed} (5000 images cannot rule out a loss of 10.0 %; not timed here)"


def test_every_rendering_has_the_verdict() -> None:
    report = replace(REPORT, artifacts=(replace(INT8, warnings=(FAR,), speedup=None), FP32))
    text, then = "keeps 99.3 % of mAP50-95, 3.4× smaller: far from FP32, not fit to ship", "--data d.yaml --effort best"
    assert printed(report, 120)[-2:] == [f"verdict: INT8 TFLite {text}", f"try: qexport m.pt --int8 {then}"]
    assert f"- ❌ tflite int8 {text}; try `qexport m.pt --int8 {then}`" in to_markdown(report).splitlines()
    page = " ".join(render(report).split())
    assert f'<p class="verdict unfit">TFLite INT8 {text}. Try: <code>qexport m.pt --int8 {then}</code></p>' in page
