"""Whole exports from a checkpoint that holds what training has learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import demo_images, synthetic_statistics
from refusals import DATA, INPUT, SHAPES, Refusal
from small_models import saved, small_model
from trained import kept, numbers, trained

from qexport.calibration.calibrate import calibrate
from qexport.clock import Clock
from qexport.inspection.recheck import recheck
from qexport.job.export_job import ExportJob
from qexport.job.options import make_job
from qexport.opening import read_run
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.pipeline import export, request
from qexport.planning.plan import load_plan, save_plan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO, TFLITE, RuntimeProfile
from qexport.programs.build import read_source
from qexport.programs.options import CaptureOptions
from qexport.progress import Silent
from qexport.reporting.report import Report
from qexport.steps.build import planned_candidate

for extra in ("onnxruntime", "openvino", "litert_torch"):
    pytest.importorskip(extra, reason="needs the extra qexport[all]")
pytestmark = pytest.mark.slow

SIZE = (64, 64)
FORMATS = ("tflite", "onnx", "openvino", "tensorrt")
Make = Callable[[RuntimeProfile], tuple[Path, Candidate]]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Trains a small model by hand for a runtime."""

    def made(profile: RuntimeProfile) -> tuple[Path, Candidate]:
        folder = tmp_path_factory.mktemp("qat")
        model, path = saved(small_model(nc=6), folder / "small.pt"), folder / "small_qat.pt"
        source = read_source(model, CaptureOptions(imgsz=SIZE))
        table = calibrate(source.program, demo_images("train", 2), lambda: None)
        candidate = trained(source.program, make_plan(source.program, table.statistics, profile), profile)
        kept(path, model, source.checkpoint.fingerprint, candidate)
        return path, candidate

    return made


def job_of(path: Path, **options: object) -> ExportJob:
    given = {"no_eval": True, "no_latency": True, "no_build": True, "out": path.parent / "out", **options}
    return make_job({"model": str(path), "imgsz": "64", "data": DATA, "calib_images": 2, **given})


def exported(path: Path, **options: object) -> Report:
    return export(job_of(path, **options))


def test_every_format_verifies_by_what_was_learned_and_nothing_is_calibrated(make: Make) -> None:
    path, candidate = make(TFLITE)
    report = exported(path, format=",".join(FORMATS), int8=True)
    assert [each.format for each in report.artifacts] == [*FORMATS]
    assert report.calibration is None
    assert not any("calibrat" in step for step in report.seconds)
    for artifact in report.artifacts:
        assert artifact.verification is not None
        plan = load_plan(str(artifact.plan))
        scaled = [each for each in plan.tensors.values() if not each.is_float and each.rule in ("own", "shared")]
        assert len(scaled) > 10  # CPUs with other kernels have another plan
        assert all("learned in training for tflite" in each.why for each in scaled)
        notes = [each.text for each in artifact.warnings if "learned in training for tflite" in each.text]
        assert len(notes) == 1
        assert notes[0].startswith("weights" if artifact.format == "tflite" else "no scales were learned for")
        assert {each.outcome for each in artifact.passes or ()} == {"not run"}
    first, checked = report.artifacts[0], path.parent / "out" / "small_qat_int8.tflite"
    assert numbers(load_plan(str(first.plan))) == numbers(candidate.plan)
    again = load_candidate(path.parent / "out" / "candidate_tflite.npz", candidate.reference)
    assert again.program.fingerprint == candidate.program.fingerprint
    answers = {each.name: each.passed for each in recheck(checked, report, None, 1)}
    assert answers == dict.fromkeys(("hash", "plan", "coverage", "outputs"), True)


def test_float_files_have_the_float_weights_and_say_so(make: Make) -> None:
    path, candidate = make(OPENVINO)
    run = read_run(job_of(path, format="onnx", half=True), Clock(Silent()), None)
    assert run.source.program.fingerprint == candidate.reference.fingerprint
    (said,) = run.images.notes
    assert said.startswith("fp16 files have the float weights from before training")
    asked = request(run, "onnx", "fp16")
    assert not asked.learned
    assert planned_candidate(run.source, asked) == (None, ())


def test_where_weights_and_scales_are_from_is_said_of_what_is_given_and_of_what_is_repaired(make: Make) -> None:
    path, candidate = make(OPENVINO)
    program, folder = candidate.reference, path.parent
    plan = make_plan(program, synthetic_statistics(program.values), OPENVINO)
    save_plan(plan, folder / "plan.json")
    run = read_run(job_of(path, format="openvino", int8=True, plan=folder / "plan.json"), Clock(Silent()), None)
    asked = request(run, "openvino", "int8")
    assert not asked.learned  # so that passes run
    made, (said,) = planned_candidate(run.source, asked)
    assert made == Candidate(run.source.program, plan, run.source.program)
    assert "what it has learned is not used" in said
    save_candidate(candidate, folder / "candidate.npz")
    repaired = replace(asked, plan=None, candidate=folder / "candidate.npz", learned=True)
    made, (said,) = planned_candidate(run.source, repaired)
    assert made is not None
    assert made.program.fingerprint == candidate.program.fingerprint
    assert said.startswith("weights and scales were learned in training")


def test_what_was_not_learned_needs_images_to_calibrate_with(make: Make, refused: Refusal) -> None:
    path, _ = make(OPENVINO)
    words = (str(path), "--imgsz", "64", "--int8", "--no-latency")
    message = refused(*words, "--format", "onnx", "--eval-data", str(SHAPES / "images" / "val"), code=INPUT)
    assert message == "no range of model_0_conv was learned: give --data to calibrate what was not"
