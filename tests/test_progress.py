"""What is shown while a run goes on: bars, lines, or nothing."""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from qexport.cli.app import main
from qexport.cli.console import fail
from qexport.cli.progress import Drawn, Followed, Lines, shown_progress
from qexport.progress import Silent


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("title", "total", "line"),
    [
        ("Reading model and data", None, r"✓ Reading model and data: \d+\.\d s"),
        ("Calibrating", 16, r"✓ Calibrating \(16\): \d+\.\d s"),
        ("Writing onnx INT8", None, r"✓ Writing onnx INT8: \d+\.\d s"),
    ],
)
def test_in_a_pipe_a_step_is_a_line_with_its_time(title: str, total: int | None, line: str) -> None:
    stream = io.StringIO()
    with Lines(Console(file=stream)).step(title, total) as advance:
        advance()
        assert stream.getvalue() == ""
    (found,) = lines_of(stream)
    assert re.fullmatch(line, found)


def test_the_last_note_stands_behind_the_time() -> None:
    stream = io.StringIO()
    with Lines(Console(file=stream)).step("Epoch 1 of 2", 3) as advance:
        advance("loss 0.5")
        advance("loss 0.4")
        advance()
    (found,) = lines_of(stream)
    assert re.fullmatch(r"✓ Epoch 1 of 2 \(3\): \d\.\d s, loss 0\.4", found)


def test_the_time_is_that_of_the_step() -> None:
    stream = io.StringIO()
    with Lines(Console(file=stream)).step("Waiting"):
        time.sleep(0.26)
    assert 0.25 <= float(stream.getvalue().split()[-2]) < 2


def test_a_long_step_says_now_and_then_how_far_it_is() -> None:
    stream = io.StringIO()
    shown = Lines(Console(file=stream), heartbeat=0.05)
    with shown.step("Calibrating", 40) as advance:
        for _ in range(3):
            advance()
        time.sleep(0.2)
    with shown.step("Converting"):
        time.sleep(0.2)
    lines = lines_of(stream)
    assert "… Calibrating: 3 of 40 after 0 s" in lines
    assert "… Converting: still at it after 0 s" in lines
    assert lines[-1].startswith("✓ Converting: ")


def test_a_step_that_fails_leaves_the_word_to_the_error() -> None:
    stream = io.StringIO()
    with pytest.raises(ValueError, match="no"), Lines(Console(file=stream)).step("Reading"):
        raise ValueError("no")
    assert stream.getvalue() == ""


@pytest.fixture
def terminal() -> Iterator[io.TextIOWrapper]:
    """A terminal that nobody looks at."""
    first, second = os.openpty()
    with os.fdopen(second, "w") as stream:
        yield stream
    os.close(first)


@pytest.mark.parametrize(
    ("on_a_terminal", "hidden", "term", "kind"),
    [
        (True, False, "xterm-256color", Drawn),
        (True, False, "dumb", Lines),
        (False, False, "xterm-256color", Lines),
        (True, True, "xterm-256color", Silent),
        (False, True, "dumb", Silent),
    ],
)
def test_what_suits_the_place(
    on_a_terminal: bool,
    hidden: bool,
    term: str,
    kind: type,
    terminal: io.TextIOWrapper,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # as CI services set it: colours, but no bars in a log
    console = Console(file=terminal if on_a_terminal else io.StringIO())
    with shown_progress(console, hidden) as progress:
        assert type(progress) is kind


def test_a_time_limit_knows_the_step_that_was_opened_last() -> None:
    followed = Followed(Silent())
    assert followed.at() == ""
    with followed.step("Writing"), followed.step("Calibrating", 3):
        assert followed.at() == "Calibrating"
    with followed.step("Writing"):
        with followed.step("Calibrating", 3):
            pass
        assert followed.at() == "Writing"
    assert followed.at() == ""


def test_something_moves_before_the_first_step(terminal: io.TextIOWrapper) -> None:
    console = Console(file=terminal, force_terminal=True, width=80)
    with shown_progress(console, hidden=False) as progress:
        assert isinstance(progress, Drawn)
        assert [task.description for task in progress._bar.tasks] == ["Starting"]
        with progress.step("Reading", 3) as advance:
            advance()
            assert [task.description for task in progress._bar.tasks] == ["Reading"]
            advance("loss [red]")
            advance()
            assert progress._bar.tasks[0].description == "Reading: loss [red]"
        assert progress._bar.tasks[0].finished


class Narrow(io.StringIO):
    """A terminal of 40 columns."""

    def isatty(self) -> bool:
        return True


def test_an_error_is_wrapped_between_words_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "min-speedup: speed-up 1.00× of shapes26_int8.onnx is under 2.00×, and-that-is-long"
    for stream, count in ((Narrow(), 3), (io.StringIO(), 1)):
        monkeypatch.setattr("sys.stderr", stream)
        assert fail(text, 9) == 9
        lines = lines_of(stream)
        assert len(lines) == count
        assert " ".join(line.removeprefix("  ") for line in lines) == f"qexport: error: {text}"
        assert not any(line[0].isalnum() for line in lines[1:])  # no part of it looks like a line of its own
        assert count == 1 or max(map(len, lines)) <= 40


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("gettempdir", FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")),
        ("mkdtemp", PermissionError(13, "Permission denied")),
        ("mkdtemp", OSError(28, "No space left on device")),
        ("mkdtemp", OSError(30, "Read-only file system")),
    ],
    ids=["none", "no permission", "full", "read-only"],
)
def test_without_a_folder_for_temporary_files_a_run_is_one_line(
    asked: str,
    error: OSError,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def none(**named: object) -> str:
        raise error

    monkeypatch.setattr(f"tempfile.{asked}", none)
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04")
    assert main([str(tmp_path / "m.pt"), "--no-eval", "--quiet", "--out", str(tmp_path / "out")]) == 3
    line = f"no folder for temporary files can be written ({error.strerror}): set TMPDIR to one"
    assert capsys.readouterr().err == f"qexport: error: {line}\n"


def test_an_unexpected_fault_is_one_line_wherever_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from qexport.cli import app

    def refuse(*given: object, **named: object) -> tuple[int, str]:
        raise PermissionError(13, "Permission denied")

    def broken(*given: object, **named: object) -> None:
        raise ZeroDivisionError("of ours\nand more")

    monkeypatch.setattr(app, "export_app", broken)
    monkeypatch.chdir(tmp_path)
    assert main(["m.pt"]) == 1
    (log,) = re.findall(r"\(report it with (.*)\)\n$", capsys.readouterr().err)
    assert "ZeroDivisionError: of ours" in Path(log).read_text()
    Path(log).unlink()
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert main(["m.pt"]) == 1
    line = "unexpected ZeroDivisionError: of ours (no log of it: no folder for temporary files can be written)"
    assert capsys.readouterr().err == f"qexport: error: {line}\n"
