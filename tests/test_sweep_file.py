"""The file of a sweep: which runs it means, what they are called, and what is refused before anything is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import DEMO
from refusals import DATA

from qexport.cli.app import main
from qexport.errors import InputError, UsageError
from qexport.job.sweep_file import MAX_NAME, MAX_RUNS, SweepRun, read_sweep
from qexport.system.machine import default_threads

A, B = str(DEMO / "shapes26.pt"), str(DEMO / "shapes26-seg.pt")
QUICK = {"no-eval": True, "no-latency": True}


def runs(folder: Path, content: Any) -> tuple[SweepRun, ...]:
    path = folder / "sweep.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return read_sweep(path, folder / "out").runs


def test_lists_are_a_grid_less_what_is_excluded_and_what_is_included(tmp_path: Path) -> None:
    content = {
        "models": [A, B],
        "formats": ["onnx", "ov"],
        "precisions": ["fp16", "float32"],
        "imgsz": [64, "64x96", [96, 96]],
        **QUICK,
        "exclude": [{"format": "openvino", "imgsz": 64}, {"models": B, "imgsz": "64x96"}, {"precisions": "fp32"}],
        "include": [{"model": B, "format": "tflite", "precision": "int8-dynamic", "imgsz": 32, "threads": 1}],
    }
    found = [
        (r.job.model, r.job.format, r.job.precision, r.job.imgsz, r.job.threads)
        for r in runs(tmp_path, content)
        if r.job
    ]
    assert found == [
        (A, ("onnx",), "fp16", (64, 64), default_threads()),
        (A, ("onnx",), "fp16", (64, 96), default_threads()),
        (A, ("onnx",), "fp16", (96, 96), default_threads()),
        (A, ("openvino",), "fp16", (64, 96), default_threads()),
        (A, ("openvino",), "fp16", (96, 96), default_threads()),
        (B, ("onnx",), "fp16", (64, 64), default_threads()),
        (B, ("onnx",), "fp16", (96, 96), default_threads()),
        (B, ("openvino",), "fp16", (96, 96), default_threads()),
        (B, ("tflite",), "int8-dynamic", (32, 32), 1),
    ]


def test_runs_have_names_that_stay(tmp_path: Path) -> None:
    few = runs(tmp_path, {"model": A, "format": "onnx", "half": True, "threads": 1, **QUICK})
    many = runs(tmp_path, {"models": [B, A], "format": ["tflite", "onnx"], "half": True, "threads": [2, 1], **QUICK})
    assert [(run.name, run.label) for run in few] == [("shapes26_onnx_fp16_threads-1", "shapes26 onnx fp16")]
    assert [run.name for run in many] == [
        "shapes26-seg_tflite_fp16",
        "shapes26-seg_tflite_fp16_threads-1",
        "shapes26-seg_onnx_fp16",
        "shapes26-seg_onnx_fp16_threads-1",
        "shapes26_tflite_fp16",
        "shapes26_tflite_fp16_threads-1",
        "shapes26_onnx_fp16",
        "shapes26_onnx_fp16_threads-1",
    ]
    assert many[-1].label == "shapes26 onnx fp16 threads-1"
    assert [run.job.out for run in few if run.job] == [tmp_path / "out" / "shapes26_onnx_fp16_threads-1"]


def test_names_are_unique_and_stay_in_the_folder(tmp_path: Path) -> None:
    places = (
        "a/best.pt",
        "b/best.pt",
        "c/BEST.pt",
        "runs/train7/weights/best.pt",
        "d/..pt",
        f"e/{'ü' * 60}.pt",
        "f/$(x);&|.pt",
    )
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True)
        (tmp_path / place).write_bytes(b"PK\x03\x04")
    found = runs(tmp_path, {"models": [str(tmp_path / place) for place in places], **QUICK})
    names = [run.name for run in found]
    assert len({name.casefold() for name in names}) == len(places)
    assert len({run.label for run in found}) == len(places)
    assert names[0] == "best_tflite_fp32"
    assert names[3] == "train7-best_tflite_fp32"
    for name in names:
        assert Path(name).name == name
        assert len(name.encode()) <= MAX_NAME
        assert not set(name) & set("$();&|/\\ ")
        assert name.strip(".") == name


def test_what_a_format_does_not_have_is_said_and_not_refused(tmp_path: Path) -> None:
    content = {"models": A, "formats": ["edgetpu", "onnx"], "precisions": ["fp16", "w8a16"], "data": DATA, **QUICK}
    found = runs(tmp_path, content)
    assert [(run.label, run.obstacle) for run in found] == [
        ("shapes26 edgetpu fp16", "format edgetpu cannot be written as fp16: it can as int8-full"),
        ("shapes26 edgetpu w8a16", "format edgetpu cannot be written as w8a16: it can as int8-full"),
        ("shapes26 onnx fp16", ""),
        ("shapes26 onnx w8a16", "format onnx cannot be written as w8a16: it can as fp16, fp32, int8, int8-dynamic"),
    ]


GRID: dict[str, Any] = {"models": [A], "formats": ["onnx", "tflite"], "precisions": ["fp16"], **QUICK}
REFUSED = [
    ({**GRID, "formatss": ["onnx"]}, "unknown option formatss: did you mean formats"),
    ({**GRID, "executor": "ray"}, "unknown option executor: "),
    ({**GRID, "format": "onnx"}, "format is there twice: give one of format and formats"),
    ({**GRID, "out": "a"}, "out is not for sweeps"),
    ({**GRID, "trust-checkpoint": True}, "trust-checkpoint is not for files, which may be anybody's: type --trust-che"),
    ({**GRID, "include": [{"trust_checkpoint": [True]}]}, "include, item 1: trust-checkpoint is not for files"),
    ({**GRID, "formats": ["onnx", "tflit"]}, "formats, item 2: unknown format tflit: choose from "),
    ({**GRID, "precisions": ["fp16", "int9"]}, "precisions, item 2: --precision int9 is out of range: give fp32"),
    (
        {**GRID, "effort": ["fast", "bes"]},
        "effort, item 2: --effort bes is out of range: give none, fast,",
    ),
    ({**GRID, "imgsz": [64, "big"]}, "imgsz, item 2: --imgsz cannot be 'big'"),
    ({**GRID, "imgsz": 8}, "shapes26 onnx fp16 8: --imgsz 8x8 is out of range: give 32 pixels or more, or exclude it"),
    ({**GRID, "threads": [1, None]}, "threads, item 2: there is no value"),
    ({**GRID, "threads": []}, "threads is an empty list"),
    ({**GRID, "nms": [True, 1]}, "nms, item 2: --nms cannot be 1: give true or false"),
    ({**GRID, "batch": list(range(1, 1 + MAX_RUNS))}, "its lists have 2,000 combinations: give 1,000 at most"),
    ({**GRID, "batch": list(range(1, 2 + MAX_RUNS))}, "batch has 1,001 values"),
    ({**GRID, "exclude": [{"format": "openvino"}]}, "exclude, item 1, is no combination of the lists"),
    ({**GRID, "exclude": [{"format": "onx"}]}, "exclude, item 1, formats: unknown format onx: choose from "),
    ({**GRID, "exclude": {"format": "onnx"}}, "exclude is no list of combinations"),
    ({**GRID, "exclude": [{"formt": "onnx"}]}, "exclude, item 1: unknown option formt: did you mean format"),
    ({**GRID, "exclude": [{"model": A}]}, "it excludes every combination"),
    ({**GRID, "include": [{"format": "onnx"}]}, "include, item 1: it does not say which of models: add 'model: …'"),
    ({**GRID, "include": ["onnx"]}, "include, item 1: it names no options"),
    ({"formats": ["onnx"], **QUICK}, "it names no models"),
    ({**GRID, "formats": ["edgetpu"]}, "none of its combinations can be exported: format edgetpu cannot"),
    ({**GRID, "precisions": ["fp16", "int8"]}, "shapes26 onnx int8: --precision int8 needs images to calibrate with"),
    ([1], "is not a mapping of option names to values"),
    ("a: [", "cannot be read ("),
]


@pytest.mark.parametrize(("content", "said"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else "")
def test_what_is_wrong_is_one_line_with_its_place(
    content: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    Path("sweep.yaml").write_text(text, encoding="utf-8")
    assert main(["sweep", "sweep.yaml", "--out", "out"]) == UsageError.exit_code
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert "sweep.yaml" in line
    assert said in line
    assert not Path("out").exists()


def test_a_file_that_is_not_there_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sweep\.yaml: gone onnx fp16: model a/gone\.pt does not exist"):
        runs(tmp_path, {**GRID, "models": [A, "a/gone.pt"]})


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--jobs", "0"), "--jobs 0 is out of range"),
        (("--executor", "dask"), "--executor dask is out of range: give local or ray"),
        (("--executor", "ray", "--jobs", "2"), "--jobs and --executor ray exclude each other"),
        (("--address", "auto"), "--address is of Ray's cluster"),
    ],
)
def test_options_that_cannot_be(words: tuple[str, ...], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "sweep.yaml", *words]) == UsageError.exit_code
    assert said in capfd.readouterr().err


def test_a_dry_run_lists_runs_and_makes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    Path("sweep.yaml").write_text(yaml.safe_dump({**GRID, "formats": ["onnx", "edgetpu"]}), encoding="utf-8")
    assert main(["sweep", "sweep.yaml", "--dry-run"]) == 0
    lines = [line.split() for line in capfd.readouterr().out.splitlines() if "shapes26" in line]
    assert lines[0] == ["shapes26", "onnx", "fp16", "shapes26_onnx_fp16"]
    assert lines[1][:6] == ["shapes26", "edgetpu", "fp16", "–", "not", "available:"]
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_the_example_is_one(tmp_path: Path) -> None:
    path = DEMO.parent / "configs" / "sweep.yaml"
    text = path.read_text(encoding="utf-8").replace("coco128.yaml", DATA)
    found = runs(tmp_path, text)
    assert [run.obstacle for run in found if not run.job] == [
        "format edgetpu cannot be written as int8: it can as int8-full"
    ] * 0
    assert len(found) == 11
