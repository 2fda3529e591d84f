"""Files appear whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from qexport.errors import InputError
from qexport.system.files import make_folder, remove_unfinished, write_text, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "plan.json"
    with write_whole(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == tmp_path  # on the same file system, so that the rename cannot be a copy
        assert temporary.suffix == ".json"
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert names(tmp_path) == ["plan.json"]


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), InputError("no")])
@pytest.mark.parametrize("existing", [False, True])
def test_a_failed_block_leaves_everything_as_it_was(tmp_path: Path, existing: bool, fault: BaseException) -> None:
    target = tmp_path / "model.tflite"
    if existing:
        target.write_text("old")
    with pytest.raises(type(fault)), write_whole(target) as temporary:  # noqa: PT012  (both belong together)
        temporary.write_text("half")
        raise fault
    assert names(tmp_path) == (["model.tflite"] if existing else [])
    assert not existing or target.read_text() == "old"


def test_a_folder_may_be_written_whole_too(tmp_path: Path) -> None:
    with write_whole(tmp_path / "model_openvino") as temporary:
        temporary.mkdir()
        (temporary / "model.xml").write_text("x")
    assert names(tmp_path / "model_openvino") == ["model.xml"]
    with pytest.raises(ValueError, match="no"), write_whole(tmp_path / "other") as temporary:  # noqa: PT012
        temporary.mkdir()
        (temporary / "model.xml").write_text("x")
        raise ValueError("no")
    assert names(tmp_path) == ["model_openvino"]


def test_a_folder_with_files_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model_openvino"
    target.mkdir()
    (target / "old.xml").write_text("old")
    with write_whole(target) as temporary:
        temporary.mkdir()
        (temporary / "new.xml").write_text("new")
        assert names(target) == ["old.xml"]
    assert names(target) == ["new.xml"]
    assert names(tmp_path) == ["model_openvino"]


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), InputError("no")])
def test_a_failed_block_leaves_an_old_folder_as_it_was(tmp_path: Path, fault: BaseException) -> None:
    target = tmp_path / "model_openvino"
    target.mkdir()
    (target / "old.xml").write_text("old")
    with pytest.raises(type(fault)), write_whole(target) as temporary:  # noqa: PT012  (both belong together)
        temporary.mkdir()
        (temporary / "new.xml").write_text("half")
        raise fault
    assert names(tmp_path) == ["model_openvino"]
    assert (target / "old.xml").read_text() == "old"


def test_a_block_that_writes_nothing_leaves_an_old_folder_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "model_openvino"
    target.mkdir()
    (target / "old.xml").write_text("old")
    with pytest.raises(InputError, match="model_openvino cannot be written"), write_whole(target):
        pass
    assert names(tmp_path) == ["model_openvino"]


def test_a_file_does_not_replace_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.mkdir()
    (target / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"report\.json cannot be written"):
        write_text(target, "text")
    assert (target / "mine.txt").read_text() == "mine"
    assert names(tmp_path) == ["report.json"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match=r"plan\.json cannot be written"),
        write_whole(tmp_path / "plan.json"),
    ):
        pass


def test_a_missing_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone/plan\.json cannot be written \(No such file.*\): choose another --out"):
        write_text(tmp_path / "gone" / "plan.json", "text")


def test_a_file_where_a_folder_is_wanted_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(InputError, match=r"folder .*out cannot be written"):
        make_folder(tmp_path / "out")
    with pytest.raises(InputError, match=r"folder .*deep cannot be written"):
        make_folder(tmp_path / "out" / "deep")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    with pytest.raises(InputError, match="locked cannot be written"):
        make_folder(locked)
    with pytest.raises(InputError, match=r"a\.txt cannot be written"):
        write_text(locked / "a.txt", "text")


def test_a_folder_that_cannot_take_files_is_named() -> None:
    # /proc is writable by nobody, root included.
    with pytest.raises(InputError, match=r"folder /proc/qexport cannot be written \(.+\): choose another --out"):
        make_folder(Path("/proc/qexport"))


def test_a_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    assert make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert make_folder(tmp_path / "a" / "b").is_dir()
    assert names(tmp_path / "a" / "b") == []


def test_text_is_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "320×320 – ü\n")
    assert (tmp_path / "a.txt").read_bytes() == "320×320 – ü\n".encode()


def test_what_nobody_has_written_to_for_a_minute_is_removed(tmp_path: Path) -> None:
    old, new = uuid.uuid4().hex, uuid.uuid4().hex
    for name in (f".{old}.tflite", f".{old}", f".{new}.onnx", f".{old[1:]}.tflite", f"{old}.tflite", ".keep"):
        (tmp_path / name).touch()
    (tmp_path / f".{uuid.uuid4().hex}_model").mkdir()
    (tmp_path / f".{uuid.uuid4().hex}").mkdir()
    for path in tmp_path.iterdir():
        if new not in path.name:
            os.utime(path, (0, 0))
    kept = [path for path in names(tmp_path) if path.endswith("_model")]  # no suffix that a file of ours has
    remove_unfinished(tmp_path)
    assert names(tmp_path) == sorted([f".{new}.onnx", f".{old[1:]}.tflite", f"{old}.tflite", ".keep", *kept])
