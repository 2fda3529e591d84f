"""One run of the demo model with a gate, and what can be asked of its files afterwards: `verify` and `diff`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from refusals import DATA, MODEL, PREFIX, SHAPES, TOLD
from reports import accuracy, artifact, content

from qexport.cli.app import main
from qexport.data.dataset import fingerprint, load_dataset
from qexport.job.options import make_job
from qexport.planning.plan import load_plan
from qexport.publish import judged
from qexport.reporting.load import load_baseline

COMMAND = str(Path(sys.executable).with_name("qexport"))
ONNX, OPENVINO = "shapes26_int8.onnx", "shapes26_int8_openvino_model"
QUICK = ("--imgsz", "96", "--calib-images", "4", "--effort", "none")
JOB = (str(MODEL), "--format", "onnx,openvino", "--int8", "--data", DATA, *QUICK)
GATE = ("--max-size", "1MB", "--min-retention", "1%")
EIGHT = "accuracy is of 8 images only: differences of a few percent are noise"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Run:
    """A finished run of the command in a folder of its own."""

    folder: Path
    output: str
    errors: str
    code: int

    @property
    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "report.json").read_text(encoding="utf-8"))
        return content


def run(folder: Path, *words: str) -> Run:
    command = [COMMAND, *JOB, *words, "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", cwd=folder.parent, timeout=900)
    return Run(folder, done.stdout, done.stderr, done.returncode)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of eight validation images."""
    folder = tmp_path_factory.mktemp("few")
    images = sorted((SHAPES / "images" / "val").glob("*.jpg"))[:8]
    (folder / "val.txt").write_text("".join(f"{path}\n" for path in images))
    names = dict(load_dataset(SHAPES / "shapes.yaml").names)
    content = {"path": str(folder), "train": "val.txt", "val": "val.txt", "names": names}
    (folder / "few.yaml").write_text(yaml.safe_dump(content))
    return folder / "few.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, few: Path) -> Run:
    """A run whose gate has a rule that holds and one that does not, and whose baseline was more accurate."""
    folder = tmp_path_factory.mktemp("gated")
    images = [Path(line) for line in (few.parent / "val.txt").read_text().split()]
    model = {"sha256": hashlib.sha256(MODEL.read_bytes()).hexdigest(), "imgsz": [96, 96], "path": str(MODEL)}
    better = artifact(path=f"old/{ONNX}", accuracy=accuracy(map=0.9, retention=0.1, fidelity=0.1, images=8))
    planted = content({**better, "bytes": 9_000_000, "int8_mac_coverage": 0.5}, schema=1)
    planted["model"] |= model
    planted["evaluation"] |= {"fingerprint": fingerprint(images), "images": 8}
    (folder / "old.json").write_text(json.dumps(planted))
    words = ("--eval-data", str(few), "--no-latency", "--baseline", "old.json", *GATE)
    return run(folder / "out", *words, "--summary", "summary.md", "--junit", "out/junit.xml")


@pytest.fixture
def copied(finished: Run, tmp_path: Path) -> Path:
    """The run's folder in another place, to be damaged."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copy"))


@pytest.fixture
def submit(capfd: pytest.CaptureFixture[str], logging_level: None) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Run a verb in this process: exit code, lines of output and of errors."""

    def asked(*words: object) -> tuple[int, list[str], list[str]]:
        capfd.readouterr()
        code = main([str(word) for word in words])
        output, errors = capfd.readouterr()
        return code, output.splitlines(), [line for line in errors.splitlines() if not line.startswith(TOLD)]

    return asked


def answers(lines: list[str]) -> dict[str, str]:
    """Check → its answer."""
    return {line.split()[0]: line.split()[1] for line in lines if "checks passed" not in line}


def test_a_broken_gate_has_its_own_exit_code_and_a_line_for_each_reason(finished: Run) -> None:
    """Both files are larger than a megabyte, and the baseline was better; retention is not under one percent."""
    assert finished.code == 9, finished.errors
    lines = [line for line in finished.errors.splitlines() if not line.startswith(TOLD)]
    assert [line.removeprefix(PREFIX).split(": ")[0] for line in lines] == ["max-size", "max-size", "baseline-map"]
    size = (finished.folder / ONNX).stat().st_size / 1e6
    assert lines[0] == f"{PREFIX}max-size: size {size:.2f} MB of {ONNX} is over 1.00 MB"
    assert lines[2].startswith(f"{PREFIX}baseline-map: mAP50-95 0.")
    assert "it was 0.9000, and " in lines[2]
    assert EIGHT in lines[2]
    assert "passed: min-retention: retention " in finished.output
    assert "is over 1.00 MB" not in finished.output  # what is on stderr is not said twice


def test_everything_is_written_all_the_same(finished: Run) -> None:
    kinds = {f"shapes26_{precision}{end}" for precision in ("int8", "fp32") for end in (".onnx", "_openvino_model")}
    files = kinds | {f"{name}.manifest.json" for name in kinds} | {"calibration.npz", "samples.npz", "report.json"}
    assert {path.name for path in finished.folder.iterdir()} == files | {
        "plan_onnx.json",
        "plan_openvino.json",
        "junit.xml",
    }


def test_the_report_has_the_gate_and_what_it_was_compared_with(finished: Run) -> None:
    content = finished.report
    assert content["gate"]["passed"] is False
    rules = [(rule["rule"], rule["passed"]) for rule in content["gate"]["rules"] if rule["artifact"] == ONNX]
    assert rules == [
        ("min-retention", True),
        ("max-size", False),
        ("baseline-map", False),
        *((f"baseline-{name}", True) for name in ("retention", "fidelity", "size", "coverage")),
    ]
    old = finished.folder.parent / "old.json"
    assert content["baseline"] == {"path": "old.json", "sha256": hashlib.sha256(old.read_bytes()).hexdigest()}
    assert f"{OPENVINO} is not in the baseline: not compared" in content["warnings"]


def test_summary_and_junit_show_the_gate_with_its_warnings(finished: Run) -> None:
    summary = (finished.folder.parent / "summary.md").read_text(encoding="utf-8")
    assert summary.startswith("### ❌ qexport: shapes26.pt")
    assert "- ❌ max-size: size 1.1" in summary
    assert EIGHT in summary
    root = ElementTree.parse(finished.folder / "junit.xml").getroot()
    assert (root.get("failures"), root.get("errors")) == ("3", "0")
    assert any(EIGHT in str(failure.get("message")) for failure in root.iter("failure"))


def test_a_run_passes_against_itself(finished: Run) -> None:
    saved = load_baseline(finished.folder / "report.json")
    job = make_job({"model": "shapes26.pt", "int8": True, "format": "onnx,openvino", "data": DATA})
    again = judged(replace(saved.report, gate=None, baseline=None), job, saved)
    assert again.gate is not None
    assert again.gate.passed
    assert len(again.gate.rules) == 2 * 5  # two formats, everything but speed


def test_the_manifest_has_the_hashes_of_everything(finished: Run) -> None:
    manifest = json.loads((finished.folder / f"{ONNX}.manifest.json").read_text())
    entry = finished.report["artifacts"][0]
    assert entry["manifest"] == f"{ONNX}.manifest.json"

    def sha256(path: Path) -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert manifest["sha256"] == entry["sha256"] == sha256(finished.folder / ONNX)
    assert manifest["weights"] == {"file": "shapes26.pt", "sha256": sha256(MODEL)}
    assert manifest["plan"]["sha256"] == sha256(finished.folder / "plan_onnx.json")
    assert manifest["calibration"]["fingerprint"] == finished.report["calibration"]["fingerprint"]
    assert manifest["calibration"]["images"] == 4
    assert manifest["packages"] == finished.report["environment"]["packages"]
    assert manifest["command"] == finished.report["command"]
    plan = load_plan(finished.folder / "plan_onnx.json")
    assert set(manifest["plan"]["weights"].values()) <= set(plan.tensors)
    assert manifest["plan"]["weights"]["model_0_conv"] == "model.0.conv.weight"
    whole = json.loads((finished.folder / "shapes26_fp32.onnx.manifest.json").read_text())
    assert whole["plan"] is whole["calibration"] is None


def test_two_processes_write_the_same_bytes(finished: Run, tmp_path: Path, submit: Any) -> None:
    """The command and this one, ONNX and OpenVINO; `test_end_to_end.py` does the same for TFLite."""
    again = tmp_path / "again"
    assert submit(*JOB, "--no-eval", "--no-latency", "--quiet", "--out", again) == (0, [], [])
    files = {f"{name}{end}" for name in (ONNX, OPENVINO) for end in ("", ".manifest.json")}
    plans = {"plan_onnx.json", "plan_openvino.json"}
    assert {path.name for path in again.iterdir()} == files | plans | {"calibration.npz", "samples.npz", "report.json"}
    names = [ONNX, f"{OPENVINO}/model.xml", f"{OPENVINO}/model.bin", f"{OPENVINO}/metadata.yaml"]
    for name in (*names, "plan_onnx.json", "plan_openvino.json", "calibration.npz"):
        assert (again / name).read_bytes() == (finished.folder / name).read_bytes(), name


@pytest.mark.parametrize("name", [ONNX, OPENVINO])
def test_an_untouched_file_still_does_what_its_report_says(name: str, copied: Path, submit: Any) -> None:
    """The folder was moved as a whole; paths in the report are those of the old place."""
    code, output, errors = submit("verify", copied / name)
    assert (code, errors) == (0, [])
    assert answers(output) == dict.fromkeys(("hash", "plan", "coverage", "outputs"), "ok")
    assert "100% of the detections in 2 sample images are those of the export" in output[3]


def test_a_float_file_has_no_plan(finished: Run, submit: Any) -> None:
    code, output, _ = submit("verify", finished.folder / "shapes26_fp32.onnx")
    assert code == 0
    assert answers(output) == {"hash": "ok", "plan": "–", "coverage": "–", "outputs": "ok"}


def test_accuracy_is_measured_where_data_are_given(finished: Run, few: Path, submit: Any) -> None:
    code, output, errors = submit("verify", finished.folder / ONNX, "--data", few)
    assert (code, errors) == (0, [])
    mean = finished.report["artifacts"][0]["accuracy"]["map"]
    assert output[4].split()[:3] == ["accuracy", "ok", f"{mean:.4f}"]
    assert EIGHT in output[4]


def test_accuracy_is_not_measured_on_images_without_labels(finished: Run, tmp_path: Path, submit: Any) -> None:
    (tmp_path / "photo.jpg").symlink_to(next((SHAPES / "images" / "val").glob("*.jpg")))
    (tmp_path / "bare.yaml").write_text("val: .\nnc: 6\n")
    code, output, errors = submit("verify", finished.folder / ONNX, "--data", tmp_path / "bare.yaml")
    assert (code, errors) == (0, [])
    assert answers(output)["accuracy"] == "–"
    assert output[4].endswith("bare.yaml have no labels")


def rotated_round(path: Path) -> None:
    """Negate the INT8 weights of every convolution: the same types and scales, another net."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4:
            tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, path)


def doubled_scales(path: Path) -> None:
    """Double the first activation's scale."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(path)
    quantise = [node for node in model.graph.node if node.op_type == "QuantizeLinear"][1]
    for tensor in model.graph.initializer:
        if tensor.name == quantise.input[1]:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(2), tensor.name))
    onnx.save(model, path)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20_000])


@pytest.mark.parametrize(
    ("damage", "failing", "message"),
    [
        (
            rotated_round,
            {"hash", "outputs"},
            "outputs: only 0% of the detections agree with the export's, 80% is the least",
        ),
        (doubled_scales, {"hash", "plan"}, "plan: the file differs from the plan in "),
        (cut, {"hash", "plan", "coverage", "outputs"}, "coverage: the file cannot be read or run ("),
    ],
)
def test_a_damaged_file_is_told_by_a_line_for_each_check(
    damage: Callable[[Path], None], failing: set[str], message: str, copied: Path, submit: Any
) -> None:
    damage(copied / ONNX)
    code, output, errors = submit("verify", copied / ONNX)
    assert code == 6
    assert {name for name, answer in answers(output).items() if answer == "FAILED"} >= failing
    assert len(errors) == sum(answer == "FAILED" for answer in answers(output).values())
    assert all(line.startswith(f"{PREFIX}{ONNX}: ") for line in errors)
    assert any(message in line for line in errors), errors


def test_another_report_plan_or_coverage_is_told(copied: Path, submit: Any) -> None:
    content = json.loads((copied / "report.json").read_text())
    content["artifacts"][0]["int8_mac_coverage"] = 0.5  # of a machine that has fewer kernels: no fault of the file
    content["artifacts"][0]["verification"]["planned_coverage"] = 0.75
    content["artifacts"][0]["accuracy"]["map"] = 0.9
    (copied / "other.json").write_text(json.dumps(content))
    plan = copied / "plan_onnx.json"
    plan.write_text(plan.read_text().replace('"zero_point": [79]', '"zero_point": [80]'))
    code, output, errors = submit("verify", copied / ONNX, "--report", copied / "other.json", "--json")
    assert code == 6
    checks = {check["name"]: check for check in json.loads("\n".join(output))["checks"]}
    assert {name: check["passed"] for name, check in checks.items()} == {
        "hash": True,
        "plan": False,
        "coverage": False,
        "outputs": True,
    }
    assert checks["plan"]["text"].endswith("plan_onnx.json is not the plan that the file was made from")
    text = "99.8% of the arithmetic is in integers, 75.0% was planned; "
    assert checks["coverage"]["text"] == f"{text}99.8% of the arithmetic runs in integers here, 50.0% in the report"
    assert len(errors) == 2


def test_without_the_files_beside_it_less_is_checked(copied: Path, submit: Any) -> None:
    manifest = copied / f"{ONNX}.manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "samples": None}))
    code, output, _ = submit("verify", copied / ONNX, "--json")
    checks = {check["name"]: check for check in json.loads("\n".join(output))["checks"]}
    assert (code, checks["outputs"]["passed"]) == (0, None)
    assert checks["outputs"]["text"].startswith("the export had no images to keep samples of")
    (copied / "samples.npz").unlink()
    manifest.unlink()
    code, output, _ = submit("verify", copied / ONNX)
    assert code == 0
    assert answers(output) == {"hash": "ok", "plan": "ok", "coverage": "ok", "outputs": "–"}


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("verify", "absent.onnx"), 3, "absent.onnx does not exist: give an artifact that qexport wrote"),
        (("verify", str(MODEL)), 3, "shapes26.pt is no artifact of qexport: give a .tflite or .onnx file"),
        (("diff", "absent.onnx", str(MODEL)), 3, "absent.onnx does not exist: give two artifacts, or two report.json"),
        (("diff", str(MODEL), str(MODEL)), 3, "shapes26.pt is no artifact of qexport: give a .tflite or .onnx file"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(words: tuple[str, ...], code: int, message: str, submit: Any) -> None:
    found, output, errors = submit(*words)
    assert (found, output, len(errors)) == (code, [], 1)
    assert message in errors[0]


def test_a_file_that_was_copied_alone_is_told_what_belongs_to_it(tmp_path: Path, submit: Any) -> None:
    (tmp_path / ONNX).write_bytes(b"")
    code, _, errors = submit("verify", tmp_path / ONNX)
    along = f"report.json, {ONNX}.manifest.json, plan and samples"
    assert code == 3
    assert f"there is no report at {tmp_path / 'report.json'}: give --report, or copy along what lies" in errors[0]
    assert errors[0].endswith(f"beside it: {along}")


def test_a_report_of_other_files_is_refused(copied: Path, submit: Any) -> None:
    (copied / ONNX).rename(copied / "renamed.onnx")
    code, _, errors = submit("verify", copied / "renamed.onnx")
    assert code == 3
    assert f"the report has no renamed.onnx, it is of {ONNX}" in errors[0]


def test_equal_files_have_no_difference(finished: Run, copied: Path, submit: Any) -> None:
    code, output, errors = submit("diff", finished.folder / ONNX, copied / ONNX)
    assert (code, errors) == (0, [])
    assert not any("≠" in line for line in output)
    assert any(line.split()[:3] == ["detections", "in", "2"] for line in output)
    assert any(line.split()[:3] == ["weights", "in", "integers"] for line in output)


def test_a_file_with_another_scale_differs_in_it(finished: Run, copied: Path, submit: Any) -> None:
    doubled_scales(copied / ONNX)
    code, output, _ = submit("diff", finished.folder / ONNX, copied / ONNX, "--json")
    assert code == 1
    found = json.loads("\n".join(output))
    assert found["equal"] is False
    rows = {row["what"].split(":")[0]: row for row in found["rows"]}
    assert rows["scales"]["same"] is False
    first, second = (float(rows["scales"][side].split()[1].rstrip(",")) for side in ("a", "b"))
    assert second == pytest.approx(2 * first, rel=1e-4)
    assert rows["weights in integers"]["same"] is rows["precision of tensors"]["same"] is rows["format"]["same"] is True


def test_int8_and_float_differ_and_are_run_on_other_images(finished: Run, few: Path, submit: Any) -> None:
    both = (finished.folder / ONNX, finished.folder / "shapes26_fp32.onnx")
    code, output, _ = submit("diff", *both, "--data", few, "--images", "3", "--json")
    assert code == 1
    rows = {row["what"].split(":")[0]: row for row in json.loads("\n".join(output))["rows"]}
    assert not any("equal in" in row["a"] for row in rows.values())
    assert int(rows["detections in 3 images"]["a"]) > 0
    assert rows["integer arithmetic"]["a"] == "99.83%"
    assert rows["integer arithmetic"]["b"] == "0.00%"
    assert rows["map"]["a"] == f"{finished.report['artifacts'][0]['accuracy']['map']:.4f}"


def test_reports_that_differ_in_times_alone_are_equal(finished: Run, copied: Path, submit: Any) -> None:
    content = finished.report
    content["artifacts"][0]["latency_ms"] = {"p50": 12.0, "p95": 13.0, "min": 11.0}
    (copied / "report.json").write_text(json.dumps(content))
    code, output, _ = submit("diff", finished.folder / "report.json", copied / "report.json")
    assert code == 0
    assert any("12.0 ms" in line for line in output)
    content["artifacts"][0]["accuracy"]["map"] += 0.01
    (copied / "report.json").write_text(json.dumps(content))
    code, output, _ = submit("diff", finished.folder / "report.json", copied / "report.json")
    assert code == 1
    assert [" ".join(line.split()[:3]) for line in output if "≠" in line] == ["onnx int8 map"]


def test_a_report_and_a_file_are_not_of_a_kind(finished: Run, submit: Any) -> None:
    code, _, errors = submit("diff", finished.folder / "report.json", finished.folder / ONNX)
    assert code == 3
    assert "are not of a kind" in errors[0]
