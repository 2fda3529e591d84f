"""A report.json as a run of several formats leaves it, small and made up: the page is a rendering of nothing else."""

from __future__ import annotations

import base64
import copy
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from qexport.reporting.load import report_of
from qexport.reporting.page.render import render

CLASSES = ("person", "bicycle", "<b>stop & go</b>", "traffic light")
FEW = "accuracy is of 40 images only: differences of a few percent are noise"
DEVICE = {
    "device": "Edge TPU",
    "operators": 312,
    "lacking": [{"kind": "SOFTMAX", "count": 2, "reason": "not listed"}],
    "in_front": 120,
    "memory": {"tensor arena": 4_961_234},
    "files": [],
}
RESTLESS = "latency varied: the 95th percentile is 31% above the median"

MATCHED = [
    {"size": "all", "boxes": 830, "matched": 812, "mean_iou": 0.9421, "edge_error": 1.3149, "edge_error_p95": 4.1251},
    {"size": "small", "boxes": 41, "matched": 23, "mean_iou": 0.8612, "edge_error": 0.8125, "edge_error_p95": 2.25},
    {"size": "large", "boxes": 2, "matched": 0, "mean_iou": None, "edge_error": None, "edge_error_p95": None},
]


def sample_report(
    formats: Sequence[str] = ("tflite", "onnx"),
    layers: int = 12,
    images: int = 2,
    pixels: int = 48,
    histograms: int = 2,
) -> dict[str, Any]:
    """A report of schema 2.

    Args:
        formats: each in INT8 and FP32; the last one has no latency, as TensorRT has none without a GPU.
        layers: values of the plan.
        images: in each gallery.
        histograms: of the values with the most noise.
        pixels: longest side of thumbnails, which are noise: nothing compresses worse.
    """
    artifacts = []
    for i, name in enumerate(formats):
        timed = i < len(formats) - 1 or len(formats) == 1
        artifacts += [_int8(name, i, timed, layers, images, pixels, histograms), _fp32(name, i, timed)]
    return {
        "schema": 2,
        "qexport": "0.1.0",
        "command": "qexport 'a <model>.pt' --format " + ",".join(formats) + " --int8 --data shapes.yaml",
        "model": {
            "path": "/models/a <model>.pt",
            "sha256": "c0ffee" * 10 + "cafe",
            "task": "detect",
            "head": "end2end",
            "nms": False,
            "imgsz": [480, 640],
            "batch": 1,
            "classes": 80,
            "program": "beef" * 16,
        },
        "calibration": {
            "data": "shapes.yaml",
            "table": None,
            "images": 1128,
            "fingerprint": "ab" * 16,
            "preprocess": "letterbox 480x640, RGB, 0..1",
            "skipped": [{"image": "broken.jpg", "reason": "image broken.jpg is empty"}],
            "ranges": "percentile",
        },
        "evaluation": {
            "metrics": ["mAP50-95", "mAP50"],
            "data": "val.yaml",
            "images": 40,
            "fingerprint": "cd" * 16,
            "also_calibrated_on": [],
        },
        "seconds": {"read": 4.14, "calibrate": 11.88, "lower_onnx_int8": 21.04},
        "threads": 2,
        "warnings": ["1 calibration images were skipped: broken.jpg (image broken.jpg is empty)"],
        "failures": [{"format": "openvino", "reason": "no such kernel: try another", "exit_code": 5}],
        "environment": {
            "python": "3.11.7",
            "system": "Linux-6.18",
            "processor": "AMD EPYC",
            "cores": 2,
            "packages": {"torch": "2.13.0+cpu", "numpy": "2.4.6"},
        },
        "gate": {
            "passed": False,
            "rules": [_rule("min-speedup", True, "1.59× is at least 1.2×"), _rule("max-drop", False, "1.7 > 1.0")],
        },
        "baseline": None,
        "artifacts": artifacts,
    }


def rendered(content: dict[str, Any]) -> str:
    """The page of a parsed report.json."""
    return render(report_of(content))


def value_at(report: Any, path: str) -> Any:
    """What stands at a path with points."""
    for part in path.split("."):
        report = report[int(part)] if isinstance(report, list) else report[part]
    return report


def bare(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A report without what takes time to draw."""
    made = copy.deepcopy({**report, **changes})
    for artifact in made["artifacts"]:
        artifact |= {"histograms": None, "layers": None, "accuracy": {**artifact["accuracy"], "confidence": None}}
    return made


def _rule(name: str, passed: bool, text: str) -> dict[str, Any]:
    return {
        "rule": name,
        "artifact": "a_int8.onnx",
        "figure": 1.5,
        "interval": None,
        "bound": 1.0,
        "passed": passed,
        "text": text,
    }


def _fp32(name: str, i: int, timed: bool) -> dict[str, Any]:
    return {
        "path": f"/out/a_fp32.{name}",
        "format": name,
        "precision": "fp32",
        "sha256": f"{i}f" * 32,
        "bytes": 9_876_543 + i * 1000,
        "runtime": f"{name} runtime",
        "engine": False,
        "accuracy": {
            "map": 0.4495,
            "map50": 0.6012,
            "map_float": None,
            "map50_float": None,
            "retention": None,
            "fidelity": None,
            "images": 40,
            "map_interval": [0.3911, 0.5107],
            "drop": None,
            "drop_interval": None,
            "retention_interval": None,
            "resamples": 1000,
            "per_class": [],
            "confidence": None,
        },
        "latency_ms": {"p50": 61.04 + i, "p95": 65.52 + i, "min": 59.9} if timed else None,
        "latency_float_ms": None,
        "speedup": None,
        "int8_mac_coverage": None,
        "quantisation": None,
        "plan": None,
        "verification": None,
        "device": None,
        "gallery": None,
        "layers": None,
        "histograms": None,
        "warnings": [FEW],
        "warnings_about": ["accuracy"],
    }


def _int8(name: str, i: int, timed: bool, layers: int, images: int, pixels: int, histograms: int) -> dict[str, Any]:
    random = np.random.default_rng(i)
    score = round(0.4426 - 0.0031 * i, 5)
    return {
        "path": f"/out/a_int8.{name}",
        "format": name,
        "precision": "int8",
        "sha256": f"{i}a" * 32,
        "bytes": 2_861_234 + i * 54_321,
        "runtime": f"{name} runtime",
        "engine": False,
        "accuracy": {
            "map": score,
            "map50": 0.5931,
            "map_float": 0.4495,
            "map50_float": 0.6012,
            "retention": round(score / 0.4495, 5),
            "fidelity": 0.95312,
            "images": 40,
            "map_interval": [0.3807, 0.5043],
            "drop": round(0.4495 - score, 5),
            "drop_interval": [-0.0021, 0.0163],
            "retention_interval": [0.9631, 1.0049],
            "resamples": 1000,
            "per_class": _classes(i),
            "confidence": _confidence(),
            "fidelity_interval": [0.9311, 0.96812],
            "fidelity50": 0.98123,
            "fidelity50_interval": [0.9725, 0.99021],
            "matched_boxes": MATCHED,
        },
        "latency_ms": {"p50": 42.26 + i, "p95": 55.31 + i, "min": 40.2} if timed else None,
        "latency_float_ms": {"p50": 61.04 + i, "p95": 65.52 + i, "min": 59.9} if timed else None,
        "speedup": 1.446 if timed else None,
        "int8_mac_coverage": 0.9771,
        "quantisation": {"activations": "uint8", "weights": "int8, full range", "cpu": "avx2"},
        "plan": f"/out/plan_{name}.json",
        "manifest": f"a_int8.{name}.manifest.json",
        "verification": {
            "tensors": 447,
            "unnamed": 3,
            "agreement": 0.96296,
            "images": 4,
            "coverage": 0.97712,
            "min_agreement": 0.8,
        },
        "device": DEVICE if i == 0 else None,
        "gallery": [_shot(random, n, pixels) for n in range(images)],
        "layers": [_layer(random, n, layers) for n in range(layers)],
        "histograms": [_histogram(random, n) for n in range(histograms)],
        "warnings": [FEW, *([RESTLESS] if timed and i == 0 else [])],
        "warnings_about": ["accuracy", *(["latency"] if timed and i == 0 else [])],
    }


def _classes(i: int) -> list[dict[str, Any]]:
    scores = ((123, 0.51, 0.52), (7, 0.334, 0.31), (45, 0.2, 0.2601), (9, 0.4, 0.4))
    return [
        {"class": n, "name": CLASSES[n], "labels": labels, "map": round(own - 0.01 * i, 4), "map_float": other}
        for n, (labels, own, other) in enumerate(scores)
    ]


def _confidence() -> dict[str, Any]:
    edges = [round(-0.5 + 0.05 * n, 2) for n in range(21)]
    counts = [0] * 6 + [1, 4, 31, 380, 351, 40, 4, 1] + [0] * 6
    return {
        "matched": 812,
        "mean_float": 0.6123,
        "mean": 0.6011,
        "shift": -0.0112,
        "p05": -0.0613,
        "p50": -0.0079,
        "p95": 0.0338,
        "bins": edges,
        "counts": counts,
    }


def _shot(random: np.random.Generator, n: int, pixels: int) -> dict[str, Any]:
    noise = random.integers(0, 256, (pixels * 3 // 4, pixels, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", quality=70)
    return {
        "image": f"{n:012d}.jpg",
        "path": f"/data/{n:012d}.jpg",
        "width": 640,
        "height": 480,
        "kept": [{"box": [300.0, 200.0, 420.5, 330.25], "score": 0.91, "class": 0}],
        "lost": [{"box": [20.0, 40.0, 120.0, 220.0], "score": 0.31, "class": 2}],
        "gained": [{"box": [500.0, 5.0, 630.0, 90.0], "score": 0.27, "class": 17}] * (n % 2),
        "thumbnail": "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii"),
    }


def _layer(random: np.random.Generator, n: int, total: int) -> dict[str, Any]:
    integer = n % 11 != 10
    return {
        "name": f"model_{n * 24 // total}_{('conv', 'sigmoid', 'mul')[n % 3]}_{n}",
        "operation": ("conv", "sigmoid", "mul")[n % 3],
        "dtype": "uint8" if integer else "float32",
        "scale": round(float(random.uniform(0.001, 0.1)), 5) if integer else None,
        "zero_point": int(random.integers(0, 128)) if integer else None,
        "group": "model_2_mul" if n % 7 == 6 else "",
        "why": "percentile: [-6.25, 9.1]" if integer else "decode & attention stay float <here>",
        "macs": 1_234_567 * (n % 3 == 0),
        "sqnr_db": None if n % 23 == 5 else round(float(random.uniform(12, 48)), 2),
    }


def _histogram(random: np.random.Generator, n: int) -> dict[str, Any]:
    edges = np.linspace(-12, 12, 65)
    counts = np.round(1e6 * np.exp(-((edges[:-1] - n / 4) ** 2) / (2 + n)))
    return {
        "name": f"model_{n}_conv",
        "edges": edges.tolist(),
        "counts": counts.astype(int).tolist(),
        "low": -4.25 - n / 8,
        "high": 6.5,
        "sqnr_db": round(8.25 + 1.3 * n, 2),
    }
