"""One folder holds the artifacts of one model, from several runs; runs at once wait for each other."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from refusals import DATA, MODEL, PREFIX

from qexport.cli.app import main
from qexport.errors import InputError
from qexport.inspection.run_folder import (
    Model,
    companion,
    companions,
    free_name,
    keep_report,
    manifests_in,
    report_beside,
    run_folder,
)
from qexport.job.options import ExportJob
from qexport.progress import Silent

OWN = Model("best.pt", "a" * 64, "p1")
OTHERS = {
    "weights": Model("best.pt", "b" * 64, "p1"),
    "program": Model("best.pt", "a" * 64, "p2"),
    "both": Model("last.pt", "c" * 64, "p3"),
}


def leave(folder: Path, model: Model, name: str = "best_int8.onnx", **manifest: Any) -> None:
    """An artifact and its manifest as a run leaves them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(name)
    content = {"artifact": name, "weights": {"file": model.file, "sha256": model.weights}, "program": model.program}
    (folder / f"{name}.manifest.json").write_text(json.dumps({**content, **manifest}))


def chosen(job: ExportJob, model: Model) -> Path:
    with run_folder(job.folder, job.out is not None, model, Silent()) as folder:
        return folder


@pytest.mark.parametrize("other", list(OTHERS))
def test_another_model_is_refused_where_the_folder_was_given(tmp_path: Path, other: str) -> None:
    leave(tmp_path / "out", OTHERS[other])
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(InputError, match=r"out holds artifacts of .*: give another --out, or remove the folder"):
        chosen(ExportJob("best.pt", out=tmp_path / "out"), OWN)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


@pytest.mark.parametrize("other", list(OTHERS))
def test_another_model_gets_a_folder_of_its_own_where_none_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    first = chosen(ExportJob("best.pt"), OWN)
    assert first == Path("qexport_out/best")
    leave(first, OWN)
    second = chosen(ExportJob("runs/best.pt"), OTHERS[other])
    assert second.parent == first.parent
    assert second.name.startswith("best-")
    leave(second, OTHERS[other])
    assert chosen(ExportJob("best.pt"), OWN) == first
    assert chosen(ExportJob("best.pt"), OTHERS[other]) == second
    assert {path.name for path in first.iterdir()} == {"best_int8.onnx", "best_int8.onnx.manifest.json"}


def test_a_folder_that_is_not_the_announced_one_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[str] = []

    class Told(Silent):
        @contextmanager
        def step(self, title: str, total: int | None = None) -> Any:
            yield lambda note="": told.append(f"{title}: {note}")

    with run_folder(Path("out/best"), False, OWN, Told()) as folder:
        leave(folder, OWN)
    assert told == []
    with run_folder(Path("out/best"), False, OTHERS["program"], Told()) as folder:
        pass
    held = "out/best holds artifacts of best.pt with another image size, batch or head"
    assert told == [f"Choosing a folder: {held}, so files go to {folder}"]


def test_the_same_model_adds_up_and_a_folder_without_artifacts_is_anyones(tmp_path: Path) -> None:
    leave(tmp_path, OWN)
    assert chosen(ExportJob("best.pt", out=tmp_path), OWN) == tmp_path
    (tmp_path / "best_int8.onnx").unlink()  # a manifest alone is of nothing
    assert chosen(ExportJob("best.pt", out=tmp_path), OTHERS["weights"]) == tmp_path


@pytest.mark.parametrize("text", ["", "no json", "[]", "{"])
def test_a_damaged_manifest_is_nobodys(tmp_path: Path, text: str) -> None:
    leave(tmp_path, OTHERS["both"])
    (tmp_path / "best_int8.onnx.manifest.json").write_text(text)
    assert chosen(ExportJob("best.pt", out=tmp_path), OWN) == tmp_path


def test_names_that_belong_to_other_artifacts_are_not_taken(tmp_path: Path) -> None:
    leave(tmp_path, OWN, plan={"file": "plan.json"}, samples="samples.npz", precision="int8")

    def same(manifest: Any) -> bool:
        return bool(manifest["precision"] == "w8a16")

    for key, wanted in (("plan", "plan.json"), ("samples", "samples.npz")):
        assert free_name(tmp_path, wanted, "best_int8.onnx", key, same) == wanted  # its own
        assert free_name(tmp_path, wanted, "best_w8a16.tflite", key, same) == f"best_w8a16.tflite.{wanted}"
        assert free_name(tmp_path, f"other_{wanted}", "best_w8a16.tflite", key, same) == f"other_{wanted}"
    for name in ("plan.json", "samples.npz"):
        (tmp_path / name).touch()
    assert companions(tmp_path) == {"plan.json", "samples.npz"}


FOREIGN = (
    "../plan.json",
    "/etc/plan.json",
    "x/../../plan.json",
    "..",
    ".",
    "notes.txt",
    "best.pt",
    "plan.json/",
    "a\0b",
)
"""Names in a stranger's manifest: of files outside of the folder, or that no run has written."""


@pytest.mark.parametrize("name", FOREIGN)
def test_files_that_no_run_has_written_are_neither_removed_nor_written(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    for key in ("plan", "candidate", "samples"):
        entry: dict[str, Any] = {key: name if key == "samples" else {"file": name}}
        leave(folder, OWN, **entry)
        for each in ("notes.txt", "best.pt", "../plan.json"):
            (folder / each).touch()
        assert companions(folder) == set()
        assert {companion(each, key) for each in manifests_in(folder).values()} == {""}


def test_a_folder_that_is_called_like_a_plan_is_not_removed(tmp_path: Path) -> None:
    leave(tmp_path, OWN, plan={"file": "plan.json"})
    (tmp_path / "plan.json").mkdir()
    assert companions(tmp_path) == set()


@pytest.mark.parametrize("key", ["format", "precision", "path"])
def test_a_report_is_kept_in_its_folder_whatever_it_says(key: str, tmp_path: Path) -> None:
    """Its words become part of a name: of one outside, where the folder has what leads there."""
    folder = tmp_path / "out"
    leave(folder, OWN)
    for way in ("report_", "report_onnx_"):
        (folder / way).mkdir()
    entry = {"path": "best_int8.onnx", "format": "onnx", "precision": "int8", "sha256": "0"}
    entry[key] = "x" * 5000 if key == "path" else "/../../settings"
    (folder / "report.json").write_text(json.dumps({"artifacts": [entry]}))
    keep_report(folder, set())
    assert (folder / "report.json").is_file()
    assert [each.name for each in tmp_path.iterdir()] == ["out"]


def saved(folder: Path, *names: str, precision: str = "int8", digest: str = "") -> None:
    entries = [{"path": f"x/{n}", "format": "onnx", "precision": precision, "sha256": digest or n} for n in names]
    (folder / "report.json").write_text(json.dumps({"artifacts": entries}))


def test_an_earlier_report_is_kept_where_its_figures_are_not_made_again(tmp_path: Path) -> None:
    leave(tmp_path, OWN, "a_int8.onnx", sha256="a_int8.onnx")
    saved(tmp_path, "a_int8.onnx", "gone.onnx")
    keep_report(tmp_path, {"a_int8.onnx"})
    assert [path.name for path in tmp_path.glob("report*")] == ["report.json"]
    keep_report(tmp_path, {"a_fp16.onnx"})
    assert [path.name for path in tmp_path.glob("report*")] == ["report_onnx_int8.json"]
    saved(tmp_path, "a_fp16.onnx", precision="fp16")
    assert report_beside(tmp_path / "a_int8.onnx").name == "report_onnx_int8.json"
    assert report_beside(tmp_path / "a_fp16.onnx").name == "report.json"
    saved(tmp_path, "a_int8.onnx", digest="of another file")
    assert report_beside(tmp_path / "a_int8.onnx").name == "report_onnx_int8.json"


def _hold(folder: str, events: Any, done: Any) -> None:
    with run_folder(Path(folder), True, OWN, Silent()):
        events.put(("in", os.getpid()))
        done.wait(20)
        events.put(("out", os.getpid()))


@pytest.fixture
def holder(tmp_path: Path) -> Any:
    """Starts processes that hold the folder until they are told."""
    context = multiprocessing.get_context("spawn")
    events, started = context.Queue(), []

    def start() -> tuple[Any, Any]:
        done = context.Event()
        process = context.Process(target=_hold, args=(str(tmp_path / "out"), events, done))
        process.start()
        started.append(process)
        return process, done

    yield events, start
    for process in started:
        process.kill()
        process.join()


def test_a_run_waits_for_another_and_a_killed_one_blocks_nobody(tmp_path: Path, holder: Any) -> None:
    events, start = holder
    first, _ = start()
    assert events.get(timeout=30) == ("in", first.pid)
    waited: list[str] = []

    class Told(Silent):
        @contextmanager
        def step(self, title: str, total: int | None = None) -> Any:
            waited.append(title)
            os.kill(first.pid, signal.SIGKILL)  # no cleanup of its own
            yield lambda _="": None

    with run_folder(tmp_path / "out", True, OWN, Told()) as folder:
        assert list(folder.iterdir()) == []  # nothing but what runs write
    assert waited == [f"Waiting for another run that writes to {tmp_path / 'out'}"]


def test_where_folders_cannot_be_locked_a_file_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")  # as NFS says of a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    from qexport.inspection import run_folder as module

    taken: list[Path] = []

    def lock(folder: Path) -> Callable[[], None]:
        taken.append(folder)
        return lambda: None

    monkeypatch.setattr(module, "_lock_file", lock)
    assert chosen(ExportJob("best.pt", out=tmp_path), OWN) == tmp_path
    assert taken == [tmp_path]


FEW = ("--data", DATA, "--calib-images", "2", "--effort", "none")
QUICK = ("--imgsz", "64", "--no-eval", "--no-latency", "--quiet", *FEW)


def test_a_locked_file_is_waited_for_and_unlocked(tmp_path: Path) -> None:
    from qexport.inspection.run_folder import _lock_file

    release = _lock_file(tmp_path)
    assert release is not None
    assert _lock_file(tmp_path) is None
    release()
    again = _lock_file(tmp_path)
    assert again is not None
    again()


@pytest.mark.slow
def test_runs_of_one_model_add_up_and_all_of_their_files_are_still_verified(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    place = (*QUICK, "--out", str(out))
    assert main([str(MODEL), "--int8", "--format", "onnx", *place]) == 0
    table = ("--calibration", str(out / "calibration.npz"))
    assert main([str(MODEL), "--int8", "--format", "openvino", *place, *table]) == 0
    names = {
        "shapes26_int8.onnx": "plan.json",
        "shapes26_int8_openvino_model": "shapes26_int8_openvino_model.plan.json",
    }
    manifests = manifests_in(out)
    assert {name: each["plan"]["file"] for name, each in manifests.items()} == names
    assert {each["samples"] for each in manifests.values()} == {"samples.npz"}  # of the same images: shared
    assert sorted(path.name for path in out.glob("report*")) == ["report.json", "report_onnx_int8.json"]
    capfd.readouterr()
    for name in names:
        assert main(["verify", str(out / name)]) == 0
        *lines, last = capfd.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines] == ["ok"] * 4, lines
        assert last == f"{name}: all 4 checks passed"
    assert main([str(MODEL), "--format", "onnx", "--imgsz", "96", *place[2:]]) == 3
    error = capfd.readouterr().err
    assert error.startswith(f"{PREFIX}folder {out} holds artifacts of shapes26.pt with another image size")
    assert len(error.splitlines()) == 1
    assert sorted(manifests_in(out)) == sorted(names)
