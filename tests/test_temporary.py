"""Temporary files: where the usual folder cannot be written, the output folder serves; where nothing can, one line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from refusals import INPUT, MODEL, PREFIX, TOLD, UNMEASURED

from qexport.cli import app
from qexport.cli.app import main
from qexport.cli.console import library_output
from qexport.errors import InputError
from qexport.system.temporary import temporary_files


@pytest.fixture(autouse=True)
def _own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python decides on its temporary folder once: let it forget."""
    monkeypatch.setattr(tempfile, "tempdir", None)


def only(monkeypatch: pytest.MonkeyPatch, *places: Path) -> None:
    """Let there be no other folder for temporary files; the first is what TMPDIR says."""
    if places:
        monkeypatch.setenv("TMPDIR", str(places[0]))
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(place) for place in places])


def unusable(kind: str, folder: Path) -> Path:
    place = folder / kind
    if kind == "file":
        place.write_text("")
    elif kind == "below a file":
        (folder / "f").write_text("")
        place = folder / "f" / "tmp"
    elif kind == "loop":
        place.symlink_to(place)
    return place  # "missing" is nowhere


KINDS = ("file", "below a file", "loop", "missing")


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_folder_serves_where_nothing_else_can_be_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, out = unusable(kind, tmp_path), tmp_path / "deep" / "out"
    only(monkeypatch, bad)
    with temporary_files(out):
        with tempfile.NamedTemporaryFile() as file:
            assert out in Path(file.name).parents
        assert Path(os.environ["TMPDIR"]).parent == out  # what libraries and other processes look at
    assert os.environ["TMPDIR"] == str(bad)
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_where_python_finds_another_folder_libraries_are_told(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "usual").mkdir()
    only(monkeypatch, unusable(kind, tmp_path), tmp_path / "usual")
    with temporary_files(tmp_path / "out"):
        assert os.environ["TMPDIR"] == tempfile.gettempdir() == str(tmp_path / "usual")
    assert not (tmp_path / "out").exists()


def test_the_working_directory_is_nobodys_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path)])
    with temporary_files(tmp_path / "out"):
        assert Path(tempfile.gettempdir()).parent == tmp_path / "out"


def test_a_full_folder_is_not_used_where_the_output_folder_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    only(monkeypatch, tmp_path / "full")
    rooms = {tmp_path / "full": 1000, tmp_path / "out": 1 << 40}
    monkeypatch.setattr("qexport.system.temporary._free", lambda folder: rooms[folder])
    with temporary_files(tmp_path / "out"):
        assert Path(tempfile.gettempdir()).parent == tmp_path / "out"
    rooms[tmp_path / "out"] = 1000
    with temporary_files(tmp_path / "out"):
        assert tempfile.gettempdir() == str(tmp_path / "full")


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_where_nothing_can_be_written(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    bad = unusable(kind, tmp_path)
    with monkeypatch.context() as patch:  # pytest itself wants temporary files afterwards
        only(patch, bad)
        code = main([str(MODEL), *UNMEASURED, "--out", "/proc/qexport"])
    assert code == INPUT
    output, errors = capfd.readouterr()
    assert output == ""
    (line,) = (line for line in errors.splitlines() if not line.startswith(TOLD))
    assert line.startswith(f"{PREFIX}no folder for temporary files can be written (tried {bad}, ")
    assert "set TMPDIR to a folder that can be" in line


@pytest.mark.parametrize(("number", "text"), [(28, "No space left on device"), (30, "Read-only file system")])
def test_a_disk_that_fills_up_is_one_line(number: int, text: str) -> None:
    with pytest.raises(InputError, match=rf"/somewhere/x cannot be written \({text}\)"), library_output():
        raise OSError(number, text, "/somewhere/x")


def test_a_fault_of_ours_is_one_line_without_a_place_for_its_log(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app, "_run", lambda *_: [][1])
    monkeypatch.setattr(tempfile, "mkstemp", full)
    assert main([str(MODEL), *UNMEASURED]) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "unexpected IndexError: list index out of range (no log of it: no folder for temporary files" in line
