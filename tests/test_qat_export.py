"""Whole exports from a checkpoint that holds what training has learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import DEMO, demo_images
from refusals import DATA, NOT_BUILT
from trained import kept, numbers, trained

from qexport.calibration.calibrate import calibrate
from qexport.cli.app import main
from qexport.inspection.recheck import recheck
from qexport.job.options import make_job
from qexport.optimisation.candidate import Candidate
from qexport.pipeline import export
from qexport.planning.plan import load_plan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.build import read_source
from qexport.programs.options import CaptureOptions
from qexport.reporting.report import Report

pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
pytestmark = pytest.mark.slow

SMALL = 64
FORMATS = ("tflite", "onnx", "openvino", "tensorrt")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Candidate]:
    """The demo model, trained by hand for TFLite."""
    path = tmp_path_factory.mktemp("qat") / "shapes26_qat.pt"
    source = read_source(DEMO / "shapes26.pt", CaptureOptions(imgsz=(SMALL, SMALL)))
    table = calibrate(source.program, demo_images("train", 4), lambda: None)
    candidate = trained(source.program, make_plan(source.program, table.statistics, TFLITE), TFLITE)
    kept(path, DEMO / "shapes26.pt", source.checkpoint.fingerprint, candidate)
    return path, candidate


@pytest.fixture(scope="module")
def report(made: tuple[Path, Candidate], tmp_path_factory: pytest.TempPathFactory) -> Report:
    given = {
        "model": str(made[0]),
        "format": ",".join(FORMATS),
        "int8": True,
        "imgsz": str(SMALL),
        "data": DATA,
        "calib_images": 4,
        "no_eval": True,
        "no_latency": True,
        "no_build": True,
        "out": tmp_path_factory.mktemp("run") / "out",
    }
    return export(make_job(given))


def test_every_format_verifies_and_nothing_is_calibrated(report: Report, made: tuple[Path, Candidate]) -> None:
    assert {each.format for each in report.artifacts if each.precision == "int8"} == {*FORMATS}
    assert report.calibration is None
    assert not list(Path(report.artifacts[0].path).parent.glob("calibration*"))
    for artifact in report.artifacts:
        if artifact.precision != "int8":
            continue
        assert artifact.verification is not None
        plan = load_plan(str(artifact.plan))
        told = [each.why for each in plan.tensors.values() if not each.is_float and each.rule in ("own", "shared")]
        assert told
        assert all("learned in training for tflite" in why for why in told)
        notes = [each.text for each in artifact.warnings if "learned in training for tflite" in each.text]
        assert len(notes) == 1
        assert notes[0].startswith("weights" if artifact.format == "tflite" else "no scales were learned for")
        if artifact.format == "tflite":
            assert numbers(plan) == numbers(made[1].plan)
            assert plan.program == made[1].program.fingerprint
