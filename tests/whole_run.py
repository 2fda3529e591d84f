"""What one made-up run hands to its report: every part of it filled in, none of it computed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from qexport.backends.artifact import Artifact
from qexport.backends.device_fit import DeviceFit, Lacking
from qexport.backends.registry import find_backend
from qexport.calibration.calibration_table import CalibrationTable
from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.dataset import Dataset
from qexport.data.input_form import InputSpec
from qexport.data.selection import RunImages
from qexport.detections.layout import HeadLayout
from qexport.errors import EngineNotBuiltError
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.attempt import Unmeasured
from qexport.measurement.evidence.bootstrap import Intervals
from qexport.measurement.evidence.gather import ClassFigure, Evidence
from qexport.measurement.evidence.parts import ConfidenceShift, Histogram, Layer, Picture
from qexport.measurement.latency import Latency
from qexport.measurement.measure import Figures
from qexport.system.machine import Environment
from qexport.verification.outcome import OutputFidelity, Verification
from qexport.verification.result import ArtifactResult, Summary

CHECKPOINT = Checkpoint(
    Path("models/m.pt"), None, "pose", {0: "cat", 1: "dog"}, 32, 3, 64, "5e" * 32, notes=("it has a quantiser",)
)
PROGRAM: Any = SimpleNamespace(
    layout=HeadLayout((8,), (64, 96), 2, end2end=True, head="one2many"),
    input=InputSpec((64, 96), 1),
    fingerprint="f0" * 16,
)
TABLE = CalibrationTable(
    "f0" * 16, "letterbox 64x96", "ca" * 16, ("a.jpg", "b.jpg"), (("c.jpg", "image c.jpg is empty"),), {}
)
FAILURES = [("tensorrt", EngineNotBuiltError("tensorrt: no TensorRT", "install it"))]
SECONDS = {"read": 1.25, "calibrate": 2.5, "lower_onnx_int8": 3.0}
MISSING = [Unmeasured("m_int8_openvino_model", "accuracy", "RuntimeError: no", 7, "Traceback")]
MACHINE = Environment("3.11.7", "Linux", "A CPU", "avx2", 2, {"torch": "2.13.0", "numpy": "2.4.6"})


def images(folder: Path) -> RunImages:
    """Two calibration images, one of which is scored, too."""
    paths = []
    for name in ("a.jpg", "b.jpg", "d.jpg"):
        paths.append(folder / name)
        paths[-1].write_bytes(name.encode())
    data = Dataset(Path("val.yaml"), Path(), {}, {0: "cat", 1: "cow"}, 3, None)
    return RunImages(
        tuple(paths[:2]), tuple(paths[1:]), data, (paths[1],), data, 9, ("2 of 9 images calibrate: more would help",)
    )


def artifact(name: str, format_: str, precision: str, size: int) -> Artifact:
    return Artifact(Path("out") / name, format_, precision, f"{size % 10}a" * 32, size)


LITE, LITE_FP32 = artifact("m_int8.tflite", "tflite", "int8", 3_000_001), artifact("m.tflite", "tflite", "fp32", 9_000)
GRAPH, GRAPH_FP32 = artifact("m_int8.onnx", "onnx", "int8", 3_000_002), artifact("m.onnx", "onnx", "fp32", 12_000_003)
FOLDER = artifact("m_int8_openvino_model", "openvino", "int8", 3_000_004)


def results() -> list[ArtifactResult]:
    """What was written: files with and without a plan, one for a device, one that its runtime runs otherwise."""
    lite, onnx, openvino = (find_backend(name) for name in ("tflite", "onnx", "openvino"))
    types = {"activations": "int8", "weights": "int8, full range", "cpu": "arm"}
    fit = DeviceFit(
        "Edge TPU", 312, (Lacking("SOFTMAX", 2, "not listed"),), 120, {"arena": 4_096}, (Path("out/m.cc"),), "a page"
    )
    checked = Verification(
        44, 1, 0.97123, 4, 0.98765, min_agreement=0.8, planned_coverage=1.0, overlap=0.98, shift=-0.01, remark="near"
    )
    unseen = Verification(44, 0, None, 4, 1.0, cosine=0.9987, min_agreement=0.9)
    return [
        ArtifactResult(
            LITE,
            lite,
            checked,
            Path("out/plan.json"),
            types,
            fit,
            {"conv": 30.0},
            Summary({"INT8": 0.98765, "FP32": 0.01235}, {"TFLite": "2.3.0", "operators": "ADD 2"}),
            ("conv stays FP32: too large for FP16",),
        ),
        ArtifactResult(LITE_FP32, lite),
        ArtifactResult(GRAPH, onnx, unseen, stored=Summary({"INT8": 1.0}, {"ONNX Runtime": "1.14"})),
        ArtifactResult(GRAPH_FP32, onnx),
        ArtifactResult(FOLDER, openvino, checked),
    ]


def accuracy(map_: float, images_: int, fidelity: float | None, box: float | None = None) -> Accuracy:
    return Accuracy(map_, map_ + 0.15, fidelity, images_, ("e.jpg",) if images_ < 50 else (), {}, box)


def figures() -> dict[Path, Figures]:
    """FP32 beats INT8 in ONNX Runtime, and would run in BF16 if nobody asked; TFLite is timed with both."""
    outputs = (OutputFidelity("masks", None, 1.0, None, 7), OutputFidelity("boxes", 33.3, 0.99, 0.98, 7))
    return {
        LITE.path: Figures(accuracy(0.396123, 40, 0.912345678, 0.5), Latency(12.512, 16.0, 12.0, 36)),
        LITE_FP32.path: Figures(accuracy(0.4, 40, None, 0.51), Latency(40.0, 41.0, 39.0, 36)),
        GRAPH.path: Figures(accuracy(0.0, 60, 0.9), Latency(22.0, 22.5, 21.0, 36), outputs),
        GRAPH_FP32.path: Figures(
            accuracy(0.0, 60, None), Latency(20.0, 21.0, 19.0, 36), (), ("BF16", Latency(18.0, 18.5, 17.0, 36))
        ),
    }


def evidence() -> dict[Path, Evidence]:
    """Of one file everything; of another intervals without a float file's."""
    box: dict[str, Any] = {"box": [1.0, 2.0, 30.5, 40.0], "score": 0.91, "class": 1}
    shapes = {**box, "outline": [[1.0, 2.0, 3.0, 4.5]]}, {**box, "points": [[1.0, 2.0, 0.75]]}
    shift = ConfidenceShift(8, 0.61234, 0.6, -0.01234, -0.1, 0.0, 0.1, (-0.5, 0.0, 0.5), (3, 5))
    return {
        LITE.path: Evidence(
            Intervals((0.35, 0.451234), (-0.01, 0.0234), None, 1000),
            (ClassFigure(0, 12, 0.512345, 0.5), ClassFigure(7, 3, 0.1, None)),
            shift,
            (Picture("b.jpg", "/data/b.jpg", 640, 480, (box, *shapes), (box,), (), "data:image/jpeg;base64,AA=="),),
            (
                Layer("conv", "conv", "int8", 0.05, -3, "", "percentile: [-6, 6]", 1234, 30.5),
                Layer("sigmoid", "sigmoid", "float32", None, None, "g", "stays float", 0, None),
            ),
            (Histogram("conv", (-1.0, 0.0, 1.0), (4, 5), -6.4, 6.35, 30.5),),
        ),
        LITE_FP32.path: Evidence(Intervals((0.36, 0.44), None, None, 1000), ()),
        GRAPH.path: Evidence(None, (ClassFigure(0, 12, float(np.float64(0.25)), None),), None, (), (), ()),
    }
