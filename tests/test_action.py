"""The GitHub Action, which was never run on GitHub: its files are valid, and its script passes on what it was given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from qexport.job import FIELDS

ROOT = Path(__file__).resolve().parents[1]
ACTION = ROOT / "action.yml"
EXAMPLE = ROOT / "docs" / "github-workflow.yml"
OF_THE_ACTION = {"arguments", "extras", "python-version"}


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
    assert action["outputs"].keys() >= {"out", "report", "junit", "exit-code"}


def test_no_input_is_text_of_a_script(action: Any) -> None:
    assert not any("${{" in step["run"] for step in action["runs"]["steps"] if "run" in step)


def run_script(action: Any, folder: Path, code: int, **inputs: str) -> tuple[int, list[str], str]:
    """Run the last step with a stand-in for `qexport`: exit code, the words that it got, and the step's outputs."""
    step = action["runs"]["steps"][-1]
    (folder / "qexport").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > words\nexit {code}\n')
    (folder / "qexport").chmod(0o755)
    given = {name.upper().replace("-", "_"): "" for name in action["inputs"]}
    given |= {"OUT": action["inputs"]["out"]["default"], **inputs}
    files = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **given, **files}
    bash = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]  # as GitHub calls it
    done = subprocess.run(bash, cwd=folder, env=environment, capture_output=True, text=True)
    assert set(step["env"]) <= set(given)
    return done.returncode, (folder / "words").read_text().splitlines(), (folder / "GITHUB_OUTPUT").read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize("code", [0, 9])
def test_the_script_passes_on_what_is_given_and_nothing_else(action: Any, code: int, tmp_path: Path) -> None:
    inputs = {"MODEL": "my best.pt", "EVAL_DATA": "val; rm -rf x.yaml", "MAX_LATENCY_MS": "12", "MIN_RETENTION": "97%"}
    found, words, outputs = run_script(action, tmp_path, code, **inputs, ARGUMENTS="--no-latency --threads 4")
    out = "qexport_out/action"
    assert found == code
    assert words == [
        "my best.pt",
        *("--eval-data", "val; rm -rf x.yaml", "--min-retention", "97%", "--max-latency-ms", "12"),
        *("--no-latency", "--threads", "4"),
        *("--out", out, "--report", f"{out}/report.json"),
        *("--summary", str(tmp_path / "GITHUB_STEP_SUMMARY"), "--junit", f"{out}/junit.xml"),
    ]
    assert outputs.splitlines() == [
        f"out={out}",
        f"report={out}/report.json",
        f"junit={out}/junit.xml",
        f"exit-code={code}",
    ]
