"""README and guides: their code runs, their commands are the program's, their tables are those of the code."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from guides import DOCS, FENCE, GUIDES, README, ROOT, blocks, commands, page

from qexport.calibration import calibration_table
from qexport.cli.app import export_app, main
from qexport.errors import InputError, QexportError
from qexport.inspection import manifest, samples
from qexport.optimisation import candidate_file
from qexport.optimisation.effort import EFFORTS
from qexport.planning import plan
from qexport.planning.registry import RANGES
from qexport.reporting import report, sweep_report, training_report
from qexport.reporting.gate import RULES
from qexport.targets import TARGETS
from qexport.vocabulary import PRECISIONS

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")
sys.path.append(str(DOCS))

LANGUAGES = {"sh", "python", "toml", "yaml"}
"""Of blocks in guides: each is looked at by a test, toml's by test_outside_package.py."""
RUN_BY: Mapping[str, tuple[str, ...]] = {
    "accuracy.md": ("test_all_formats.py",),
    "combining.md": ("test_combining.py",) * 2,
    "decode.md": ("test_decode_wheel.py",),
    "formats.md": (*("test_all_formats.py",) * 6, "test_precisions.py"),
    "plugins.md": ("test_outside_package.py",) * 5,
    "python.md": ("test_public_face.py",) * 2,
    "training.md": ("test_examples.py",) * 2,
}
"""Page → which file of tests runs each of its Python blocks."""
QEXPORT = ("qexport", ".venv/bin/qexport")
NOT_RUN = {
    "pip": "installs from PyPI",
    "docker": "needs its daemon",
    "python": "build_engine.py needs TensorRT, run.py LiteRT",
}
"""Commands that are not tried, and why; of make's the target has to be there."""


ENTRY_POINTS = cache(importlib.metadata.entry_points)
"""A command asks for them thirty times, and here are a hundred commands."""


class Made(BaseException):
    """The command line has made its job, and would begin to work."""


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logging_level: None) -> None:
    """Every verb ends where its options are checked and before anything is read or loaded."""

    def stop() -> None:
        raise Made

    monkeypatch.setattr("qexport.compat.quiet.quiet_libraries", stop)
    monkeypatch.setattr(importlib.metadata, "entry_points", ENTRY_POINTS)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.name)
def test_every_command_is_one_of_the_program(guide: Path, stopped: None, capfd: pytest.CaptureFixture[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    for words in commands(guide.read_text(encoding="utf-8")):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(targets), words
        elif words[0] not in NOT_RUN:
            own = words[words.index("qexport") :] if words[0] == "torchrun" else words
            assert own[0] in QEXPORT, words
            _tried(own[1:], capfd)


def _tried(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(words) == 0, (words, capfd.readouterr().err)
    except Made:
        return
    assert words in (["formats"], ["cache"], ["cache", "--clear"]) or "--dry-run" in words, f"{words} has run"


def test_the_gitlab_example_is_a_command(stopped: None, capfd: pytest.CaptureFixture[str]) -> None:
    job = yaml.safe_load((DOCS / "gitlab-ci.yml").read_text(encoding="utf-8"))["export"]
    (line,) = job["script"]
    program, *words = shlex.split(line)
    assert program == "qexport"
    _tried(words, capfd)
    assert words[words.index("--junit") + 1] == job["artifacts"]["reports"]["junit"]
    assert words[words.index("--out") + 1] in job["artifacts"]["paths"]


def test_a_command_that_is_none_is_found(stopped: None, capfd: pytest.CaptureFixture[str]) -> None:
    for wrong in ("a.pt --int8 --dta x.yaml", "a.pt --int8", "qat a.pt --epoch 3", "verify a.tflite --runtime x"):
        with pytest.raises(AssertionError):
            _tried(wrong.split(), capfd)


def test_every_block_has_a_language_and_a_test() -> None:
    """A block in a language that nothing looks at, or a page that no test reads, would go stale."""
    for guide in GUIDES:
        text = guide.read_text(encoding="utf-8")
        assert {language for language, _ in FENCE.findall(text)} <= LANGUAGES, guide.name
        assert len(re.findall(r"^\s*```", text, re.M)) == 2 * len(FENCE.findall(text)), guide.name
        assert len(RUN_BY.get(guide.name, ())) == len(blocks(text, "python")), guide.name
        for file in RUN_BY.get(guide.name, ()):
            assert f'"{guide.name}"' in (ROOT / "tests" / file).read_text(encoding="utf-8"), (guide.name, file)


def test_the_reference_is_that_of_the_program() -> None:
    """Run `make reference` where this fails."""
    import reference

    assert reference.page() == page("reference.md")
    assert {"", "demo", "formats", "qat", "report", "sensitivity", "verify", "diff"} <= set(reference.commands())


def test_every_option_of_an_export_is_explained() -> None:
    command: Any = typer.main.get_command(export_app)
    options = [each.opts[0] for each in command.params if each.param_type_name == "option" and not each.hidden]
    text = page("options.md")
    assert len(options) > 50
    assert [each for each in options if each != "--version" and f"`{each}" not in text] == []


def test_tables_name_what_the_code_has() -> None:
    """Targets, rules of the gate, exit codes, precisions, efforts, range estimators and files with a schema."""
    ci, concepts = page("ci.md"), page("concepts.md")
    errors: list[type[QexportError]] = [QexportError, *QexportError.__subclasses__(), *InputError.__subclasses__()]
    codes = {each.exit_code for each in errors}
    assert codes == set(map(int, re.findall(r"^\| (\d+) \|", ci, re.M))) - {0, 124}
    assert [rule.name for rule in RULES if f"`--{rule.name} " not in ci] == []
    assert [name for name in TARGETS if f"`{name}`" not in page("devices.md").partition("## Raspberry Pi")[0]] == []
    assert [name for name in (*PRECISIONS[1:], *RANGES.own) if f"| `{name}` |" not in concepts] == []
    assert [name for name in EFFORTS if f"| `{name}` |" not in page("accuracy.md")] == []
    schemas = {"report.json": report.SCHEMA, "plan.json": plan.SCHEMA, "calibration.npz": calibration_table.SCHEMA}
    schemas |= {
        "candidate.npz": candidate_file.SCHEMA,
        "samples.npz": samples.SCHEMA,
        "train.json": training_report.SCHEMA,
        "sweep.json": sweep_report.SCHEMA,
    }
    for file, schema in (*schemas.items(), ("<artifact>.manifest.json", manifest.SCHEMA)):
        assert f"| `{file}` | {schema} |" in page("files.md"), file


def test_the_front_page_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150
