"""A sweep as a whole, with runs that are made up: what is run, what is not run again, and what is told of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from shutil import copyfile
from typing import Any

import pytest
import yaml
from conftest import DEMO
from PIL import Image
from reports import ACCURACY, artifact, content

from qexport import sweep_run
from qexport.cli.app import main
from qexport.errors import ConversionError, InputError
from qexport.execution.executor import Task, WorkerDiedError
from qexport.job.sweep_file import read_sweep
from qexport.reporting.load import load_report
from qexport.reporting.sweep_report import SweepReport, load_sweep, save_sweep
from qexport.sweep_run import sweep_of
from qexport.sweeps.one_run import RunRequest
from qexport.sweeps.run_record import RunRecord, load_run, save_run
from qexport.version import __version__

GRID: dict[str, Any] = {"formats": ["onnx", "openvino"], "precisions": ["fp16", "int8"], "data": "data.yaml"}


class Runs:
    """An executor that makes runs up; `ends` says how one of a name ends: a code and a line, or an error."""

    def __init__(self, ends: Mapping[str, Any] | None = None) -> None:
        self.ends = dict(ends or {})
        self.done: list[RunRequest] = []

    def submit(self, task: Task) -> Future[Any]:
        (request,) = task.arguments
        self.done.append(request)
        end = self.ends.get(request.folder.name, (0, ""))
        future: Future[Any] = Future()
        if isinstance(end, Exception):
            future.set_exception(end)
            return future
        request.folder.mkdir(exist_ok=True)
        if end[0] in (0, 7, 9):
            made = artifact(request.options["precision"], "onnx", accuracy={**ACCURACY, "map": 0.25})
            found = {**content(made), "qexport": __version__}
            (request.folder / "report.json").write_text(json.dumps(found), encoding="utf-8")
        record = RunRecord(request.fingerprint, *end)
        save_run(record, request.folder)
        future.set_result(record)
        return future

    @property
    def names(self) -> list[str]:
        return [request.folder.name for request in self.done]


Sweeps = Callable[..., tuple[SweepReport, Runs]]


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweeps:
    """Run a grid of one model in the folder `out`, with made-up runs."""
    monkeypatch.chdir(tmp_path)
    copyfile(DEMO / "shapes26.pt", "m.pt")
    for split in ("train", "val"):
        for number in range(2):
            path = tmp_path / "images" / split / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (number, 50, 90)).save(path)
            (tmp_path / "labels" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.5 0.5\n", encoding="utf-8")
    described = {"train": "images/train", "val": "images/val", "names": {0: "a"}}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")

    def run(ends: Mapping[str, Any] | None = None, **changes: Any) -> tuple[SweepReport, Runs]:
        Path("sweep.yaml").write_text(yaml.safe_dump({"models": "m.pt", **GRID, **changes}), encoding="utf-8")
        runs = Runs(ends)
        return sweep_of(read_sweep(Path("sweep.yaml"), Path("out")), runs, command="qexport sweep"), runs

    return run


ALL = ["m_onnx_fp16", "m_onnx_int8", "m_openvino_fp16", "m_openvino_int8"]


def test_runs_that_are_complete_are_not_run_again(sweep: Sweeps) -> None:
    first, runs = sweep()
    assert sorted(runs.names) == ALL
    assert [run.state for run in first.runs] == ["done"] * 4
    assert [run.report for run in first.runs] == [f"{name}/report.json" for name in ALL]
    assert load_sweep("out/sweep.json") == first
    again, none = sweep()
    assert none.names == []
    assert again == first
    assert sweep(jobs=2)[1].names == []  # figures do not depend on how many processes score
    _, more = sweep(formats=["tflite", "onnx", "openvino"])
    assert sorted(more.names) == ["m_tflite_fp16", "m_tflite_int8"]


def test_the_report_of_a_run_is_read_once(sweep: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind every run of a thousand all of them would keep a core busy beside those that measure."""
    read: list[Path] = []

    def counted(path: Path) -> Any:
        read.append(path)
        return load_report(path)

    monkeypatch.setattr(sweep_run, "load_report", counted)
    sweep()
    assert sorted(path.parent.name for path in read) == ALL


def test_what_figures_depend_on_is_known(sweep: Sweeps, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep()
    with Path("labels/val/0.txt").open("a") as labels:
        labels.write("0 0.2 0.2 0.1 0.1\n")
    assert sorted(sweep()[1].names) == ALL
    Image.new("RGB", (16, 16), (99, 0, 0)).save("images/train/1.png")
    assert sorted(sweep()[1].names) == ["m_onnx_int8", "m_openvino_int8"]  # nothing else calibrates
    described = yaml.safe_load(Path("data.yaml").read_text(encoding="utf-8"))
    Path("data.yaml").write_text(yaml.safe_dump({**described, "kpt_shape": [5, 3]}), encoding="utf-8")
    assert sorted(sweep()[1].names) == ALL
    assert sorted(sweep(strict=True)[1].names) == [f"{name}_strict" for name in ALL]
    with Path("m.pt").open("ab") as model:
        model.write(b"\0")
    assert sorted(sweep()[1].names) == ALL
    monkeypatch.setattr(sweep_run, "__version__", "another")
    assert sorted(sweep()[1].names) == ALL


def test_weights_beside_an_onnx_file_count(sweep: Sweeps) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[2, 3, 1, 1])
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, channels, 8, 8])
        for name, channels in (("images", 3), ("out", 2))
    ]
    node = onnx.helper.make_node("Conv", ["images", "w"], ["out"])
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    Path("m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    counts = []
    for byte in (b"\0", b"\0", b"\1"):
        Path("w.bin").write_bytes(byte * 24)
        report, runs = sweep(models="m.onnx", formats="onnx", precisions="int8")
        assert [run.state for run in report.runs] == ["done"]
        counts.append(len(runs.names))
    assert counts == [1, 0, 1]


def test_a_run_that_fails_is_told_and_tried_again_and_the_others_go_on(sweep: Sweeps) -> None:
    ends = {
        "m_onnx_fp16": (5, "onnx: no such operator: leave it out"),
        "m_onnx_int8": (9, "max-drop: 3 % is more than 2 %"),
        "m_openvino_fp16": ConversionError("the folder is full", "make room"),
        "m_openvino_int8": WorkerDiedError("its worker was lost"),
    }
    report, _ = sweep(ends)
    told = {run.name: (run.state, run.exit_code, run.line) for run in report.runs}
    assert told == {
        "m_onnx_fp16": ("failed", 5, "onnx: no such operator: leave it out"),
        "m_onnx_int8": ("done", 9, "max-drop: 3 % is more than 2 %"),
        "m_openvino_fp16": ("failed", 5, "the folder is full: make room"),
        "m_openvino_int8": ("failed", 1, "its worker was lost"),
    }
    again, runs = sweep()
    assert sorted(runs.names) == ["m_onnx_fp16", "m_openvino_fp16", "m_openvino_int8"]
    assert [run.exit_code for run in again.runs] == [0, 9, 0, 0]


def test_a_run_whose_folder_cannot_be_removed_is_told_and_the_others_go_on(sweep: Sweeps) -> None:
    report, _ = sweep({"m_onnx_int8": PermissionError(13, "Permission denied")})
    failed = [(run.name, run.exit_code) for run in report.runs if run.state == "failed"]
    assert failed == [("m_onnx_int8", 1)]
    assert "Permission denied" in report.runs[1].line


def test_what_cannot_begin_is_a_run_that_failed(sweep: Sweeps) -> None:
    sweep()
    Path("other.yaml").write_text(yaml.safe_dump({"train": "nowhere", "val": "nowhere", "names": {0: "a"}}), "utf-8")
    report, runs = sweep(data=["data.yaml", "other.yaml"], precisions=["int8"])
    assert runs.names == []
    assert {run.label: (run.state, run.exit_code) for run in report.runs} == {
        "m onnx int8": ("done", 0),
        "m openvino int8": ("done", 0),
        "m onnx int8 data-other": ("failed", InputError.exit_code),
        "m openvino int8 data-other": ("failed", InputError.exit_code),
    }
    assert "nowhere" in report.runs[-1].line


def test_the_first_of_runs_that_calibrate_alike_goes_before_the_others(sweep: Sweeps) -> None:
    _, runs = sweep(imgsz=[64, 32])
    assert runs.names[:2] == ["m_onnx_int8_64", "m_onnx_int8_32"]


def test_a_report_that_is_not_here_is_told(sweep: Sweeps) -> None:
    """As of a worker with a disk of its own, or with another version."""
    report, _ = sweep({"m_onnx_int8": (8, "")}, formats="onnx", precisions=["int8"])
    assert report.runs[0].state == "failed"
    assert "do the workers share this folder?" in report.runs[0].line
    sweep(formats="onnx", precisions=["int8"])
    path = Path("out/m_onnx_int8/report.json")
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "qexport": "0.1"}), encoding="utf-8")
    report, _ = sweep(formats="onnx", precisions=["int8"])
    assert report.runs[0].line.startswith("its worker has qexport 0.1")


def test_records_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    assert load_run(tmp_path) is None
    for text in ("", "{", '{"schema": 2}', '{"schema": 1, "fingerprint": 3}'):
        (tmp_path / "sweep-run.json").write_text(text, encoding="utf-8")
        assert load_run(tmp_path) is None


def test_a_report_is_read_back_as_it_was(tmp_path: Path) -> None:
    report = SweepReport("a.yaml", "", ())
    save_sweep(report, tmp_path / "sweep.json")
    assert load_sweep(tmp_path / "sweep.json") == report
    assert json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["schema"] == 1
    (tmp_path / "sweep.json").write_text('{"schema": 9}', encoding="utf-8")
    with pytest.raises(InputError, match="schema 9"):
        load_sweep(tmp_path / "sweep.json")


def test_the_command_prints_one_table_and_returns_the_first_code(
    sweep: Sweeps, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], logging_level: None
) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    ends = {"m_onnx_int8": (9, "max-drop: 3 %"), "m_openvino_fp16": (5, "no")}
    sweep(ends)
    monkeypatch.setattr("qexport.execution.pool.Pool.submit", lambda _, task: Runs(ends).submit(task))
    assert main(["sweep", "sweep.yaml", "--out", "out"]) == 9
    output, errors = capfd.readouterr()
    assert [line for line in errors.splitlines() if "error" in line] == [
        "qexport: error: m onnx int8: max-drop: 3 %",
        "qexport: error: m openvino fp16: no",
    ]
    rows = [line.split() for line in output.splitlines() if line.strip().startswith("m ")]
    assert [row[:3] for row in rows] == [["m", "onnx", "fp16"], ["m", "onnx", "int8"], ["m", "openvino", "int8"]]
    assert rows[0][3:] == ["mAP50-95", "0.2500▲", "99.0", "%", "0.953", "40.0▲", "1.50×", "2.86"]
    assert main(["sweep", "sweep.yaml", "--out", "out", "--json"]) == 9
    told = json.loads(capfd.readouterr().out)
    assert [run["name"] for run in told["runs"]] == ALL


@pytest.mark.slow
def test_a_real_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], logging_level: None
) -> None:
    """One export and its page, in turns with nobody; nothing is run the second time."""
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    monkeypatch.chdir(tmp_path)
    grid = {"models": str(DEMO / "shapes26-cls.pt"), "formats": ["onnx", "edgetpu"], "precisions": ["fp16"]}
    Path("sweep.yaml").write_text(yaml.safe_dump({**grid, "imgsz": 64, "effort": "none", "no-eval": True}), "utf-8")
    assert main(["sweep", "sweep.yaml", "--out", "out", "--jobs", "2", "--json"]) == 0
    first = load_sweep("out/sweep.json")
    done, absent = first.runs
    assert (done.name, done.state, done.alone, done.page) == (
        *("shapes26-cls_onnx_fp16_64_effort-none", "done", True),
        "shapes26-cls_onnx_fp16_64_effort-none/report.html",
    )
    assert absent.line.startswith("format edgetpu cannot be written as fp16")
    (made,) = done.artifacts
    assert made.bytes == (tmp_path / "out" / done.name / "shapes26-cls_fp16.onnx").stat().st_size
    assert made.latency_ms is not None
    page = (tmp_path / "out" / "sweep.html").read_text(encoding="utf-8")
    assert f'href="./{done.page}"' in page
    began = time.monotonic()
    assert main(["sweep", "sweep.yaml", "--out", "out", "--jobs", "2", "--json"]) == 0
    assert time.monotonic() - began < done.seconds / 2
    assert load_sweep("out/sweep.json").runs == first.runs
