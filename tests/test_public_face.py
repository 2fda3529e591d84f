"""What `import qexport` offers: its names, that it is light, and that the examples of docs/python.md run."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO, synthetic_statistics
from guides import DOCS, blocks, page
from reports import report as saved_report

import qexport
from qexport.calibration.calibration_table import CalibrationTable
from qexport.errors import QexportError
from qexport.programs.program import Program
from qexport.reporting.report import Report, to_json

ROOT = Path(__file__).resolve().parents[1]
NAMES = {
    *("Candidate", "PassRecord", "WeightPass", "load_candidate", "optimise", "save_candidate"),
    *("CalibrationTable", "CaptureOptions", "Executor", "ExportJob", "HeadLayout", "Inline", "Program"),
    *("QexportError", "QuantPlan", "Source", "Target", "Task", "TensorQuant", "Verified"),
    *("calibrate", "check_plan", "export", "load_plan", "load_report", "load_table", "lower", "make_job"),
    *(
        "Backend",
        "BackendInfo",
        "FixedScale",
        "Lowering",
        "Option",
        "OwnScale",
        "Quantiser",
        "Runner",
        "RuntimeProfile",
    ),
    *("ArtifactReport", "NumberFormat", "Progress", "Report", "Rule"),
    *("Distance", "distance"),
    *("Sensitivity", "load_sensitivity", "sensitivity"),
    *("Recipe", "Trained", "TrainingRecord", "TrainingReport", "load_training", "train"),
    *("SharedScale", "Statistics", "StoredGraph", "StoredTensor", "SweepReport", "check_precision", "load_sweep"),
    *("make_target", "measure", "plan", "read_model", "save_plan", "save_table", "verify", "worker_process"),
}


def test_these_names_are_public_and_say_what_they_are() -> None:
    assert set(qexport.__all__) == {*NAMES, "__version__"}
    assert sorted(qexport.__all__) == qexport.__all__
    for name in NAMES:
        assert (getattr(qexport, name).__doc__ or "").strip(), name
        assert name in dir(qexport)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        qexport.quantise  # noqa: B018


def test_importing_it_imports_nothing_heavy() -> None:
    code = (
        "import sys, qexport, qexport as q; print([m for m in ('torch', 'numpy', 'ultralytics') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert (Path(qexport.__file__).parent / "py.typed").is_file()


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    pytest.importorskip("openvino", reason="needs the extra qexport[openvino]")
    steps, whole = blocks(page("python.md"), "python")
    assert len([line for line in steps.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(tmp_path)
    (tmp_path / "calibration_data").symlink_to(ROOT / "calibration_data")
    saved = tmp_path / "qexport_out" / "demo" / "report.json"
    saved.parent.mkdir(parents=True)
    saved.write_text(to_json(saved_report()), encoding="utf-8")
    found: dict[str, Any] = {}
    capfd.readouterr()
    exec(steps, found)
    exec(whole, found)
    # Nothing but the example's own two lines is printed.
    printed = capfd.readouterr().out.splitlines()
    assert [line.partition("(")[0] for line in printed] == ["Verification", "Verification"]
    assert isinstance(found["report"], Report)
    assert (found["job"].precision, found["job"].folder) == ("int8", Path("qexport_out/yolo26n"))
    import onnx

    stored = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load("shapes26_int8.onnx").graph.initializer}
    target = qexport.make_target("onnx", "int8")
    plan = qexport.plan(found["model"].program, found["table"], target)
    assert plan is not None
    name = next(name for name in sorted(plan.integer) if f"{name}.scale" in stored)
    assert float(stored[f"{name}.scale"]) == pytest.approx(plan.tensors[name].scale[0])
    assert (tmp_path / "shapes26_int8_openvino_model" / "model.bin").is_file()


def test_two_threads_read_models_at_the_same_time() -> None:
    """Torch's tracing keeps what it is doing in its modules: without a lock one thread traces the other's layers."""
    with ThreadPoolExecutor(2) as pool:
        read = [pool.submit(qexport.read_model, DEMO / "shapes26.pt", imgsz=(64, 64)) for _ in range(2)]
        first, second = (each.result().program.fingerprint for each in read)
    assert first == second


@pytest.mark.parametrize(
    ("call", "line"),
    [
        (lambda: qexport.read_model("a.pt", imgs=64), "unknown option imgs: known options are imgsz, batch"),
        (lambda: qexport.read_model("a.pt", imgsz=(64, 0)), r"imgsz is \(64, 0\): give height and width"),
        (lambda: qexport.read_model("a.pt", imgsz="64"), "imgsz is '64': give height and width"),
        (lambda: qexport.read_model("a.pt", batch=0), "batch is 0: give a number of images"),
        (lambda: qexport.read_model("a.pt", batch="2"), "batch is '2': give a number of images"),
        (lambda: qexport.read_model("a.pt", head="x"), "unknown head x: choose from end2end, one2many"),
        (lambda: qexport.make_target("onnx", "int8", "z80"), "unknown kind of CPU z80: choose from auto, vnni"),
        (lambda: qexport.make_job({"model": "a.pt", "presicion": "int8"}), "option presicion: did you mean precision"),
        (lambda: qexport.load_plan("none.json"), "none.json is not a quantisation plan"),
        (lambda: qexport.load_table("none.npz"), "none.npz is not a calibration table"),
        (lambda: qexport.load_report("none.json"), "none.json"),
    ],
)
def test_what_cannot_be_is_one_line(call: Callable[[], Any], line: str) -> None:
    with pytest.raises(QexportError, match=line):
        call()


def test_a_table_of_another_program_plans_nothing(tiny: Program, tmp_path: Path) -> None:
    table = CalibrationTable(tiny.fingerprint, "", "", (), (), synthetic_statistics(tiny.values))
    target = qexport.make_target("onnx", "int8", "vnni")
    made = qexport.plan(tiny, table, target, keep_float="program_add")
    assert made is not None
    assert "program_add" not in made.integer
    qexport.save_plan(made, str(tmp_path / "plan.json"))
    assert qexport.load_plan(str(tmp_path / "plan.json")) == made
    with pytest.raises(QexportError, match="the table is of another model"):
        qexport.plan(tiny, replace(table, program="0" * 64), target)
