"""Bad input: one line on stderr that names the thing and the remedy, the documented exit code, nothing left behind."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from qexport.calibration_table import CalibrationTable, save_table
from qexport.cli import main

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "calibration_data" / "shapes26.pt"
SHAPES = ROOT / "calibration_data" / "shapes"
DATA = str(SHAPES / "shapes.yaml")
COMMAND = Path(sys.executable).with_name("qexport")
USAGE, INPUT = 2, 3  # as documented in qexport/errors.py
PREFIX = "qexport: error: "
UNMEASURED = ("--no-eval", "--no-latency")
FLOAT = (str(MODEL), *UNMEASURED)
INT8 = (*FLOAT, "--int8", "--imgsz", "96")
CORRUPT = b"\xff\xd8\xff\xe0 this is no JPEG"


class Payload:
    """Pickled, it asks the reader to create a file."""

    marker = ""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


class Stranger:
    """A class that no checkpoint of Ultralytics holds."""


@dataclass(frozen=True)
class Refusal:
    """Runs the command line in this process and checks everything that every refusal has in common."""

    capture: pytest.CaptureFixture[str]
    out: Path

    def __call__(self, *arguments: str, code: int) -> str:
        self.capture.readouterr()
        found = main([*arguments, "--out", str(self.out)])
        output, errors = self.capture.readouterr()
        return one_line(found, output, errors, code, self.out)


def one_line(found: int, output: str, errors: str, code: int, out: Path) -> str:
    """Return the message after checking exit code, streams and folder."""
    assert found == code, errors
    assert output == ""
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith(PREFIX)
    assert "unexpected" not in lines[0]
    message = lines[0].removeprefix(PREFIX)
    assert ": " in message, "what is wrong and what to do about it"
    assert not files_in(out)
    return message


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else []


def dataset(folder: Path, train: int, val: int, corrupt: dict[str, int] | None = None) -> Path:
    """Copy the first images and labels of the demo data; the first `corrupt[split]` images are damaged."""
    for split, count in {"train": train, "val": val}.items():
        for kind, suffix in {"images": "jpg", "labels": "txt"}.items():
            (folder / kind / split).mkdir(parents=True)
            for file in sorted((SHAPES / kind / split).glob(f"*.{suffix}"))[:count]:
                shutil.copy(file, folder / kind / split / file.name)
        for file in sorted((folder / "images" / split).iterdir())[: (corrupt or {}).get(split, 0)]:
            file.write_bytes(CORRUPT)
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    return description(folder / "data.yaml", content)


def description(path: Path, content: object) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(autouse=True)
def logging_level() -> Iterator[None]:
    """The command line silences the root logger for good, which is right for a process of its own only."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refusal:
    monkeypatch.chdir(tmp_path)
    return Refusal(capfd, tmp_path / "out")


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
        (("--half", *FLOAT), ("tflite", "fp16", "int8")),
        ((str(MODEL),), ("--data", "--no-eval")),
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


def test_missing_dataset(refused: Refusal) -> None:
    assert "no/such.yaml" in refused(*INT8, "--data", "no/such.yaml", code=INPUT)


@pytest.mark.parametrize("split", ["train", "val"])
def test_dataset_without_the_split(refused: Refusal, tmp_path: Path, split: str) -> None:
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    content["path"] = str(SHAPES)
    del content[split]
    config = str(description(tmp_path / "lacking.yaml", content))
    line = refused(str(MODEL), "--int8", "--data", config, code=INPUT)
    assert f"no split '{split}'" in line
    assert "lacking.yaml" in line


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_without_images(refused: Refusal, tmp_path: Path, split: str) -> None:
    counts = {"train": 2, "val": 2} | {split: 0}
    config = dataset(tmp_path / "data", train=counts["train"], val=counts["val"])
    line = refused(str(MODEL), "--int8", "--data", str(config), code=INPUT)
    assert f"no images in split '{split}'" in line


def test_images_without_labels(refused: Refusal, tmp_path: Path) -> None:
    config = dataset(tmp_path / "data", train=2, val=2)
    shutil.rmtree(tmp_path / "data" / "labels")
    # Known before anything slow: the run need not have written a model to find out.
    line = refused(str(MODEL), "--imgsz", "96", "--no-latency", "--data", str(config), code=INPUT)
    assert "label" in line
    assert "--no-eval" in line


def test_dataset_of_other_classes(refused: Refusal, tmp_path: Path) -> None:
    content = yaml.safe_load((SHAPES / "shapes.yaml").read_text())
    content.update(path=str(SHAPES), names=["cat", "dog"])
    line = refused(str(MODEL), "--data", str(description(tmp_path / "pets.yaml", content)), code=INPUT)
    assert "pets.yaml has 2 classes" in line
    assert "has 6" in line


def test_dataset_mostly_corrupt(refused: Refusal, tmp_path: Path) -> None:
    config = dataset(tmp_path / "data", train=4, val=1, corrupt={"train": 3})
    line = refused(*INT8, "--data", str(config), code=INPUT)
    assert "1 of 4" in line
    assert "corrupt" in line


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


def test_calibration_of_another_model(refused: Refusal, tmp_path: Path, demo_table: CalibrationTable) -> None:
    save_table(demo_table, tmp_path / "other.npz")  # of the other head, and of 320 pixels
    line = refused(*INT8, "--data", DATA, "--calibration", "other.npz", code=INPUT)
    assert "other.npz" in line
    assert "another model" in line


@pytest.mark.parametrize("kind", ["missing", "text", "other npz", "npy", "no table"])
def test_calibration_that_is_none(refused: Refusal, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "table.npz"
    if kind == "text":
        path.write_text("hello")
    elif kind == "other npz":
        np.savez(path, weights=np.zeros(3))
    elif kind == "npy":
        with path.open("wb") as stream:
            np.save(stream, np.zeros(3))
    elif kind == "no table":
        np.savez(path, head=np.array(json.dumps([1])), scalars=np.zeros(1), counts=np.zeros(1))
    line = refused(*INT8, "--data", DATA, "--calibration", "table.npz", code=INPUT)
    assert "table.npz" in line
    assert "calibration" in line


@pytest.mark.slow
def test_a_corrupt_calibration_image_is_skipped_counted_and_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = dataset(tmp_path / "data", train=6, val=1, corrupt={"train": 1})
    (damaged,) = (file for file in (tmp_path / "data" / "images" / "train").iterdir() if file.read_bytes() == CORRUPT)
    assert main([*INT8, "--data", str(config), "--out", str(tmp_path / "out")]) == 0
    calibration = json.loads((tmp_path / "out" / "report.json").read_text())["calibration"]
    assert calibration["images"] == 5
    assert [entry["image"] for entry in calibration["skipped"]] == [damaged.name]
    assert "corrupt" in calibration["skipped"][0]["reason"]
    shown = " ".join(capfd.readouterr().out.split())
    assert "warning: 1 calibration image" in shown
    assert damaged.name in shown


@pytest.mark.slow
def test_a_corrupt_evaluation_image_is_skipped_counted_and_named(tmp_path: Path) -> None:
    config = dataset(tmp_path / "data", train=1, val=5, corrupt={"val": 1})
    (damaged,) = (file for file in (tmp_path / "data" / "images" / "val").iterdir() if file.read_bytes() == CORRUPT)
    arguments = [str(MODEL), "--imgsz", "96", "--no-latency", "--data", str(config), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    text = (tmp_path / "out" / "report.json").read_text()
    report = json.loads(text)
    assert report["artifacts"][0]["accuracy"]["images"] == 4
    assert damaged.name in text


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
