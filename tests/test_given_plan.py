"""`--plan`: what a run saved and was given again, as it was and edited by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import reports
from conftest import DEMO
from hard_numbers import built, layers

from qexport import pipeline
from qexport.cli.app import main
from qexport.errors import InputError, UsageError
from qexport.inspection.recheck import recheck
from qexport.job.options import make_job
from qexport.planning.plan import load_plan
from qexport.reporting.report import Report

MODEL, DATA = DEMO / "shapes26.pt", DEMO / "shapes" / "shapes.yaml"
onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")


def run(out: Path, **options: Any) -> Report:
    fixed = {"model": str(MODEL), "data": str(DATA), "format": "onnx", "int8": True, "imgsz": 64, "calib_images": 4}
    return pipeline.export(make_job({**fixed, "no_eval": True, "no_latency": True, "out": out, **options}))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that made its plan itself."""
    out = tmp_path_factory.mktemp("planned") / "out"
    report = run(out)
    steps = report.seconds.keys()
    assert steps >= {"read", "calibrate", "plan_onnx_int8", "lower_onnx_int8", "verify_onnx_int8"}
    return out


def edited(planned: Path, path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the plan in which a hand has changed something."""
    content = json.loads((planned / "plan.json").read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def constants(path: Path) -> dict[str, Any]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}


def test_a_plan_of_schema_1_makes_the_same_file(planned: Path, tmp_path: Path) -> None:
    def of_schema_1(content: dict[str, Any]) -> None:
        content["schema"] = 1
        for tensor in content["tensors"].values():
            tensor.pop("rule", None)

    run(tmp_path / "out", plan=edited(planned, tmp_path / "before.json", of_schema_1))
    first, again = (folder / "shapes26_int8.onnx" for folder in (planned, tmp_path / "out"))
    assert first.read_bytes() == again.read_bytes()


def test_a_plan_that_is_given_again_makes_the_same_file_without_calibration(planned: Path, tmp_path: Path) -> None:
    report = run(tmp_path / "out", plan=planned / "plan.json")
    first, again = (folder / "shapes26_int8.onnx" for folder in (planned, tmp_path / "out"))
    assert first.read_bytes() == again.read_bytes()
    assert (planned / "plan.json").read_bytes() == (tmp_path / "out" / "plan.json").read_bytes()
    assert "calibrate" not in report.seconds
    assert not (tmp_path / "out" / "calibration.npz").exists()
    (artifact,) = report.artifacts
    assert artifact.verification is not None
    assert artifact.layers  # the noise of every value is measured as ever
    assert artifact.histograms is None  # of what calibration saw


def test_an_edited_plan_is_obeyed_and_verified(planned: Path, tmp_path: Path) -> None:
    """One scale doubled, which keeps twice as much, and one layer made float."""
    original = load_plan(planned / "plan.json")
    before = constants(planned / "shapes26_int8.onnx")
    scaled = next(n for n in sorted(original.integer) if n.endswith("_mul") and original.is_quantised(n))
    assert float(before[f"{scaled}.scale"]) == pytest.approx(original.tensors[scaled].scale[0])
    group = original.tensors[scaled].group
    shared = [n for n, t in original.tensors.items() if n == scaled or (group and t.group == group)]
    manifest = json.loads((planned / "shapes26_int8.onnx.manifest.json").read_text(encoding="utf-8"))
    weight = "model.10.cv1.conv.weight"
    (layer,) = (value for value, of in manifest["plan"]["weights"].items() if of == weight)
    assert original.is_quantised(weight)
    assert layer in original.integer

    def change(content: dict[str, Any]) -> None:
        tensors = content["tensors"]
        for name in shared:
            tensors[name]["scale"] = [2 * tensors[name]["scale"][0]]
        tensors[layer] = {"integer": False, "dtype": "float32", "why": "by hand"}
        tensors[weight] = {"integer": False, "dtype": "float32", "why": "by hand"}

    report = run(tmp_path / "out", plan=edited(planned, tmp_path / "edited.json", change))
    after = constants(tmp_path / "out" / "shapes26_int8.onnx")
    assert float(after[f"{scaled}.scale"]) == pytest.approx(2 * float(before[f"{scaled}.scale"]))
    weights = [sum(each.dtype == "int8" and each.ndim == 4 for each in kept.values()) for kept in (before, after)]
    assert weights[1] == weights[0] - 1
    (artifact,) = report.artifacts
    assert artifact.verification is not None
    assert artifact.int8_mac_coverage is not None
    by_hand = load_plan(tmp_path / "out" / "plan.json")
    assert by_hand.tensors[layer].why == "by hand"


@pytest.mark.parametrize(
    ("changed", "options", "code", "said"),
    [
        ({"program": "of another model"}, [], 3, "another model"),
        ({"profile": "tflite"}, [], 3, "is a plan for tflite, onnx as int8 takes one for onnx"),
        ({}, ["--precision", "int8-dynamic"], 3, "is a plan for onnx, onnx as int8-dynamic takes one for weights"),
        ({}, ["--format", "onnx,tflite"], 2, "--plan is of one format, and onnx and tflite are to be written"),
        ({}, ["--ranges", "mse"], 2, "--plan and --ranges mse exclude each other"),
        ({}, ["--keep-float", "a"], 2, "--plan and --keep-float exclude each other"),
        ({}, ["--precision", "fp16"], 2, "--plan and --precision fp16 exclude each other"),
    ],
)
def test_a_plan_of_something_else_is_refused(
    changed: dict[str, str],
    options: list[str],
    code: int,
    said: str,
    planned: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = edited(planned, tmp_path / "p.json", lambda content: content.update(changed))
    given = {"model": str(MODEL), "data": str(DATA), "format": "onnx", "precision": "int8", "imgsz": 64, "plan": plan}
    words = {
        word.removeprefix("--").replace("-", "_"): value
        for word, value in zip(options[::2], options[1::2], strict=True)
    }
    with pytest.raises((InputError, UsageError)) as refused:
        pipeline.export(make_job({**given, "no_eval": True, "out": tmp_path / "out", **words}))
    assert said in str(refused.value)
    assert refused.value.exit_code == code
    assert not (tmp_path / "out").exists()


def test_a_plan_that_is_not_there_is_refused_by_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main([str(MODEL), "--int8", "--data", str(DATA), "--plan", "nowhere.json", "--no-eval"]) == 3
    assert "--plan nowhere.json does not exist" in capfd.readouterr().err


def test_the_plan_of_weights_is_saved_and_obeyed_like_any_other(tmp_path: Path) -> None:
    """Its bytes come out again, and a layer that is made float in it has float weights in the file."""
    program = layers()
    first = built(program, tmp_path, "onnx", "int8-dynamic")
    assert first.plan == tmp_path / "plan.json"
    content, plan = first.artifact.path.read_bytes(), load_plan(first.plan)
    assert built(program, tmp_path, "onnx", "int8-dynamic", plan=plan).artifact.path.read_bytes() == content
    entry = {**asdict(first.artifact), "path": str(first.artifact.path), "plan": str(first.plan), "verification": None}
    saved = reports.report(reports.artifact(**entry))
    checks = {each.name: each for each in recheck(first.artifact.path, saved, None, 1)}
    assert checks["hash"].passed
    assert (checks["plan"].passed, checks["plan"].text.split(":")[0]) == (None, "only weights are integers")
    kept = json.loads(first.plan.read_text(encoding="utf-8"))
    kept["tensors"]["point.weight"] = {"integer": False, "dtype": "float32"}
    first.plan.write_text(json.dumps(kept), encoding="utf-8")
    again = built(program, tmp_path, "onnx", "int8-dynamic", plan=load_plan(first.plan))
    stored = [each for each in constants(again.artifact.path).values() if each.dtype == "float32"]
    weight = program.graph.parameter("point.weight").detach().numpy()
    assert any(each.size == weight.size and (each.ravel() == weight.ravel()).all() for each in stored)
