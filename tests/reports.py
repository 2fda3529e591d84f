"""A report by hand, as an earlier version might have written it, for the files that test what is made of reports."""

from __future__ import annotations

import copy
from typing import Any

from qexport.reporting.load import report_of
from qexport.reporting.report import Report

FEW = "accuracy is of 9 images only: differences of a few percent are noise"
RESTLESS = "latency varied: the 95th percentile is 31% above the median"
ABOUT = {FEW: "accuracy", RESTLESS: "latency"}
"""What warnings are about; all others are about the artifact."""

ACCURACY = {
    "map": 0.4455,
    "map50": 0.61,
    "map_float": 0.45,
    "map50_float": 0.62,
    "retention": 0.99,
    "fidelity": 0.953,
    "images": 100,
    "map_interval": [0.41, 0.48],
    "drop": 0.0045,
    "drop_interval": [-0.0015, 0.0105],
    "retention_interval": [0.977, 1.003],
}


def artifact(precision: str = "int8", format_: str = "onnx", **changes: Any) -> dict[str, Any]:
    """An artifact's entry."""
    suffix = {"onnx": ".onnx", "tflite": ".tflite", "tensorrt": "_tensorrt.onnx"}[format_]
    entry: dict[str, Any] = {
        "path": f"out/yolo26n_{precision}{suffix}",
        "format": format_,
        "precision": precision,
        "sha256": "ab" * 32,
        "bytes": 2_860_000,
        "engine": False,
        "accuracy": dict(ACCURACY),
        "latency_ms": {"p50": 40.0, "p95": 42.0, "min": 39.0},
        "latency_float_ms": {"p50": 60.0, "p95": 63.0, "min": 58.0},
        "speedup": 1.5,
        "int8_mac_coverage": 0.961,
        "verification": {
            "tensors": 447,
            "unnamed": 0,
            "agreement": 0.97,
            "images": 4,
            "coverage": 0.961,
            "min_agreement": 0.8,
        },
        "warnings": [],
    }
    entry |= changes
    return {**entry, "warnings_about": [ABOUT.get(text, "artifact") for text in entry["warnings"]]}


def report(*entries: dict[str, Any], **changes: Any) -> Report:
    """A whole report, of one INT8 ONNX file where nothing else is said."""
    return report_of(content(*entries, **changes))


def content(*entries: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The same as parsed JSON."""
    found: dict[str, Any] = {
        "command": "qexport yolo26n.pt --int8",
        "model": {
            "path": "models/yolo26n.pt",
            "sha256": "12" * 32,
            "task": "detect",
            "head": "end2end",
            "nms": False,
            "imgsz": [640, 640],
            "batch": 1,
            "classes": 80,
        },
        "calibration": {"images": 128, "fingerprint": "c" * 32},
        "evaluation": {
            "metrics": ["mAP50-95", "mAP50"],
            "data": "val.yaml",
            "images": 100,
            "fingerprint": "e" * 32,
            "also_calibrated_on": [],
        },
        "artifacts": list(entries) or [artifact()],
        "seconds": {"read": 1.5, "calibrate": 2.25},
        "threads": 2,
        "warnings": [],
        "failures": [],
        "gate": None,
        "baseline": None,
        "environment": {"processor": "AMD EPYC", "cores": 2, "python": "3.11", "packages": {}},
        "schema": 2,
        "qexport": "0.1.0",
    }
    return copy.deepcopy({**found, **changes})


def accuracy(**changes: Any) -> dict[str, Any]:
    """The hand-made accuracy with other figures; None leaves a field out."""
    return {name: value for name, value in {**ACCURACY, **changes}.items() if value is not None}
