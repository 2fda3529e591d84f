"""Files that are not there: all of a command in one line, before anything slow, with what was probably meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qexport.backends.artifact import check_artifact
from qexport.clock import Clock
from qexport.errors import InputError
from qexport.job.options import make_job
from qexport.job.places import check_paths
from qexport.opening import _resolved, read_run
from qexport.progress import Silent
from qexport.reporting.load import load_report
from qexport.system.nearby import or_nearby


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("out/best", "out/best-1a2b", "out/other"):
        Path(name).mkdir(parents=True)
    for name in ("out/best-1a2b/m.onnx", "out/best-1a2b/report.json", "out/other/report.json"):
        Path(name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("out/best/m.onnx", "; did you mean out/best-1a2b/m.onnx"),
        ("out/m.onnx", "; did you mean out/best-1a2b/m.onnx"),
        ("out/best/report.json", "; did you mean out/best-1a2b/report.json or out/other/report.json"),
        ("m.onnx", ""),
        ("out/best/absent.onnx", ""),
        ("out/best-1a2b/n.onnx", ""),
        ("out/best-1a2b/reprt.json", "; did you mean out/best-1a2b/report.json"),
        ("out/best-1a2b/m.png", ""),
        ("nowhere/at/all.onnx", ""),
        (f"out/{'x' * 300}/m.onnx", ""),
        ("out/best/a\0b", ""),
        (".", ""),
    ],
)
def test_the_same_name_in_a_folder_nearby_is_named(path: str, hint: str) -> None:
    assert or_nearby(path) == hint


def test_whoever_misses_a_file_names_the_one_nearby() -> None:
    with pytest.raises(InputError, match=r"wrote; did you mean out/best-1a2b/m\.onnx$"):
        check_artifact(Path("out/best/m.onnx"))
    with pytest.raises(InputError, match=r"wrote; did you mean out/best-1a2b/report\.json or out/other/report\.json$"):
        load_report("out/best/report.json")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"model": "a/b.pt", "data": "c/d.yaml", "int8": True},
            "model a/b.pt and --data c/d.yaml do not exist: check the paths",
        ),
        (
            {"model": "yolo26n.pt", "data": "coco88.yaml", "int8": True},
            "--data coco88.yaml does not exist: check the path; did you mean coco8.yaml",
        ),
        (
            {"model": "a.onnx", "data": "missing.yaml", "int8": True, "format": "onnx"},
            "model a.onnx and --data missing.yaml do not exist: check the paths",
        ),
        (
            {"model": "out/best/m.onnx", "baseline": Path("out/best/none.json"), "format": "onnx", "half": True},
            "model out/best/m.onnx and --baseline out/best/none.json do not exist: check the paths; "
            "did you mean out/best-1a2b/m.onnx",
        ),
    ],
)
def test_all_that_is_missing_is_one_line(options: dict[str, object], line: str) -> None:
    with pytest.raises(InputError) as refused:
        check_paths(make_job(options))
    assert str(refused.value) == line


@pytest.mark.parametrize(
    ("there", "options", "line"),
    [
        ("my_shapes.yaml", {"data": "my_shape.yml"}, "--data my_shape.yml does not exist: {} my_shapes.yaml"),
        ("d/shapes.yaml", {"data": "d/shapes.yml"}, "--data d/shapes.yml does not exist: {} d/shapes.yaml"),
        ("other.yaml", {"data": "coco8.yml"}, "--data coco8.yml does not exist: {} coco8.yaml"),
        ("best.pt", {"model": "bets.pt"}, "model bets.pt does not exist: {} best.pt"),
        ("runs/best.pt", {"model": "runs/best.onnx"}, "model runs/best.onnx does not exist: {} runs/best.pt"),
    ],
)
def test_a_name_that_lies_beside_is_named(there: str, options: dict[str, str], line: str) -> None:
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).touch()
    form = "onnx" if "onnx" in options.get("model", "") else "tflite"
    with pytest.raises(InputError) as refused:
        check_paths(make_job({"model": "yolo26n.pt", "data": "coco8.yaml", "int8": True, "format": form, **options}))
    assert str(refused.value) == line.format("check the path; did you mean")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"\x1c\0\0\0TFL3" + bytes(64), "is a TFLite file"),
        (b"\x89PNG\r\n\x1a\n", "is an image"),
        (b"", "is empty"),
        (b"names: [cat]\n", "is not a checkpoint"),
    ],
)
def test_other_files_are_refused_before_anything_is_announced(content: bytes, what: str, folder: Path) -> None:
    (folder / "given.tflite").write_bytes(content)
    code = (
        "import sys; from qexport.cli.app import main; code = main(sys.argv[1:]); "
        "print([each for each in ('torch', 'ultralytics', 'tensorflow') if each in sys.modules]); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "given.tflite", "--int8", "--data", "coco8.yaml"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "[]\n")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"qexport: error: given.tflite {what}")
    assert "float .onnx file" in line or what == "is empty"


def test_names_that_ultralytics_may_know_are_left_for_later() -> None:
    check_paths(make_job({"model": "yolo26n.pt", "data": "coco8.yaml", "int8": True}))
    check_paths(make_job({"model": "yolo26n.pt", "data": "coco8", "int8": True}))


def test_offline_model_and_data_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qexport.data.resolve.is_reachable", lambda host: False)
    job = make_job({"model": "yolo26n.pt", "data": "dota8.yaml", "int8": True})
    with pytest.raises(InputError, match=r"^model yolo26n\.pt is not on .*; dataset dota8\.yaml is not on .*: give"):
        read_run(job, Clock(Silent()), None)
    Path("yolo26n.pt").touch()
    with pytest.raises(InputError, match=r"^dataset dota8\.yaml is not on this machine"):
        read_run(job, Clock(Silent()), None)


def test_what_a_bare_name_was_found_to_be_is_told() -> None:
    def told(options: dict[str, object], model: str, *roots: str) -> str:
        data = [SimpleNamespace(root=Path(root)) for root in roots] + [None, None]
        images = SimpleNamespace(calibration_dataset=data[0], evaluation_data=data[1])
        source = SimpleNamespace(checkpoint=SimpleNamespace(path=Path(model)))
        run: Any = SimpleNamespace(images=images, source=source)
        return _resolved(make_job(options), run)

    bare = {"model": "yolo26n.pt", "data": "coco8.yaml", "int8": True}
    assert told(bare, "/w/yolo26n.pt", "/d/coco8") == "yolo26n.pt is /w/yolo26n.pt, coco8.yaml is /d/coco8"
    assert told(bare, "yolo26n.pt", "/d/coco8") == "coco8.yaml is /d/coco8"
    Path("coco8.yaml").touch()
    assert told(bare, "yolo26n.pt", "/d") == ""
    assert told({"model": "a/b.pt", "data": "c/d.yaml", "int8": True}, "a/b.pt", "/c") == ""
