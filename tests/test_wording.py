"""A job in words: what a run says before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qexport.job.options import make_job
from qexport.job.wording import announced, example

TO = "files go to qexport_out/yolo26n"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, f"yolo26n.pt to TFLite in FP32; not scored: there is no --data; {TO}"),
        ({"half": True, "no_eval": True}, f"yolo26n.pt to TFLite in FP16; not scored (--no-eval); {TO}"),
        ({"data": "a.yaml"}, f"yolo26n.pt to TFLite in FP32; scored on a.yaml; {TO}"),
        (
            {"int8": True, "data": "a.yaml", "format": "onnx,openvino", "out": Path("build")},
            "yolo26n.pt to ONNX and OpenVINO in INT8; calibrated on a.yaml; scored on a.yaml; files go to build",
        ),
        (
            {"int8": True, "data": "a.yaml", "eval_data": "b.yaml"},
            f"yolo26n.pt to TFLite in INT8; calibrated on a.yaml; scored on b.yaml; {TO}",
        ),
        (
            {"int8": True, "eval_data": "b.yaml", "calibration": Path("c.npz")},
            f"yolo26n.pt to TFLite in INT8; by the calibration c.npz; scored on b.yaml; {TO}",
        ),
        (
            {"precision": "int8-full", "data": "a.yaml", "plan": Path("plan.json"), "no_eval": True},
            f"yolo26n.pt to TFLite in INT8 full; by the plan plan.json; not scored (--no-eval); {TO}",
        ),
    ],
)
def test_a_run_says_what_it_is_going_to_do(options: dict[str, Any], line: str) -> None:
    job = make_job({"model": "models/yolo26n.pt", **options})
    assert announced(job) == line
    assert job.evaluates == ("; scored on " in line)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"model": "yolo26n.pt", "int8": True}, "qexport yolo26n.pt --int8 --data coco8.yaml"),
        (
            {"model": "yolo11s-pose.pt", "precision": "w8a16"},
            "qexport yolo11s-pose.pt --precision w8a16 --data coco8-pose.yaml",
        ),
        ({"model": "yolo26n-obb.pt", "target": "coral"}, "qexport yolo26n-obb.pt --target coral --data dota8.yaml"),
        ({"model": "yolo26n-cls.pt", "int8": True}, "qexport yolo26n-cls.pt --int8 --data DATA.yaml"),
        (
            {"model": "my best.pt", "int8": True, "format": "onnx"},
            "qexport 'my best.pt' --format onnx --int8 --data DATA.yaml",
        ),
    ],
)
def test_the_same_with_data_can_be_typed(options: dict[str, Any], line: str) -> None:
    assert example(make_job({**options, "data": "a.yaml"})) == line
