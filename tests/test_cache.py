"""The cache holds what was kept, no more than its bound, nothing that is damaged; where it cannot, nobody notices."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from qexport.cli.app import main
from qexport.job.options import make_job
from qexport.system import machine
from qexport.system.array_form import packed, unpacked
from qexport.system.cache import MADE, SUFFIX, Cache, Entry, cache_folder
from qexport.system.machine import conditions

KEY = "figure-" + "0" * 64


def content(entry: Entry) -> tuple[bytes, str]:
    return entry.read("a"), entry.made


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "not" / "there" / "yet")


def place(cache: Cache, key: str = KEY) -> Path:
    assert cache.folder
    return cache.folder / f"{key}{SUFFIX}"


def test_what_is_kept_is_read_with_the_time_that_it_was_made_at(cache: Cache, tmp_path: Path) -> None:
    assert cache.read(KEY, content) is None
    (tmp_path / "file").write_bytes(b"from a file")
    cache.keep(KEY, {"a": b"bytes", "b": tmp_path / "file"})
    found = cache.read(KEY, content)
    assert found is not None
    assert found[0] == b"bytes"
    assert found[1].endswith("+00:00")
    assert cache.read(KEY, lambda entry: entry.read("b")) == b"from a file"
    assert cache.size() == (1, place(cache).stat().st_size)
    assert cache.folder
    assert cache.folder.stat().st_mode & 0o077 == 0
    cache.clear()
    assert (cache.size(), cache.read(KEY, content)) == ((0, 0), None)


def test_a_key_changes_with_every_part_and_condition() -> None:
    one = Cache(None, {"cores": 2})
    parts = {"threads": 2, "formats": frozenset({"b", "a"})}
    assert one.key("figure", parts) == one.key("figure", {"formats": frozenset({"a", "b"}), "threads": 2})
    others = [one.key("other", parts), one.key("figure", {**parts, "threads": 1}), Cache(None, {}).key("figure", parts)]
    assert len({one.key("figure", parts), *others}) == 4


def rewritten(files: dict[str, bytes], **how: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", **how) as archive:
        for name, each in files.items():
            archive.writestr(name, each)
    return stream.getvalue()


MADE_AT = b"2026-01-01T00:00:00+00:00"
DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "cut off": lambda whole: whole[: len(whole) // 2],
    "another byte": lambda whole: whole.replace(b"bytes", b"bytEs"),
    "no archive": lambda _: b"hello",
    "without a time": lambda _: rewritten({"a": b"bytes"}),
    "a time that is none": lambda _: rewritten({MADE: b"\x1b[2Jyesterday", "a": b"bytes"}),
    "packed": lambda _: rewritten({MADE: MADE_AT, "a": bytes(10**7)}, compression=zipfile.ZIP_DEFLATED),
    "without the file": lambda _: rewritten({MADE: MADE_AT, "../a": b"bytes"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_missing_and_is_written_anew(cache: Cache, damage: str) -> None:
    cache.keep(KEY, {"a": b"bytes"})
    place(cache).write_bytes(DAMAGE[damage](place(cache).read_bytes()))
    assert cache.holds(KEY)
    assert cache.read(KEY, content) is None
    cache.keep(KEY, {"a": b"bytes"})
    assert cache.read(KEY, content) is not None


@pytest.mark.parametrize("kind", ["folder", "pipe", "dangling"])
def test_what_is_no_file_waits_for_nobody(cache: Cache, kind: str) -> None:
    place(cache).parent.mkdir(parents=True)
    made: dict[str, Callable[[Path], object]] = {
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
        "dangling": lambda path: path.symlink_to("nowhere"),
    }
    made[kind](place(cache))
    assert cache.read(KEY, content) is None
    assert cache.size() == (0, 0)


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="has no owners")
@pytest.mark.parametrize("kind", ["another's", "everybody's"])
def test_a_folder_that_others_write_to_is_neither_read_nor_written(
    cache: Cache, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.keep(KEY, {"a": b"bytes"})
    assert cache.read(KEY, content)
    assert cache.folder
    if kind == "everybody's":
        cache.folder.chmod(0o777)
    elif os.getuid():
        own = os.getuid()
        monkeypatch.setattr(os, "getuid", lambda: own + 1)
    else:
        os.chown(cache.folder, 12345, -1)
    assert (cache.holds(KEY), cache.read(KEY, content)) == (False, None)
    cache.keep(f"other-{'0' * 64}", {"a": b"bytes"})
    assert cache.size()[0] == 1
    monkeypatch.setenv("QEXPORT_CACHE", str(cache.folder))
    assert main(["cache"]) == 0
    assert "which are not read: " in capsys.readouterr().out


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=10_000)
    keys = [f"figure-{number:064d}" for number in range(5)]
    for number, key in enumerate(keys[:4]):
        cache.keep(key, {"a": bytes(2000)})
        os.utime(place(cache, key), (number, number))
    assert cache.read(keys[0], content)  # the oldest, but used now
    cache.keep(keys[4], {"a": bytes(2000)})
    assert [cache.holds(key) for key in keys] == [True, False, True, True, True]
    large = KEY.replace("0", "f")
    cache.keep(large, {"a": bytes(9000)})  # would leave room for next to nothing else
    assert not cache.holds(large)


@pytest.mark.parametrize("folder", [None, "a file", "below a file"])
def test_without_a_folder_that_can_be_written_nothing_is_kept(tmp_path: Path, folder: str | None) -> None:
    (tmp_path / "file").write_bytes(b"")
    places = {None: None, "a file": tmp_path / "file", "below a file": tmp_path / "file" / "cache"}
    cache = Cache(places[folder])
    cache.keep(KEY, {"a": b"bytes"})
    assert cache.read(KEY, content) is None
    assert cache.size() == (0, 0)
    cache.clear()
    assert (tmp_path / "file").read_bytes() == b""


def test_two_processes_write_and_read_at_once(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from qexport.system.cache import Cache
cache, seen = Cache(Path({str(tmp_path / "c")!r}), limit=3_000_000), 0
for number in range(60):
    key = f"figure-{{number % 7:064d}}"
    cache.keep(key, {{"a": bytes([number % 7]) * 500_000}})
    found = cache.read(key, lambda entry: entry.read("a"))
    assert found is None or found == bytes([number % 7]) * 500_000
    seen += found is not None
print(seen)
"""
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    seen = [int(each.communicate(timeout=60)[0]) for each in both]
    assert [each.returncode for each in both] == [0, 0]
    assert min(seen) > 0
    assert Cache(tmp_path / "c").size()[1] <= 3_000_000
    assert {path.suffix for path in (tmp_path / "c").iterdir()} == {SUFFIX}  # nothing that is half written


@dataclass(frozen=True)
class Part:
    """A noun with every kind of value that figures have."""

    where: Path
    rows: tuple[NDArray[np.float32], ...]
    right: NDArray[np.bool_] | None
    share: float | None
    named: dict[str, tuple[int, int]]


def test_arrays_come_back_to_the_last_bit() -> None:
    numbers = np.array([[0.1, np.nan, -0.0], [np.inf, 1e-45, 3.0]], np.float32)
    given = Part(Path("a/b"), (numbers, numbers[:0], numbers.T), np.array([True, False]), 1 / 3, {"x": (1, 2)})
    plain, block = packed(given)
    found = unpacked(Part, json.loads(json.dumps(plain)), block)
    assert [each.tobytes() for each in found.rows] == [each.tobytes() for each in given.rows]
    assert [each.shape for each in found.rows] == [(2, 3), (0, 3), (3, 2)]
    assert {each.dtype.str for each in found.rows} == {"<f4"}
    assert found.right is not None
    assert found.right.tolist() == [True, False]
    assert (found.where, found.share, found.named) == (given.where, given.share, given.named)
    found.rows[0][0, 0] = 1  # its own memory


@pytest.mark.parametrize(
    "array", [["|O", [1], 0], ["<f4", [-1], 0], ["<f4", [2], 0], ["<f4", [1], -4], ["<f4", [10**12], 0], ["?!", [1], 0]]
)
def test_arrays_that_nothing_writes_are_refused(array: list[Any]) -> None:
    plain: dict[str, Any] = {"where": "a", "rows": [{"/array": array}], "right": None, "share": 0.5, "named": {}}
    with pytest.raises((ValueError, TypeError)):
        unpacked(Part, plain, bytes(4))


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("QEXPORT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "qexport"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "qexport"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/qexport")
    monkeypatch.setenv("QEXPORT_CACHE", "here")
    assert cache_folder() == Path("here")


def test_conditions_change_with_code_packages_machine_and_variables(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before, flags = conditions(("onnxruntime",)), machine.cpu_flags() or frozenset()
    assert before == conditions(("onnxruntime",))
    made = [before]
    for name, value in (
        ("version", lambda package: "another" if package == "ultralytics" else "1"),
        ("processor_name", lambda: "another"),
        ("cpu_kind", lambda: "another"),
        ("cores", lambda: 999),
        ("cpu_flags", lambda *_: flags | {"another"}),
        ("__file__", str(tmp_path / "system" / "machine.py")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(machine, name, value)
            made.append(conditions(("onnxruntime",)))
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    made.append(conditions(("onnxruntime",)))
    assert len({json.dumps(each) for each in made}) == len(made)


@pytest.mark.parametrize("package", ["torch", "pillow", "onnx-ir", "onnxscript", "litert-converter", "tensorflow"])
def test_conditions_change_with_a_decoder_or_a_converter(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda _: "1")
    before = conditions()
    monkeypatch.setattr(machine, "version", lambda name: "2" if name == package else "1")
    assert conditions() != before


def test_the_verb_shows_and_clears_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("QEXPORT_CACHE", str(tmp_path))
    (tmp_path / "mine.txt").write_text("not an entry")
    Cache(tmp_path).keep(KEY, {"a": bytes(1_500_000)})
    assert main(["cache"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 1 entry, 1.5 MB of at most 2147 MB\n"
    assert main(["cache", "--clear"]) == 0
    assert capsys.readouterr().out == f"{tmp_path}: 1 entry, 1.5 MB removed\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_option_reaches_the_job() -> None:
    assert make_job({"model": "m.pt", "no_eval": True, "no_cache": True}).no_cache


def test_what_a_killed_run_has_begun_is_no_entry_and_goes(cache: Cache, tmp_path: Path) -> None:
    cache.keep(KEY, {"a": b"bytes"})
    begun = [place(cache).with_name(f".{letter * 32}{SUFFIX}") for letter in "ab"]
    for path in begun:
        path.write_bytes(b"half")
    os.utime(begun[0], (0, 0))  # the other one may be another run's, which is writing it
    assert cache.size()[0] == 1
    cache.keep(KEY, {"a": b"bytes"})
    assert [path.exists() for path in begun] == [False, True]
