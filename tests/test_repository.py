"""What services and tools read of the repository is valid, and names what is there."""

from __future__ import annotations

import fnmatch
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_supply_chain import ENTRY, normal

from qexport.system.cache import VARIABLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
FORMS = ROOT / ".github" / "ISSUE_TEMPLATE"
GITLAB = ROOT / "docs" / "gitlab-ci.yml"
IN_THE_IMAGE = ("tflite", "onnx", "openvino")
pytestmark = pytest.mark.skipif(not FORMS.is_dir(), reason="a source distribution has no files for services")


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("schema", "path", "word"),
    [
        ("github-issue-forms", FORMS / "bug.yml", "description"),
        ("github-issue-forms", FORMS / "format.yml", "description"),
        ("github-issue-config", FORMS / "config.yml", "blank_issues_enabled"),
        ("gitlab-ci", GITLAB, "script"),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_a_file_is_valid_by_the_published_schema(schema: str, path: Path, word: str) -> None:
    """Schemas come with check-jsonschema; a misspelt key shows that they would find one."""
    pytest.importorskip("check_jsonschema", reason="needs the extra qexport[dev]")
    known: Any = import_module("check_jsonschema.builtin_schemas").get_builtin_schema(f"vendor.{schema}")
    validator = import_module("jsonschema").validators.validator_for(known)(known)
    assert [error.message for error in validator.iter_errors(read(path))] == []
    misspelt = path.read_text(encoding="utf-8").replace(f"{word}:", f"x{word}:")
    assert list(validator.iter_errors(yaml.safe_load(misspelt)))


def test_a_report_of_a_fault_asks_for_what_the_doctor_says() -> None:
    (asked,) = (each for each in read(FORMS / "bug.yml")["body"] if each["id"] == "doctor")
    assert "`qexport doctor`" in asked["attributes"]["label"]
    assert asked["validations"]["required"]


def locked(name: str) -> dict[tuple[str, str], str]:
    """Name and version → marker and hashes."""
    text = (ROOT / "locks" / name).read_text(encoding="utf-8")
    return {(normal(project), version): marker + hashes for project, version, marker, hashes in ENTRY.findall(text)}


def test_hooks_run_what_the_makefile_runs_and_the_lock_holds() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"].split() for hook in repository["hooks"]]
    assert {" ".join(words[:2]) for words in entries} == {".venv/bin/python -m"}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = [" ".join(each[2:] if each[2] == "mypy" else each[2:4]) for each in entries]
    assert [each for each in commands if f"$(PY) -m {each}" not in makefile] == []
    assert {words[2] for words in entries} <= {name for name, _ in locked("qexport.txt")}


def test_gitlab_keeps_what_runs_share_and_installs_the_torch_that_was_tested() -> None:
    job = read(GITLAB)["export"]
    folder = job["variables"][VARIABLE]
    assert any(folder.startswith(f"$CI_PROJECT_DIR/{path}/") for path in job["cache"]["paths"])
    (install,) = (line for line in job["before_script"] if "torch==" in line)
    pins = re.findall(r"torch\w*==\S+", install)
    assert len(pins) == 2
    assert set(pins) <= set((ROOT / "constraints.txt").read_text(encoding="utf-8").split())


def test_the_image_has_what_its_formats_need_at_the_locked_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(each for extra in IN_THE_IMAGE for each in extras[extra]), "hatchling"]
    image = locked("runtime.txt")
    names = {normal(re.split(r"[<>=\[]", each)[0]) for each in wanted} - {"torch"}
    assert names - {name for name, _ in image} == set()
    assert image.items() <= locked("qexport.txt").items()
    (compiled,) = re.findall(r"(--universal pyproject\.toml --extra.*?-o locks/runtime\.txt)", MAKEFILE, re.S)
    assert tuple(re.findall(r"--extra (\w+)", compiled)) == IN_THE_IMAGE


MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def test_the_image_is_built_of_files_that_there_are_and_runs_without_rights() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    bases = [words[1] for words in lines if words[0] == "FROM"]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+-slim-\w+", bases[0])
    sources = [name for words in lines if words[0] == "COPY" and "--from" not in words[1] for name in words[1:-1]]
    assert len(sources) == 8
    assert [name for name in sources if not (ROOT / name).exists()] == []
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert rules[0] == "*"
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(sources)
    assert any(fnmatch.fnmatch("qexport/cli/__pycache__", rule) for rule in rules[1:])
    users = [words[1] for words in lines if words[0] == "USER"]
    assert users == ["1000"]
    assert lines[-2:] == [["ENTRYPOINT", '["qexport"]'], ["CMD", '["--help"]']]
    installs = [" ".join(words) for words in lines if words[0] == "RUN" and "pip install" in " ".join(words)]
    assert len(re.findall("pip install", " ".join(installs))) == 3
    assert "--no-deps --only-binary :all: --require-hashes -r runtime.txt" in installs[0]
    assert "pip install torch torchvision -c constraints.txt" in installs[0]
    assert "pip install --no-deps --no-build-isolation ." in installs[1]
