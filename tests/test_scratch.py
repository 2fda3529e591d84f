"""What has been begun is known to whoever ends the process that began it."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from test_signals import living, start

from qexport.system.files import write_whole
from qexport.system.guard import run_tied
from qexport.system.scratch import (
    LOCK,
    NOTES,
    PREFIX,
    VARIABLES,
    child_environment,
    clear_up,
    made,
    own_folder,
    remove_abandoned,
    remove_folder,
    scratch_folder,
    undo_notes,
    unfinished,
)
from qexport.system.temporary import temporary_files


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


def kill(process: subprocess.Popen[str]) -> None:
    """Kill -9 behind its first line; nothing that it started is left a second later."""
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    process.kill()
    process.communicate()
    limit = time.monotonic() + 20  # on an idle machine less than a tenth of a second
    while living(process.pid) and time.monotonic() < limit:
        time.sleep(0.02)
    assert living(process.pid) == []


BEGUN = """
import time
from pathlib import Path
from qexport.system.files import write_whole
from qexport.system.scratch import folder_until_exit, own_folder, scratch_folder
folder_until_exit()
own_folder(Path("."))
with scratch_folder() as scratch, write_whole(Path("finished.bin")) as path:
    path.write_text("whole")
with scratch_folder() as scratch, write_whole(Path("a.bin")) as path, write_whole(Path("b_model")) as folder:
    (scratch / "stderr.log").write_text("x")
    path.write_text("half")
    folder.mkdir()
    print("there", flush=True)
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_the_next_run_removes_what_a_killed_one_has_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill(start(tmp_path, "-c", BEGUN))
    assert len(list((tmp_path / "tmp").iterdir())) == 2
    assert len(list(tmp_path.glob(".*"))) == 3
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with temporary_files(tmp_path):
        pass
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["finished.bin", "tmp"]


def test_folders_of_runs_that_live_and_of_others_stay(tmp_path: Path) -> None:
    def other(name: str, mode: int = 0o700, lock: bool = True) -> Path:
        folder = tmp_path / f"{PREFIX}{name}"
        folder.mkdir(mode)
        folder.chmod(mode)
        (folder / (LOCK if lock else "mine")).touch()
        return folder

    hidden = own_folder(tmp_path)
    kept = {hidden, other("readable", 0o755), other("unlocked", lock=False), other("long_name")}
    dead, link = other("8letters"), tmp_path / f"{PREFIX}linked__"
    link.symlink_to(other("long_name2"))
    (tmp_path / f"{PREFIX}no_files").mkdir(0o700)
    remove_abandoned(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, link, link.resolve()}
    assert not dead.exists()
    remove_folder(hidden)
    assert not hidden.exists()


RUNS = """
import threading
from qexport.system.guard import run_tied
threading.Timer(0.5, print, ("there",), {"flush": True}).start()
run_tied(["/bin/sleep", "60"], 60)
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")
def test_a_compiler_ends_with_the_process_that_runs_it(tmp_path: Path) -> None:
    kill(start(tmp_path, "-c", RUNS))


def test_a_compiler_that_ends_by_itself(tmp_path: Path) -> None:
    done = run_tied(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"], 20)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    with pytest.raises(subprocess.TimeoutExpired):
        run_tied(["/bin/sleep", "20"], 0.5)
    with pytest.raises(OSError, match="cannot be run"):
        run_tied([str(tmp_path)[1:]], 1)
