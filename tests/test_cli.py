"""The installed command: help, verbs, option words, config files and exit codes."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

import qexport
from qexport.cli.app import main
from qexport.cli.spelling import join_sizes
from qexport.job.options import make_job, read_config
from qexport.system.machine import version_of

ROOT = Path(__file__).resolve().parents[1]
COMMAND = str(Path(sys.executable).with_name("qexport"))
MODULE = (sys.executable, "-m", "qexport")
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "sweep.yaml")
HEAVY = (
    "jinja2",
    "matplotlib",
    "torch",
    "ultralytics",
    "numpy",
    "cv2",
    "ai_edge_litert",
    "litert_torch",
    "tensorflow",
    "yaml",
    "PIL",
    "onnx",
    "openvino",
    "torchvision",
    "sympy",
)


@pytest.fixture(autouse=True)
def logging_level() -> Iterator[None]:
    """The command line silences the root logger for good, which is right for a process of its own only."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=60)


def imported_by(code: str) -> set[str]:
    """Names of the modules that a fresh interpreter has loaded after running `code`."""
    done = run(sys.executable, "-c", f"import sys\n{code}\nprint('loaded', *sys.modules)")
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split()[1:])


def options(name: str) -> dict[str, object]:
    return read_config(ROOT / "configs" / name)


@pytest.mark.parametrize("word", ["--help", "--version"])
def test_it_is_there_at_once(word: str) -> None:
    """Time is another machine's, modules are counted: a fifth of a second on two cores of a server."""
    loaded = imported_by(f"from qexport.cli.app import main\nassert main(['{word}']) == 0")
    assert "qexport.cli.app" in loaded
    assert loaded.isdisjoint(HEAVY)
    assert len(loaded) < 600
    assert len([name for name in loaded if name.startswith("qexport")]) < 50


def test_the_command_is_interruptible_before_anything_is_imported() -> None:
    assert 'qexport = "qexport.__main__:main"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    loaded = imported_by("import qexport.__main__")
    assert "qexport.system.signals" in loaded
    assert loaded.isdisjoint({*HEAVY, "typer", "rich", "yaml", "tempfile", "subprocess", "qexport.cli.app"})


def test_a_refused_job_imports_nothing_heavy() -> None:
    loaded = imported_by("from qexport.cli.app import main\nassert main(['m.pt', '--int8', '--no-eval']) == 2")
    assert "qexport.job.options" in loaded
    assert loaded.isdisjoint({"torch", "ultralytics"})


def test_help_names_every_option_and_exit_code() -> None:
    shown = run(COMMAND, "--help").stdout
    named = (
        "--format --int8 --half --data --imgsz --batch --fraction --nms --eval-data --calib-images --min-images --out"
    )
    ours = "--config --report --calibration --head --no-eval --no-latency --quiet --json --plan --optimise --effort"
    onnx = "--opset --dynamic --cpu --no-build --workspace --timing-cache --dla"
    gate = "--max-drop --repair --min-retention --min-fidelity --min-speedup --max-size --max-latency-ms --baseline"
    for option in f"{named} {ours} {onnx} {gate} --summary --junit --target --candidate".split():
        assert f"{option} " in shown
    assert "--device" not in shown  # it has one value
    joined = " ".join(shown.split())
    for code in ("0 done", "1 failed", "2 usage", "3 model or data", "4 package missing", "5 conversion"):
        assert code in joined
    for code in (
        "6 verification",
        "8 engine not built (TensorRT, Edge TPU)",
        "9 a figure breaks a rule",
        "130 interrupted",
    ):
        assert code in joined


VERBS = ("cache", "demo", "doctor", "formats", "qat", "report", "sensitivity", "snippet", "sweep", "verify", "diff")


@pytest.mark.parametrize("words", [("--help",), *((verb, "--help") for verb in VERBS), ("help", "qat")], ids=" ".join)
def test_help_is_readable_at_80_columns(
    words: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = "\n".join(lines)
    assert max(map(len, lines)) <= 80
    assert not re.search("<bool>|<str>(?!.* (Checkpoint|a float))|<int>|<float>", shown)
    (verb,) = {*words} & {*VERBS} or {""}
    assert f"Usage: qexport {verb}".rstrip() in shown
    if verb != "formats":  # it has no options
        assert re.search(r"^ *Examples *\n +qexport ", shown, re.MULTILINE)
        assert "Exit codes" in shown


def test_the_help_of_an_export_is_in_panels_with_verbs_and_codes_below(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    panels = re.findall(r"^╭─ (.+?) ─+╮$", shown, re.MULTILINE)
    assert panels == [
        "Arguments",
        "What to export",
        "Data",
        "Output",
        "Nearer to FP32",
        "Gate: exit code 9 where a figure breaks a bound",
        "Runtimes and devices",
        "ONNX files",
        "Other",
    ]
    assert {verb for verb in VERBS if re.search(rf"^   {verb} +\w", shown, re.MULTILINE)} == {*VERBS}
    codes = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 124, 130)
    assert [code for code in codes if re.search(rf"^   {code} +\w", shown, re.MULTILINE)] == [*codes]


@pytest.mark.parametrize("command", [(COMMAND,), MODULE], ids=["installed", "python -m"])
def test_version(command: Sequence[str]) -> None:
    done = run(*command, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{qexport.__version__}\n", "")


def test_formats() -> None:
    done = run(COMMAND, "formats")
    assert (done.returncode, done.stderr) == (0, "")
    lines = dict(line.split(": ") for line in done.stdout.splitlines())
    assert {name: set(line.partition(" (")[0].split(", ")) for name, line in lines.items()} == {
        "tflite": {"fp32", "fp16", "int8", "int8-dynamic", "int8-full", "w8a16"},
        "edgetpu": {"int8-full"},
        "onnx": {"fp32", "fp16", "int8", "int8-dynamic"},
        "openvino": {"fp32", "fp16", "int8", "int8-dynamic"},
        "tensorrt": {"fp32", "fp16", "int8"},
    }
    assert f"onnxruntime {version_of('onnxruntime')}" in lines["onnx"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("formats",), 0),
        (("demo", "--help"), 0),
        (("-h",), 0),
        (("--bogus",), 2),
        (("formats", "extra"), 2),
        (("demo", "--bogus"), 2),
        (("absent.pt", "--no-eval", "--no-latency"), 3),
        (("absent.pt", "--int8", "--no-eval", "--no-latency"), 2),
    ],
)
def test_exit_codes_in_process(words: tuple[str, ...], code: int) -> None:
    assert main(words) == code


@pytest.mark.parametrize("command", [(COMMAND,), MODULE], ids=["installed", "python -m"])
@pytest.mark.parametrize(
    ("words", "code"), [(("--bogus",), 2), (("no/such.pt", "--no-eval", "--no-latency"), 3)], ids=["usage", "input"]
)
def test_exit_codes_reach_the_shell(command: Sequence[str], words: tuple[str, ...], code: int) -> None:
    done = run(*command, *words)
    assert done.returncode == code
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("qexport: error: ")


def test_no_argument_shows_the_help() -> None:
    done = run(COMMAND)
    assert "Usage: qexport" in done.stdout + done.stderr
    assert done.returncode in (0, 2)
    assert "qexport: error:" not in done.stderr


@pytest.mark.parametrize(
    ("words", "joined"),
    [
        (["m.pt", "--imgsz", "480", "640", "--int8"], ["m.pt", "--imgsz", "480,640", "--int8"]),
        (["--imgsz", "480", "640", "m.pt"], ["--imgsz", "480,640", "m.pt"]),
        (["--imgsz", "480", "m.pt"], ["--imgsz", "480", "m.pt"]),
        (["--imgsz", "480,640"], ["--imgsz", "480,640"]),
        (["--batch", "4", "--imgsz", "640"], ["--batch", "4", "--imgsz", "640"]),
        (["--calib-images", "4", "8"], ["--calib-images", "4", "8"]),
        ([], []),
    ],
)
def test_two_sizes_are_one_word(words: list[str], joined: list[str]) -> None:
    assert join_sizes(words) == joined


@pytest.mark.parametrize("imgsz", [("480", "640"), ("480,640",), ("480x640",)], ids=str)
def test_sizes_arrive_as_height_and_width(capsys: pytest.CaptureFixture[str], imgsz: tuple[str, ...]) -> None:
    # Too small a height is refused, and the refusal shows how both were read.
    small = [size.replace("480", "16") for size in imgsz]
    assert main(["m.pt", "--no-eval", "--imgsz", *small]) == 2
    assert "--imgsz 16x640" in capsys.readouterr().err


def test_the_examples_are_all_here() -> None:
    assert {path.name for path in CONFIGS} >= {"tflite_int8.yaml", "tflite_fp32.yaml", "ci_fast.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_example_is_a_valid_job(path: Path) -> None:
    given = read_config(path)
    assert len(given) == len(yaml.safe_load(path.read_text()))
    # The names that an example leaves to the command line are given here.
    job = make_job({"model": given.get("model", "best.pt"), "data": given.get("data", "mine.yaml")}, path)
    assert job.format == ("tflite",)


def test_the_main_example_is_the_main_job() -> None:
    job = make_job({}, ROOT / "configs" / "tflite_int8.yaml")
    assert (job.model, job.precision, job.imgsz, job.calib_images) == ("yolo26n.pt", "int8", (640, 640), 128)
    assert (job.data, job.eval_data, job.no_eval) == ("coco128.yaml", "coco8.yaml", False)


def test_the_float_example_is_float() -> None:
    assert make_job({}, ROOT / "configs" / "tflite_fp32.yaml").precision == "fp32"


def test_the_fast_example_measures_nothing() -> None:
    given = options("ci_fast.yaml")
    assert (given["no_eval"], given["no_latency"], given["int8"]) == (True, True, True)
    assert given["calib_images"] == 16
    assert given["imgsz"] == 320


def test_the_command_line_wins_over_the_example() -> None:
    path = ROOT / "configs" / "tflite_int8.yaml"
    job = make_job({"imgsz": "320", "calib_images": 4, "model": None}, path)
    assert (job.imgsz, job.calib_images, job.model) == ((320, 320), 4, "yolo26n.pt")


@pytest.mark.parametrize(
    ("word", "verb"), [("verfy", "verify"), ("dif", "diff"), ("reprot", "report"), ("format", "formats")]
)
def test_a_verb_with_a_typo_is_asked_about_and_a_file_of_that_name_is_a_model(
    word: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word, "a.tflite"]) == 2
    assert f"did you mean qexport {verb}\n" in capsys.readouterr().err
    (tmp_path / word).mkdir()
    main([word, "--half", "--no-eval"])
    assert "did you mean qexport" not in capsys.readouterr().err
