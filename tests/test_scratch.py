"""What has been begun is known to whoever ends the process that began it."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path

import pytest
from test_signals import living, start

from qexport.system.files import write_whole
from qexport.system.scratch import (
    NOTES,
    VARIABLES,
    child_environment,
    clear_up,
    made,
    scratch_folder,
    undo_notes,
    unfinished,
)


@pytest.fixture(params=["table", "notes"])
def undo(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """What ends a process: this one from its table, or a child from the notes that it left."""
    if request.param == "table":
        return clear_up
    notes = tmp_path / "notes"
    notes.mkdir()
    for name, value in child_environment(notes).items():
        monkeypatch.setenv(name, value)
    return lambda: undo_notes(notes)


@pytest.mark.parametrize("kind", ["file", "folder", "nothing"])
@pytest.mark.parametrize("name", ["a.tflite", "näme with\nbreak.onnx", ".hidden"])
def test_what_is_begun_is_removed(tmp_path: Path, kind: str, name: str, undo: object) -> None:
    assert callable(undo)
    path, other = tmp_path / name, tmp_path / "finished"
    other.write_text("whole")
    with unfinished(path):
        if kind == "file":
            path.write_text("half")
        elif kind == "folder":
            path.mkdir()
            (path / "a.bin").write_text("half")
        undo()
        assert not path.exists()
        assert other.read_text() == "whole"
    path.write_text("another's")
    undo()
    assert path.read_text() == "another's"


def test_what_made_way_comes_back(tmp_path: Path, undo: object) -> None:
    assert callable(undo)
    old, home = tmp_path / ".old", tmp_path / "model"
    with unfinished(old, home):
        old.mkdir()
        (old / "a.xml").write_text("the user's")
        undo()
        assert (home / "a.xml").read_text() == "the user's"
        assert not old.exists()
    with unfinished(old, home):  # the new one is there: the old one goes
        old.mkdir()
        undo()
        assert (home / "a.xml").read_text() == "the user's"
        assert not old.exists()


def test_a_folder_that_stayed_empty_is_removed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for folder in (tmp_path / "there" / "a" / "b", tmp_path / "full" / "c"):
        made(folder)
        folder.mkdir(parents=True)
    (tmp_path / "full" / "c" / "file").touch()
    made(tmp_path / "there")
    clear_up()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c", "file", "full", "there"]


def test_temporary_files_of_libraries_and_children_go_to_one_folder() -> None:
    before = (tempfile.gettempdir(), {name: os.environ.get(name) for name in VARIABLES})
    with scratch_folder() as folder:
        with tempfile.NamedTemporaryFile() as file:
            assert Path(file.name).parent == folder
        assert {os.environ[name] for name in VARIABLES} == {str(folder)}
        Path(tempfile.mkdtemp(), "forgotten").touch()
    assert not folder.exists()
    assert (tempfile.gettempdir(), {name: os.environ.get(name) for name in VARIABLES}) == before
    assert NOTES not in os.environ


def test_a_file_is_noted_while_it_is_written_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTES, str(tmp_path))
    with write_whole(tmp_path / "a.bin") as temporary:
        temporary.touch()
        assert len(list(tmp_path.glob("*.unfinished"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_the_second_process_ends_with_the_first_however_that_went(tmp_path: Path) -> None:
    """A first process that is killed cannot end it: it looks for itself."""
    code = """
import time
from qexport.execution.worker_process import worker_process
with worker_process() as ask:
    print("there", flush=True)
    time.sleep(60)
"""
    process = start(tmp_path, "-c", code)
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    assert len(living(process.pid)) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    limit = time.monotonic() + 20
    while living(process.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    assert living(process.pid) == []
