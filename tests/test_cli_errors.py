"""Bad input: one line on stderr that names the thing and the remedy, the documented exit code, nothing left behind.

What can be wrong with data is in test_cli_data_errors.py.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from refusals import DATA, FLOAT, INPUT, MODEL, UNMEASURED, USAGE, Refusal, description, one_line

COMMAND = Path(sys.executable).with_name("qexport")


class Payload:
    """Pickled, it asks the reader to create a file."""

    marker = ""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


class Stranger:
    """A class that no checkpoint of Ultralytics holds."""


@pytest.fixture(scope="module")
def model_without_end2end(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YOLO11 checkpoint with seeded weights, as Ultralytics saves one."""
    from ultralytics.models import YOLO

    path = tmp_path_factory.mktemp("yolo11") / "small11.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = YOLO("yolo11n.yaml", task="detect")
    model.save(path)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--format", "tflyte", *FLOAT), ("tflyte", "tflite")),
        (("--bogus", *FLOAT), ("--bogus",)),
        (("--imgsz", "0", *FLOAT), ("--imgsz", "32")),
        (("--imgsz", "-64", *FLOAT), ("--imgsz", "32")),
        (("--imgsz", "abc", *FLOAT), ("--imgsz", "abc")),
        (("--imgsz", "100", *FLOAT), ("--imgsz 100", "stride 32", "128")),
        (("--imgsz", "96", "100", *FLOAT), ("--imgsz 96x100", "stride 32", "96 128")),
        (("--fraction", "0", *FLOAT), ("--fraction 0", "at most 1")),
        (("--fraction", "1.5", *FLOAT), ("--fraction 1.5", "at most 1")),
        (("--fraction", "-1", *FLOAT), ("--fraction -1", "at most 1")),
        (("--fraction", "nan", *FLOAT), ("--fraction nan", "at most 1")),
        (("--fraction", "abc", *FLOAT), ("--fraction", "number")),
        (("--calib-images", "0", *FLOAT), ("--calib-images 0", "1 or more")),
        (("--batch", "0", *FLOAT), ("--batch 0", "1 or more")),
        (("--threads", "0", *FLOAT), ("--threads 0", "1 or more")),
        (("--head", "both", *FLOAT), ("--head both", "end2end", "one2many")),
        (("--ranges", "guess", *FLOAT), ("--ranges guess", "percentile", "minmax")),
        (("--device", "cuda:0", *FLOAT), ("--device cuda:0", "CPU")),
        (("--int8", *FLOAT), ("--int8", "--data")),
        (("--int8", "--half", "--data", DATA, *FLOAT), ("--int8", "--half")),
        (("--precision", "int4", *FLOAT), ("--precision int4", "int8-dynamic", "int8-full")),
        (("--precision", "int8-dynamic", "--format", "tflite,tensorrt", *FLOAT), ("tensorrt", "int8-dynamic", "fp16")),
        (("--dynamic", "--format", "onnx,tflite", *FLOAT), ("tflite", "--dynamic")),
        (("--format", "onnx,tflyte", *FLOAT), ("tflyte", "openvino", "tensorrt")),
        (("--opset", "17", *FLOAT), ("--opset 17", "18 to 23")),
        (("--opset", "new", *FLOAT), ("--opset", "integer")),
        (("--cpu", "sparc", *FLOAT), ("--cpu sparc", "vnni", "avx2", "arm")),
        (("--workspace", "0", *FLOAT), ("--workspace 0", "more than 0")),
        (("--dla", "-1", *FLOAT), ("--dla -1", "0 or more")),
        ((str(MODEL), "--half", "--min-retention", "97%"), ("--min-retention needs images", "--data DATA.yaml")),
        (("--config", "missing.yaml", *FLOAT), ("missing.yaml", "YAML")),
    ],
    ids=lambda value: " ".join(value[:3])[:40] if isinstance(value, tuple) else None,
)
def test_usage(refused: Refusal, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    line = refused(*arguments, code=USAGE)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"imgsize": 320}, ("imgsize", "imgsz")),
        ({"fraction": "half"}, ("--fraction", "half", "number")),
        ({"int8": "maybe"}, ("--int8", "maybe", "true or false")),
        ({"imgsz": [1, 2, 3]}, ("--imgsz", "[1, 2, 3]")),
        (["int8"], ("config.yaml", "mapping")),
    ],
    ids=str,
)
def test_config(refused: Refusal, tmp_path: Path, content: object, words: tuple[str, ...]) -> None:
    line = refused(*FLOAT, "--config", str(description(tmp_path / "config.yaml", content)), code=USAGE)
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "content", [{"calib_images": 2.5}, {"batch": 1.5}, {"threads": True}, {"imgsz": 320.5}], ids=str
)
def test_config_numbers_that_are_not_whole_are_not_rounded(
    refused: Refusal, tmp_path: Path, content: dict[str, object]
) -> None:
    config = description(tmp_path / "config.yaml", content)
    (name,) = content
    assert name.replace("_", "-") in refused("absent.pt", *UNMEASURED, "--config", str(config), code=USAGE)


def test_config_that_is_no_yaml(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("int8: [")
    assert "config.yaml" in refused(*FLOAT, "--config", "config.yaml", code=USAGE)


def test_no_model(refused: Refusal) -> None:
    assert "MODEL.pt" in refused("--no-eval", code=USAGE)


def test_missing_model(refused: Refusal) -> None:
    assert "no/such.pt" in refused("no/such.pt", *UNMEASURED, code=INPUT)


def test_folder_as_model(refused: Refusal, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").mkdir()
    line = refused("weights.pt", *UNMEASURED, code=INPUT)
    assert "weights.pt" in line
    assert "folder" in line


@pytest.mark.parametrize(
    "content",
    [b"hello, this is no checkpoint\n", b"", b"\x80\x02}q\x00.", MODEL.read_bytes()[:100_000]],
    ids=["text", "empty", "empty dictionary", "truncated"],
)
def test_not_a_checkpoint(refused: Refusal, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.pt").write_bytes(content)
    line = refused("broken.pt", *UNMEASURED, code=INPUT)
    assert "broken.pt" in line
    assert ".pt" in line.partition(": ")[2]


def test_weights_without_a_model(refused: Refusal, tmp_path: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2).state_dict()}, tmp_path / "weights.pt")
    assert "weights.pt holds no Ultralytics model" in refused("weights.pt", *UNMEASURED, code=INPUT)


@pytest.mark.parametrize("form", ["archive", "plain pickle"])
def test_a_pickled_call_is_named_and_not_made(refused: Refusal, tmp_path: Path, form: str) -> None:
    payload = Payload()
    payload.marker = str(tmp_path / "marker")
    if form == "archive":
        torch.save({"model": payload}, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps({"model": payload}, protocol=2))
    line = refused("evil.pt", *UNMEASURED, code=INPUT)
    assert not Path(payload.marker).exists()
    assert "evil.pt" in line
    assert f"{os.system.__module__}.system" in line
    assert "--trust-checkpoint" in line


def test_an_unknown_class_is_named(refused: Refusal, tmp_path: Path) -> None:
    torch.save({"model": Stranger()}, tmp_path / "foreign.pt")
    line = refused("foreign.pt", *UNMEASURED, code=INPUT)
    assert f"{__name__}.Stranger" in line
    assert "--trust-checkpoint" in line


def test_torchscript(refused: Refusal, tmp_path: Path) -> None:
    import io
    import zipfile

    # What torch.jit.save leaves apart: `constants.pkl` beside `data.pkl` is how torch tells the two kinds.
    stream = io.BytesIO()
    torch.save({}, stream)
    with zipfile.ZipFile(stream) as plain, zipfile.ZipFile(tmp_path / "script.pt", "w") as script:
        for item in plain.infolist():
            name = item.filename.partition("/")[2]
            script.writestr(f"script/{name}", plain.read(item))
        script.writestr("script/constants.pkl", b"\x80\x02).")
    line = refused("script.pt", *UNMEASURED, code=INPUT)
    assert "script.pt is a TorchScript archive" in line
    assert "checkpoint" in line.partition(": ")[2]


def test_end2end_head_that_is_not_there(refused: Refusal, model_without_end2end: Path) -> None:
    line = refused(str(model_without_end2end), *UNMEASURED, "--head", "end2end", code=INPUT)
    assert "end-to-end" in line
    assert "--head one2many" in line


def test_out_that_no_system_takes(refused: Refusal) -> None:
    line = Refusal(refused.capture, Path("x" * 300))(*FLOAT, "--imgsz", "96", code=INPUT)
    assert "File name too long" in line
    assert "--out" in line


@pytest.mark.parametrize("option", ["--out", "--report"])
def test_unwritable_place(refused: Refusal, tmp_path: Path, option: str) -> None:
    (tmp_path / "file").write_text("in the way")
    # --out is given a second time by the helper, and the last one counts.
    refusal = Refusal(refused.capture, tmp_path / "file" / "out") if option == "--out" else refused
    line = refusal(
        *FLOAT, "--imgsz", "96", *(["--report", "file/report.json"] if option == "--report" else []), code=INPUT
    )
    assert "file" in line
    assert option in line


def run_offline(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command in `folder`, with settings of its own and a proxy that nobody listens at."""
    proxy = "http://127.0.0.1:9"
    names = ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")
    environment = {**os.environ, **dict.fromkeys(names, proxy), "no_proxy": "", "NO_PROXY": ""}
    environment["YOLO_CONFIG_DIR"] = str(folder / "settings")
    return subprocess.run(
        [COMMAND, *arguments, "--out", "out"], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("yolo26n.pt", *UNMEASURED), "yolo26n.pt"),
        ((str(MODEL), "--int8", *UNMEASURED, "--data", "coco8.yaml"), "coco8.yaml"),
    ],
)
def test_names_that_would_be_downloaded_without_network(tmp_path: Path, arguments: tuple[str, ...], name: str) -> None:
    done = run_offline(tmp_path, *arguments)
    line = one_line(done.returncode, done.stdout, done.stderr, INPUT, tmp_path / "out")
    assert name in line
    assert "cannot be reached" in line
    assert "local file" in line


def test_a_name_that_nobody_knows_through_the_installed_command(tmp_path: Path) -> None:
    done = run_offline(tmp_path, "yolo26nn.pt", *UNMEASURED)
    line = one_line(done.returncode, done.stdout, done.stderr, INPUT, tmp_path / "out")
    assert "yolo26nn.pt" in line
    assert "yolo26n.pt" in line.replace("yolo26nn.pt", "")
