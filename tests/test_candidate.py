"""`--optimise` and `--candidate`: passes in the walk, and what they made as a file that is given again."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from conftest import DEMO
from hard_numbers import built, layers, seen

import qexport
from qexport import pipeline
from qexport.data.selection import image_files
from qexport.errors import InputError
from qexport.inspection.recheck import recheck
from qexport.inspection.run_folder import companions
from qexport.job.options import make_job
from qexport.optimisation.bias_correction import BiasCorrection
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.effort import BALANCED
from qexport.planning.plan import load_plan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import ONNXRUNTIME
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.progress import Silent
from qexport.reporting.load import load_report
from qexport.reporting.report import Report
from qexport.simulation.meters import metered, sqnr_of
from qexport.steps.plan import check_given, make_target

MODEL, DATA = DEMO / "shapes26.pt", DEMO / "shapes" / "shapes.yaml"
pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")


def run(out: Path, **options: Any) -> Report:
    fixed = {"model": str(MODEL), "data": str(DATA), "format": "onnx", "int8": True, "imgsz": 64, "calib_images": 8}
    return pipeline.export(
        make_job({**fixed, "no_eval": True, "no_latency": True, "effort": "none", "out": out, **options})
    )


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with a pass that is kept."""
    out = tmp_path_factory.mktemp("optimised") / "out"
    run(out, ranges="auto", optimise="adaptive-rounding")
    return out


@pytest.fixture(scope="module")
def program() -> Program:
    return qexport.read_model(MODEL, imgsz=(64, 64)).program


def test_a_run_says_what_became_of_its_passes(optimised: Path) -> None:
    report = load_report(optimised / "report.json")
    (artifact,) = report.artifacts
    (record,) = artifact.passes  # passes by name go before the effort's
    assert (record.name, record.kept, record.images) == ("adaptive-rounding", True, 4)
    assert record.before is not None
    assert record.after is not None
    assert 0 < record.after < record.before
    assert {"plan_onnx_int8", "optimise_onnx_int8", "lower_onnx_int8"} <= report.seconds.keys()
    manifest = json.loads((optimised / "shapes26_int8.onnx.manifest.json").read_text(encoding="utf-8"))
    assert manifest["candidate"]["file"] == "candidate.npz"
    assert "candidate.npz" in companions(optimised)
    checks = {each.name: each.passed for each in recheck(optimised / artifact.file_name, report, None, 1)}
    assert checks["hash"]
    assert checks["plan"]


def test_where_there_are_no_integers_passes_are_not_run(tmp_path: Path) -> None:
    half = built(layers(), tmp_path, "onnx", "fp16", passes=BALANCED)
    assert [record.name for record in half.passes] == list(BALANCED)
    assert {record.reason for record in half.passes} == {"not run: nothing is computed in integers"}


def test_neither_the_order_of_images_nor_threads_matter() -> None:
    program, images = layers(), image_files(DATA, count=12)
    given = qexport.Candidate(program, make_plan(program, seen(program), replace(ONNXRUNTIME, float_stem=0.0)), program)
    made, threads = [], torch.get_num_threads()
    try:
        for count, order in ((1, images), (2, images[::-1])):
            torch.set_num_threads(count)
            made.append(qexport.optimise(given, BALANCED, order))
    finally:
        torch.set_num_threads(threads)
    (one, first), (other, second) = made
    assert [record.kept for record in first] == [record.kept for record in second]
    assert any(record.kept for record in first)
    for name, tensor in one.plan.tensors.items():
        assert tensor.scale == pytest.approx(other.plan.tensors[name].scale, rel=1e-6)
    for path in (path for value in program.values.values() for path in (value.weight, value.bias) if path):
        pair = (each.program.graph.parameter(path) for each in (one, other))
        torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6)


def test_noise_is_against_the_program_as_it_came(optimised: Path, program: Program) -> None:
    """Against its own weights a corrected program would be as noisy as before."""
    (artifact,) = load_report(optimised / "report.json").artifacts
    found = load_candidate(optimised / "candidate.npz", program)
    meters = metered(found.program, found.plan, program)  # test_optimise has its definition
    with torch.no_grad():
        for batch in sample_inputs(image_files(DATA, count=8), program):
            meters(torch.from_numpy(batch))
    expected = {name: noise for name, noise in sqnr_of(meters).items() if noise is not None and noise < 100}
    assert artifact.layers
    seen = {layer.name: layer.sqnr_db for layer in artifact.layers}
    assert {name: seen[name] for name in expected} == pytest.approx(expected, abs=0.02)
    assert len(expected) > 100


def test_a_candidate_that_is_given_again_makes_the_same_files(
    optimised: Path, program: Program, tmp_path: Path
) -> None:
    again = run(tmp_path / "again", candidate=optimised / "candidate.npz")
    assert again.artifacts[0].passes == ()
    assert "calibrate" not in again.seconds
    for name in ("shapes26_int8.onnx", "plan.json", "candidate.npz"):
        assert (optimised / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
    found = load_candidate(optimised / "candidate.npz", program)
    assert found.reference is program
    assert found.plan == load_plan(optimised / "plan.json")
    assert found.plan.program == found.program.fingerprint != program.fingerprint
    with np.load(optimised / "candidate.npz", allow_pickle=False) as content:  # weights are the model's
        changed = json.loads(str(content["head"]))["parameters"]
    assert changed
    assert {*changed} <= {path for value in program.values.values() for path in (value.weight, value.bias)}
    with pytest.raises(
        InputError, match="is a candidate for onnx, openvino as int8 takes one for openvino: give the c"
    ):
        check_given(found.plan, found.program, make_target("openvino", "int8", "vnni"), Path("c.npz"), "candidate")


def with_entry(name: str, value: Any) -> Callable[[bytes], bytes]:
    """A change of one array in the file."""

    def changed(content: bytes) -> bytes:
        arrays = {**np.load(io.BytesIO(content), allow_pickle=False), name: value}
        stream = io.BytesIO()
        np.savez_compressed(stream, **arrays)
        return stream.getvalue()

    return changed


def zeros(dtype: str, *shape: int) -> Callable[[bytes], bytes]:
    return with_entry("parameter_0", np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda content: b"", "is not a candidate"),
        (lambda content: b"{}", "is not a candidate"),
        (lambda content: content[: len(content) // 2], "is not a candidate"),
        (lambda content: content[:200] + bytes(20) + content[220:], "is not a candidate"),
        (with_entry("head", np.array('{"schema": 9}')), r"is not a candidate \(schema 9, this version reads 1\)"),
        (with_entry("head", np.array("[]")), "is not a candidate"),
        (with_entry("head", np.array({"a": print}, dtype=object)), "is not a candidate .*allow_pickle"),
        (with_entry("plan", np.array("{}")), "is not a candidate"),
        (zeros("float32", 8), r"is not a candidate \(its weights are not those that its plan is for\)"),
        (
            zeros("float64", 8),
            r"is not a candidate \([\w.]+\.bias is \(\d+,\) torch.float32, not \(8,\) torch.float64\)",
        ),
        (zeros("float32", 1, 1), r"is not a candidate \([\w.]+\.bias is "),
        (with_entry("parameter_0", np.array(["text"])), "is not a candidate"),
    ],
)
def test_a_file_that_is_no_candidate_is_refused(
    change: Callable[[bytes], bytes], said: str, optimised: Path, program: Program, tmp_path: Path
) -> None:
    path = tmp_path / "other.npz"
    path.write_bytes(change((optimised / "candidate.npz").read_bytes()))
    with pytest.raises(InputError, match=said) as refused:
        load_candidate(path, program)
    assert "\n" not in str(refused.value)
    assert refused.value.remedy == "give a candidate.npz that qexport wrote"


def test_another_programs_candidate_is_refused(optimised: Path, tiny: Program) -> None:
    with pytest.raises(InputError, match="is a candidate of another model, image size, batch or head"):
        load_candidate(optimised / "candidate.npz", tiny)


def test_candidates_are_made_and_kept_from_python(tmp_path: Path) -> None:
    """A pass by name, and a data set in place of files; one that nothing has changed can be kept, too."""
    program = layers()
    fine = make_plan(program, seen(program), replace(ONNXRUNTIME, float_stem=0.0, float_boxes=1.0))
    coarse = {  # 4 bits, so that there is something to correct
        name: replace(tensor, scale=tuple(16 * scale for scale in tensor.scale)) if tensor.axis is not None else tensor
        for name, tensor in fine.tensors.items()
    }
    given = qexport.Candidate(program, replace(fine, tensors=coarse), program)
    made, (first, second) = qexport.optimise(given, ["adaptive-rounding", "bias-correction"], DATA, count=8)
    assert (first.kept, second.kept) == (True, False)
    qexport.save_candidate(made, tmp_path / "a.npz")
    found = qexport.load_candidate(tmp_path / "a.npz", program)
    assert (found.program.fingerprint, found.plan) == (made.program.fingerprint, made.plan)
    save_candidate(given, tmp_path / "b.npz")
    assert load_candidate(tmp_path / "b.npz", program) == given


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from elsewhere import Detector, settled, write

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated
        return write(settled(Detector()), tmp_path_factory.mktemp("elsewhere") / "detector.onnx")


def constants(path: Path) -> list[np.ndarray]:
    """Every constant of a file flat, integers with a scale as the numbers that they stand for, without our readers."""
    if path.is_dir():
        openvino = pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
        ops = openvino.Core().read_model(next(path.glob("*.xml"))).get_ordered_ops()
        return [each.data.reshape(-1) for each in ops if each.get_type_name() == "Constant"]
    held = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    scaled = {name.removesuffix(".quantised"): held[name] for name in held if name.endswith("bias.quantised")}
    return [each.reshape(-1) for each in held.values()] + [
        integers * held[f"{name}.scale"].astype(np.float64) for name, integers in scaled.items()
    ]


def test_passes_are_judged_on_files_too(file: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "out", model=str(file), imgsz=None, optimise="bias-correction")
    (artifact,) = report.artifacts
    (record,) = artifact.passes
    assert record.before is not None
    assert record.after is not None
    assert record.noise is not None
    assert record.kept is (record.before - record.after > record.noise)
    assert record.before != record.after
    assert sum(layer.sqnr_db is not None for layer in artifact.layers or ()) > 40


@pytest.mark.parametrize("name", ["onnx", "openvino", "tensorrt"])
def test_what_a_pass_makes_of_a_file_is_in_every_format(file: Path, name: str, tmp_path: Path) -> None:
    """Verification would refuse the biases that the model came with."""
    source = qexport.read_model(file)
    images = image_files(DATA, count=8)
    target = make_target(name, "int8", "vnni")
    plan = qexport.plan(source.program, qexport.calibrate(source.program, images), target)
    assert plan is not None
    made = BiasCorrection()(Candidate(source.program, plan, source.program), images, Silent())
    save_candidate(made, tmp_path / "made.npz")
    given = {"model": str(file), "imgsz": None, "format": name, "cpu": "vnni", "no_build": True}
    report = run(tmp_path / "out", candidate=tmp_path / "made.npz", **given)
    (artifact,) = report.artifacts
    assert artifact.verification is not None
    assert (tmp_path / "out" / "candidate.npz").read_bytes() == (tmp_path / "made.npz").read_bytes()
    layers = [value for value in source.program.values.values() if value.bias and plan.is_quantised(value.weight)]
    assert len(layers) > 8
    stored = constants(Path(artifact.path))
    for path in (layer.bias for layer in layers):
        before, after = (program.graph.parameter(path).numpy() for program in (source.program, made.program))
        nearest = min(float(np.abs(each - after).max()) for each in stored if each.size == after.size)
        assert nearest < 0.2 * np.abs(before - after).max()
