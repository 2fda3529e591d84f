"""What `verify` says while it works and at its end, and `formats` of what cannot be built."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qexport.backends.installed import EngineState, FormatState
from qexport.cli.formats import _format
from qexport.cli.verify import _show_checks
from qexport.inspection import recheck as rechecking
from qexport.inspection.recheck import Check
from qexport.progress import Silent


@pytest.mark.parametrize(
    ("answers", "last"),
    [
        ({"hash": True, "plan": True}, "m.onnx: all 2 checks passed"),
        ({"hash": True, "plan": None}, "m.onnx: 1 of 2 checks passed, nothing to check plan by"),
        ({"hash": None, "plan": None}, "m.onnx: 0 of 2 checks passed, nothing to check hash and plan by"),
    ],
)
def test_the_last_line_says_what_all_comes_to(
    answers: dict[str, bool | None], last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _show_checks(Path("m.onnx"), [Check(name, passed, "") for name, passed in answers.items()], False) == 0
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_where_something_failed_the_error_is_the_last_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert _show_checks(Path("m.onnx"), [Check("hash", True, ""), Check("plan", False, "no")], False) == 6
    output, errors = capsys.readouterr()
    assert "checks passed" not in output
    assert errors == "qexport: error: m.onnx: plan: no\n"


def test_each_question_is_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Told(Silent):
        @contextmanager
        def step(self, title: str, total: int | None = None) -> Any:
            told.append(title)
            yield lambda note="": None

    entry: Any = type("Entry", (), {"format": "onnx"})()
    monkeypatch.setattr(rechecking, "find_entry", lambda artifact, report: entry)
    monkeypatch.setattr(rechecking, "_answered", lambda name, submit: Check(name, True, ""))
    report: Any = None
    found = list(rechecking.recheck(Path("m.onnx"), report, None, 1, progress=Told()))
    assert (
        told
        == [f"Checking {check.name}" for check in found]
        == [f"Checking {name}" for name in ("hash", "plan", "coverage", "outputs")]
    )


@pytest.mark.parametrize(
    ("found", "end"), [(True, ""), (False, "; writes the file, builds no engine (x is not installed)")]
)
def test_formats_that_build_engines_say_where_they_cannot(found: bool, end: str) -> None:
    state = FormatState("a", "A", ("fp16", "int8"), {"p": "1"}, engine=EngineState("x", found))
    assert _format(state, None) == f"fp16, int8 (p 1){end}"
    assert _format(replace(state, engine=None), None) == "fp16, int8 (p 1)"
