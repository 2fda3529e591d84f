"""The scripts in examples/ run, on a few of the demo's images, and what they print is so."""

from __future__ import annotations

import ast
import logging
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import DEMO, demo_images
from guides import DOCS, ROOT, blocks, page
from reports import artifact
from reports import report as saved_report

import qexport
from qexport.errors import GateError, QexportError, UsageError
from qexport.integrations.ultralytics import FOLDER, check_report, quantise_after_training
from qexport.reporting.report import Failure, Gate, Outcome
from qexport.testing import FakeBackend, registered

EXAMPLES = ROOT / "examples"
IMAGES = {"train": 8, "val": 4}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model and a few of its images, where Ultralytics may keep its label caches."""
    folder = tmp_path_factory.mktemp("checkout")
    data = folder / "calibration_data" / "shapes"
    for split, count in IMAGES.items():
        for image in demo_images(split, count):
            label = DEMO / "shapes" / "labels" / split / f"{image.stem}.txt"
            for file, kind in ((image, "images"), (label, "labels")):
                (data / kind / split).mkdir(parents=True, exist_ok=True)
                shutil.copy(file, data / kind / split)
    shutil.copy(DEMO / "shapes" / "shapes.yaml", data)
    shutil.copy(DEMO / "shapes26.pt", folder / "calibration_data")
    return folder


def ran(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of a script that has run."""
    monkeypatch.chdir(folder)
    return runpy.run_path(str(EXAMPLES / name))


def test_every_script_is_tried_here() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    scripts = [path.name for path in EXAMPLES.glob("*.py")]
    assert len(scripts) == 4
    assert [name for name in scripts if f'"{name}"' not in text] == []


def test_one_calibration_serves_three_runtimes(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for module, extra in (("onnxruntime", "onnx"), ("openvino", "openvino"), ("litert_torch", "tflite")):
        pytest.importorskip(module, reason=f"needs the extra qexport[{extra}]")
    found = ran("plan_for_three_runtimes.py", demo, monkeypatch)
    assert len({plan.profile for plan in found["plans"].values()}) == 3
    assert len({plan.program for plan in found["plans"].values()}) == 1
    said = capfd.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[-3:]] == ["shapes.onnx", "shapes_openvino_model", "shapes.tflite"]
    assert (demo / "shapes.tflite").read_bytes()[4:8] == b"TFL3"


def test_the_worst_layer_is_mended(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    found = ran("mend_the_worst_layer.py", demo, monkeypatch)
    assert found["before"] == pytest.approx(found["costs"].whole)
    costs, worst = found["costs"], found["worst"]
    assert worst.left_out == min(row.left_out for row in costs.rows)
    assert not found["kept"].plan.integer & {*worst.values}
    assert found["candidate"].plan.integer & {*worst.values}
    distances = [qexport.distance(found[each], found["data"], count=4).mean for each in ("best", "candidate", "kept")]
    assert distances[0] == min(distances)
    kept = qexport.load_candidate(demo / "shapes26.candidate.npz", found["model"].program)
    assert kept.plan == found["best"].plan
    assert (demo / "shapes26_mended.onnx").is_file()


def test_training_writes_what_it_has_learned(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Lowered by what needs no converter."""
    pytest.importorskip("torchao", reason="needs the extra qexport[tflite]")
    monkeypatch.chdir(demo)
    script = tmp_path / "script.py"
    script.write_text((EXAMPLES / "train_with_rounding.py").read_text(encoding="utf-8").replace('"onnx"', '"fake"'))
    with registered(FakeBackend):
        record = runpy.run_path(str(script))["trained"].record
    start, end, best = capfd.readouterr().out.splitlines()[0].split()
    assert (float(start), float(end), int(best)) == (record.start, record.end, record.best)
    assert (len(record.epochs), record.images + record.held_out) == (1, IMAGES["train"])
    assert (demo / "shapes26_trained.onnx").is_file()


@pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
def test_the_page_shows_the_scripts(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block of "training.md" is what a script does, the second is how another begins."""
    steps, hook = blocks(page("training.md"), "python")
    script = {ast.dump(each) for each in ast.parse((EXAMPLES / "train_with_rounding.py").read_text("utf-8")).body}
    assert [ast.unparse(each) for each in ast.parse(steps).body if ast.dump(each) not in script] == []
    monkeypatch.chdir(demo)
    names: dict[str, Any] = {}
    exec(hook, names)
    (given,) = names["model"].callbacks["on_train_end"][-1].args
    assert given == {"format": "onnx", "max_drop": 2}


def test_a_training_ends_with_an_export(
    demo: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    found = ran("gate_a_training.py", demo, monkeypatch)
    made = demo / "runs" / "gated" / FOLDER
    assert (made / "best_int8.onnx").is_file()
    report = found["report"]
    assert (report.model.path, report.model.imgsz) == (str(made.parent / "weights" / "best.pt"), (64, 64))
    assert report.gate.passed
    assert {each.rule for each in report.gate.rules} == {"max-size", "min-fidelity"}
    assert re.search(r"^onnx int8: \d\.\d MB, fidelity 0\.\d+$", capfd.readouterr().out, re.M)
    assert not torch.are_deterministic_algorithms_enabled()


def trainer(folder: Path) -> SimpleNamespace:
    """What a trainer of Ultralytics has at its end."""
    best, last = folder / "none.pt", DEMO / "shapes26.pt"
    args = SimpleNamespace(data=str(DEMO / "shapes" / "shapes.yaml"), imgsz=64)
    return SimpleNamespace(best=best, last=last, args=args, save_dir=str(folder))


def test_a_bound_that_is_broken_is_raised_and_torch_is_as_it_was(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ultralytics"), "propagate", True)
    quick = {"format": "fake", "precision": "fp32", "no_eval": True, "no_latency": True, "max_size": "1kB"}
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with (
            registered(FakeBackend),
            caplog.at_level(logging.INFO, "ultralytics"),
            pytest.raises(GateError, match=r"^max-size: size .* MB of shapes26_fp32\.fake is over 0\.00 MB: the"),
        ):
            quantise_after_training(**quick)(trainer(tmp_path))
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    assert (tmp_path / FOLDER / "shapes26_fp32.fake").is_file()
    assert f"qexport: the report is {tmp_path / FOLDER / 'report.json'}" in caplog.messages


def test_options_are_refused_before_a_training() -> None:
    with pytest.raises(UsageError, match="unknown option fidelity"):
        quantise_after_training(fidelity=0.9)
    with pytest.raises(UsageError, match="unknown format tfllite"):
        quantise_after_training(format="tfllite")
    with pytest.raises(TypeError, match="no option 'model'"):
        quantise_after_training(model="a.pt")


def test_what_was_lost_goes_before_a_broken_bound() -> None:
    broken = Outcome("max-size", "a_int8.onnx", 2.9, None, 2.0, False, "size 2.90 MB is over 2.00 MB")
    whole = saved_report(artifact())
    check_report(whole)
    gated = qexport.Report(**{**vars(whole), "gate": Gate(False, (broken,))})
    with pytest.raises(GateError, match=r"^max-size: size 2\.90 MB is over 2\.00 MB"):
        check_report(gated)
    failed = qexport.Report(**{**vars(gated), "failures": (Failure("tflite", "there is no kernel", 5),)})
    with pytest.raises(QexportError, match=r"^tflite: there is no kernel") as found:
        check_report(failed)
    assert not isinstance(found.value, GateError)
