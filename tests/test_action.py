"""The GitHub Action, which was never run on GitHub: its files are valid, and its script passes on what it was given."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from refusals import DATA, INPUT, one_line

from qexport.cli.app import main
from qexport.job.options import FIELDS

ROOT = Path(__file__).resolve().parents[1]
ACTION = ROOT / "action.yml"
EXAMPLE = ROOT / "docs" / "github-workflow.yml"
OUT = "qexport_out/action"
OF_THE_ACTION = {"arguments", "extras", "python-version", "cache"}


@pytest.fixture(scope="module")
def action() -> Any:
    return yaml.safe_load(ACTION.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("schema", "path"), [("vendor.github-actions", ACTION), ("vendor.github-workflows", EXAMPLE)], ids=["action", "use"]
)
def test_the_files_are_valid_by_the_published_schemas(schema: str, path: Path, tmp_path: Path) -> None:
    """The schemas come with check-jsonschema; a misspelt key shows that they would find one."""
    pytest.importorskip("check_jsonschema", reason="needs the extra qexport[dev]")
    misspelt = tmp_path / path.name
    misspelt.write_text(path.read_text().replace("runs-on:", "run-on:").replace("using:", "use:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    codes = [subprocess.run([*command, str(each)], capture_output=True).returncode for each in (path, misspelt)]
    assert codes == [0, 1]


def test_every_input_is_an_option(action: Any) -> None:
    inputs = {name.replace("-", "_") for name in set(action["inputs"]) - OF_THE_ACTION}
    assert inputs - {"config"} <= set(FIELDS)
    assert {name for name in FIELDS if name.startswith(("min_", "max_"))} <= inputs


def test_the_example_gives_inputs_that_there_are(action: Any) -> None:
    (job,) = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["jobs"].values()
    (step,) = (step for step in job["steps"] if step.get("id") == "qexport")
    assert set(step["with"]) <= set(action["inputs"])
    assert action["outputs"].keys() >= {"out", "report", "page", "junit", "exit-code"}


def test_no_input_is_text_of_a_script(action: Any) -> None:
    assert not any("${{" in step["run"] for step in action["runs"]["steps"] if "run" in step)


STAND_IN = """#!/bin/sh
printf "%s\\0" "$@" > words
for word; do case $word in --out=*) out=${word#--out=} ;; esac; done
: > "$out/calibration.npz"
"""


def run_script(action: Any, folder: Path, code: int, **inputs: str) -> tuple[int, list[str], str]:
    """Run the last step with a stand-in for `qexport`: exit code, the words that it got, and the step's outputs."""
    step = action["runs"]["steps"][-1]
    _program(folder / "qexport", f"{STAND_IN}exit {code}\n")
    if not (folder / "python").exists():
        (folder / "python").symlink_to(sys.executable)
    given = {name.upper().replace("-", "_"): "" for name in action["inputs"]}
    given |= {"OUT": action["inputs"]["out"]["default"], **inputs}
    assert set(step["env"]) <= set(given)
    done = _run(step, folder, given)
    words = folder / "words"
    if not words.exists():
        return done.returncode, [], done.stdout
    written = (folder / "GITHUB_OUTPUT").read_bytes().decode()
    return done.returncode, words.read_bytes().decode().split("\0")[:-1], written


def _program(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


def _run(step: Any, folder: Path, given: dict[str, str]) -> subprocess.CompletedProcess[str]:
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(folder / "home"), **given, **files}
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub calls it
    return subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True)


def outputs_of(written: str) -> dict[str, str]:
    """Read a step's outputs as GitHub documents them: `name=value`, or lines between a delimiter and itself."""
    lines, outputs = iter(written.split("\n")[:-1]), {}
    for line in lines:
        name, opened, delimiter = line.partition("<<")
        if opened and "=" not in name:
            inside = []
            while (each := next(lines)) != delimiter:
                inside.append(each)
            outputs[name] = "\n".join(inside)
        else:
            name, _, outputs[name] = line.partition("=")
    return outputs


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
@pytest.mark.parametrize("code", [0, 9])
def test_the_script_passes_on_what_is_given_and_nothing_else(action: Any, code: int, tmp_path: Path) -> None:
    inputs = {"MODEL": "my best.pt", "EVAL_DATA": "val; rm -rf x.yaml", "MAX_LATENCY_MS": "12", "MIN_RETENTION": "97%"}
    found, words, outputs = run_script(action, tmp_path, code, **inputs, ARGUMENTS="--no-latency --threads 4")
    assert found == code
    assert words == [
        *("--eval-data=val; rm -rf x.yaml", "--min-retention=97%", "--max-latency-ms=12"),
        *("--no-latency", "--threads", "4"),
        *(f"--out={OUT}", f"--report={OUT}/report.html"),
        *(f"--summary={tmp_path / 'GITHUB_STEP_SUMMARY'}", f"--junit={OUT}/junit.xml"),
        *("--", "my best.pt"),
    ]
    assert outputs_of(outputs) == {
        "out": OUT,
        "report": f"{OUT}/report.json",
        "page": f"{OUT}/report.html",
        "junit": f"{OUT}/junit.xml",
        "exit-code": str(code),
    }


@needs_bash
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--no-latency\n--threads 4\n", ["--no-latency", "--threads", "4"]),
        ("--no-latency \\\n  --threads 4", ["--no-latency", "--threads", "4"]),
        ("\n\n  --imgsz\t480 640\r\n\n--nms", ["--imgsz", "480", "640", "--nms"]),
        ("--keep-float 'model.22 cv2'\n--nms \"a b\"", ["--keep-float", "model.22 cv2", "--nms", "a b"]),
        ("--data run#2.yaml --out '$HOME' `id`", ["--data", "run#2.yaml", "--out", "$HOME", "`id`"]),
        ("--names ''", ["--names", ""]),
        ("", []),
        (" \n ", []),
    ],
)  # fmt: skip
def test_arguments_on_several_lines_are_all_passed_on(
    action: Any, arguments: str, words: list[str], tmp_path: Path
) -> None:
    code, found, _ = run_script(action, tmp_path, 0, MODEL="a.pt", ARGUMENTS=arguments)
    assert (code, found[: found.index(f"--out={OUT}")]) == (0, words)


@needs_bash
def test_a_quote_without_its_other_half_is_said_and_nothing_runs(action: Any, tmp_path: Path) -> None:
    code, words, output = run_script(action, tmp_path, 0, MODEL="a.pt", ARGUMENTS="--out 'a b")
    assert (code, words) == (2, [])
    assert output.splitlines()[-1].startswith("::error::qexport: arguments have a quote")


@needs_bash
def test_a_calibration_is_used_where_it_is_and_kept_where_it_is_not(action: Any, tmp_path: Path) -> None:
    kept = tmp_path / "kept" / "calibration.npz"
    inputs = {"MODEL": "a.pt", "CALIBRATION": str(kept)}
    for used in (False, True):
        _, words, _ = run_script(action, tmp_path, 0, **inputs)
        assert (f"--calibration={kept}" in words) == used
        assert kept.is_file()


CANARY = "$(touch canary) `touch canary`"
DASH = f"-rf\r\nexit-code=0\nout<<x\n'\"; touch canary && touch canary | ${{HOME}} * {CANARY}\n"
TILDE = f"~/--model\n::error::forged {CANARY} "
INPUTS = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
OF_OPTIONS = {"data", "eval-data", "format", "precision", "imgsz", "config", "min-images", "max-drop", "min-retention"}
OF_OPTIONS |= {"min-fidelity", "min-speedup", "max-size", "max-latency-ms", "baseline", "out"}


@needs_bash
@pytest.mark.parametrize(
    ("name", "value"),
    [*((name, DASH) for name in INPUTS), *((name, TILDE) for name in ("model", "calibration", "out"))],
    ids=[*INPUTS, "model at home", "calibration at home", "out at home"],
)
def test_an_input_is_one_value_whatever_is_in_it(action: Any, name: str, value: str, tmp_path: Path) -> None:
    if name in OF_THE_ACTION - {"arguments"}:
        codes = {_installs(action, tmp_path, name, value)}
        assert codes == {2 if name == "extras" else 0}
        return
    inputs = {"MODEL": "a.pt", name.upper().replace("-", "_"): shlex.quote(value) if name == "arguments" else value}
    code, words, written = run_script(action, tmp_path, 9, **inputs)
    out = value if name == "out" else OUT
    own = [f"--out={out}", f"--report={out}/report.html", f"--summary={tmp_path / 'GITHUB_STEP_SUMMARY'}"]
    own += [f"--junit={out}/junit.xml", "--", value if name == "model" else "a.pt"]
    passed = {"arguments": [value]} | {each: [f"--{each}={value}"] for each in OF_OPTIONS - {"out"}}
    assert (code, words) == (9, [*passed.get(name, []), *own])
    files = {"report": f"{out}/report.json", "page": f"{out}/report.html", "junit": f"{out}/junit.xml"}
    assert outputs_of(written) == {"out": out, **files, "exit-code": "9"}
    assert (tmp_path / out / "calibration.npz").is_file()
    assert name != "calibration" or (tmp_path / value).is_file()
    assert not list(tmp_path.rglob("canary"))


def _installs(action: Any, folder: Path, name: str, value: str) -> int:
    """Run the step that installs, with a stand-in for Python that counts its calls, and return the exit code."""
    (step,) = (step for step in action["runs"]["steps"] if step.get("name") == "Install qexport")
    _program(folder / "python", '#!/bin/sh\necho "$@" >> calls\n')
    given = {"EXTRAS": "tflite, onnx", name.upper().replace("-", "_"): value, "ACTION": str(folder)}
    done = _run(step, folder, given)
    assert (folder / "calls").exists() == (done.returncode == 0)
    assert done.returncode == 0 or done.stdout.startswith("::error::qexport: extras ")
    assert not list(folder.rglob("canary"))
    return done.returncode


@pytest.mark.parametrize("model", ["--help", "verify"])
def test_a_model_behind_two_dashes_is_a_model(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main([f"--data={DATA}", f"--out={tmp_path / '-o'}", "--", model])
    assert code == INPUT
    assert model in one_line(code, *capsys.readouterr(), INPUT, tmp_path)


@needs_bash
def test_no_module_of_the_workspace_is_imported(action: Any, tmp_path: Path) -> None:
    """Python's `-c` and `-m` look into the working directory first, where a pull request puts what it likes."""
    for name in ("shlex", "secrets", "hashlib", "pip"):
        (tmp_path / f"{name}.py").write_text("open('canary', 'w')")
    code, _, written = run_script(action, tmp_path, 0, MODEL="a.pt", ARGUMENTS="--nms")
    assert (code, outputs_of(written)["out"]) == (0, OUT)
    assert not (tmp_path / "canary").exists()
    scripts = [step["run"] for step in action["runs"]["steps"] if "run" in step]
    assert not [line for script in scripts for line in script.splitlines() if re.search(r"python -[cm]", line)]


def test_packages_are_cached_by_what_is_installed(action: Any) -> None:
    steps = action["runs"]["steps"]
    (cache,) = (step for step in steps if step.get("uses", "").startswith("actions/cache@"))
    names = [step.get("name") for step in steps]
    assert steps.index(cache) == names.index("Install qexport") - 1
    assert cache["with"]["path"] == "${{ steps.packages.outputs.folder }}"
    assert cache["with"]["key"].endswith("${{ steps.packages.outputs.key }}")


@needs_bash
def test_the_key_of_the_cache_is_that_of_the_versions(action: Any, tmp_path: Path) -> None:
    (step,) = (step for step in action["runs"]["steps"] if step.get("id") == "packages")
    (tmp_path / "python").symlink_to(sys.executable)
    keys = []
    for extras, pins in (("onnx", "a==1\n"), ("onnx", "a==2\n"), ("tflite", "a==1\n")):
        (tmp_path / "constraints.txt").write_text(pins)
        (tmp_path / "pyproject.toml").write_text("[project]\n")
        output = tmp_path / "output"
        output.unlink(missing_ok=True)
        path = f"{tmp_path}:{os.environ['PATH']}"
        environment = {"PATH": path, "ACTION": str(tmp_path), "EXTRAS": extras, "GITHUB_OUTPUT": str(output)}
        subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], env={**os.environ, **environment}, check=True)
        keys.append(dict(line.split("=", 1) for line in output.read_text().splitlines())["key"])
    assert len(set(keys)) == 3
    assert all(len(key) == 16 for key in keys)


PAIR = ("torch==2.13.0", "torchvision==0.28.0")


@pytest.mark.parametrize("name", ["action.yml", "README.md", "Makefile"])
def test_torch_and_torchvision_are_installed_as_a_pair_of_the_constraints(name: str) -> None:
    """From one index in one command: what pip finds for torchvision afterwards may be of another build."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert set(PAIR) <= set(pinned)
    lines = [line for line in (ROOT / name).read_text(encoding="utf-8").splitlines() if "pip install" in line]
    of_torch = [line for line in lines if "torch==" in line]
    assert of_torch
    assert all(all(each in line for each in PAIR) for line in of_torch)
