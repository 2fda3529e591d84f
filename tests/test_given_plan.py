"""`--plan`: what a run saved and was given again, as it was and edited by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import reports
from conftest import DEMO
from hard_numbers import built, layers

from qexport import pipeline
from qexport.backends.registry import infos
from qexport.cli.app import main
from qexport.errors import InputError, UsageError
from qexport.inspection.recheck import recheck
from qexport.job.options import make_job
from qexport.planning.plan import load_plan, save_plan
from qexport.reporting.report import Report
from qexport.steps.lower import lower
from qexport.steps.model import calibrate
from qexport.steps.plan import check_given, make_target, plan

if TYPE_CHECKING:
    from qexport.calibration.calibration_table import CalibrationTable
    from qexport.programs.program import Program

MODEL, DATA = DEMO / "shapes26.pt", DEMO / "shapes" / "shapes.yaml"
onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")


def run(out: Path, **options: Any) -> Report:
    fixed = {"model": str(MODEL), "data": str(DATA), "format": "onnx", "int8": True, "imgsz": 64, "calib_images": 4}
    return pipeline.export(
        make_job({**fixed, "no_eval": True, "no_latency": True, "effort": "none", "out": out, **options})
    )


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


PLANNED = [(info.name, each) for info in infos() for each in sorted(info.profiles)]


@pytest.fixture(scope="module")
def demo_table(demo_program: Program) -> CalibrationTable:
    return calibrate(demo_program, DATA, count=4)


@pytest.mark.parametrize(("name", "precision"), [*PLANNED, ("onnx", "int8-dynamic")])
def test_plans_that_are_made_keep_the_rules_that_given_ones_have_to(
    name: str, precision: str, demo_program: Program, demo_table: CalibrationTable, tmp_path: Path
) -> None:
    for cpu in ("avx2", "arm"):
        target = make_target(name, precision, cpu)
        made = plan(demo_program, demo_table, target)
        assert made is not None
        save_plan(made, tmp_path / "plan.json")
        again = load_plan(tmp_path / "plan.json")
        assert again == made
        check_given(again, demo_program, target, tmp_path)


Tensors = dict[str, dict[str, Any]]
FLOAT = {"integer": False, "dtype": "float32"}
SUM, WEIGHT = "model_13_m_0_m_0_add", "model.16.cv1.conv.weight"
LAYER, SIGMOID, JOINED = "model_16_cv1_conv", "model_13_cv2_sigmoid", "model_18_cat"
ATTENTION = "model_10_m_0_attn_softmax"
INTEGERS = {"dtype": "uint8", "scale": [1.0], "zero_point": [0]}
BROKEN: list[tuple[str, Callable[[Tensors], object], str]] = [
    ("a value that integers are made of", lambda t: t.update({SUM: FLOAT}), f"reads {SUM}, which is float32"),
    ("no integer kernel", lambda t: t[ATTENTION].update(integer=True), f"{ATTENTION} is a softmax, which runs in"),
    ("16 bits", lambda t: t[SUM].update(dtype="int16", zero_point=[0]), f"{SUM} is int16, and activations are uint8"),
    ("signed", lambda t: t[SUM].update(dtype="int8", zero_point=[0]), f"{SUM} is int8, and activations are uint8"),
    ("a weight alone", lambda t: t[LAYER].update(integer=False), f"{WEIGHT} is int8, and {LAYER} does not run in"),
    ("a kernel's scale", lambda t: t[SIGMOID].update(scale=[1 / 128]), f"its kernel gives {SIGMOID} a scale of 0.0039"),
    ("a torn group", lambda t: t[JOINED].update(scale=[1.0], group=""), "must share one scale, a kernel only moves"),
    ("for nobody", lambda t: t["decode_cat"].update(INTEGERS), "decode_cat is uint8, and"),
    ("zero in float32", lambda t: t[SUM].update(scale=[1e-300]), f"{SUM} has a scale of 1e-300"),
    ("infinite in float32", lambda t: t[SUM].update(scale=[1e39]), f"{SUM} has a scale of 1e+39"),
    ("too large to be a float", lambda t: t[SUM].update(scale=[10**400]), "a whole number of 401 digits"),
    ("not a number", lambda t: t[SUM].update(scale=[float("nan")]), f"{SUM} has a scale of nan"),
    ("a text for a number", lambda t: t[SUM].update(scale=["0.1"]), "scale cannot be ['0.1']"),
    ("a truth for a number", lambda t: t[SUM].update(zero_point=[True]), "zero_point cannot be [True]"),
    ("a list for a name", lambda t: t[SUM].update(group=["a"]), "group cannot be ['a']"),
    ("an axis between two", lambda t: t[WEIGHT].update(axis=0.0), "axis cannot be 0.0"),
    ("derived from nothing", lambda t: t[SUM].update(rule="derived"), f"{SUM} has the rule derived, and is uint8"),
    ("a scale of a float", lambda t: t[SUM].update(dtype="float32"), f"{SUM} is float32, and has a scale"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "said"), [each[1:] for each in BROKEN], ids=[each[0] for each in BROKEN])
def test_an_edit_that_no_file_could_obey_is_refused(
    edit: Callable[[Tensors], object],
    said: str,
    demo_program: Program,
    demo_table: CalibrationTable,
    tmp_path: Path,
) -> None:
    """None of these may be written another way than the plan says, or end in an error that is not ours."""
    refused = refusal(demo_program, demo_table, tmp_path, lambda content: edit(content["tensors"]))
    assert said in refused


@pytest.mark.parametrize(("name", "precision"), [("onnx", "fp32"), ("onnx", "int8-dynamic"), ("openvino", "int8")])
def test_a_plan_of_another_target_is_not_written(
    name: str, precision: str, demo_program: Program, demo_table: CalibrationTable, tmp_path: Path
) -> None:
    made = plan(demo_program, demo_table, make_target("onnx", "int8"))
    source: Any = SimpleNamespace(program=demo_program)
    with pytest.raises(UsageError, match="the plan is for onnx, "):
        lower(source, make_target(name, precision), tmp_path / "file", made)
    assert not list(tmp_path.iterdir())


def refusal(program: Program, table: CalibrationTable, folder: Path, change: Callable[[dict[str, Any]], object]) -> str:
    target, path = make_target("onnx", "int8", "avx2"), folder / "plan.json"
    made = plan(program, table, target)
    assert made is not None
    save_plan(made, path)
    with pytest.raises(InputError) as refused:
        check_given(load_plan(edited(folder, path, change)), program, target, path)
    return str(refused.value)


def test_biases_are_of_the_type_that_the_runtime_adds_up(
    demo_program: Program, demo_table: CalibrationTable, tmp_path: Path
) -> None:
    said = refusal(demo_program, demo_table, tmp_path, lambda content: content.update(integer_bias=False))
    assert "integer_bias is false, and has to be true" in said


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 200_000, '{"schema": 2, "schema": 2}', '{"schema": 2}', "\0"])
def test_what_is_no_plan_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text, encoding="utf-8")
    for path in (tmp_path / "plan.json", tmp_path):
        with pytest.raises(InputError, match="is not a quantisation plan"):
            load_plan(path)
