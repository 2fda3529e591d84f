"""One run of a sweep in a process of its own: here a few lines that stand in for an export."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import DEMO

from qexport.errors import InputError
from qexport.job.options import read_config
from qexport.job.sweep_file import read_sweep
from qexport.progress import Silent
from qexport.sweeps import one_run
from qexport.sweeps.one_run import RunRequest, run_export
from qexport.sweeps.run_record import RunRecord, load_run, save_run
from qexport.sweeps.turns import Turns

WORDS = "import sys; print(*sys.argv[1:], sep='\\n', file=open('words', 'w'))"


@pytest.fixture
def request_(tmp_path: Path) -> RunRequest:
    folder = tmp_path / "out" / "m_onnx_int8"
    options = {"model": "mö.pt", "format": "onnx", "imgsz": [64, 96]}
    return RunRequest("m onnx int8", folder, folder / "report.html", options, "f" * 64, start=tmp_path)


def run(request: RunRequest, code: str, monkeypatch: pytest.MonkeyPatch) -> RunRecord:
    monkeypatch.setattr(one_run, "COMMAND", f"{code}\nprint(0)")
    record = run_export(request, progress=Silent())
    assert load_run(request.folder) == record
    return record


def test_it_is_the_command_with_a_config(request_: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run(request_, WORDS, monkeypatch)
    assert (record.exit_code, record.line, record.alone, record.complete) == (0, "", True, True)
    folder = str(request_.folder)
    assert (tmp_path / "words").read_text().splitlines() == [
        *("--config", f"{folder}/options.yaml", "--out", folder, "--report", f"{folder}/report.html", "--quiet"),
    ]
    assert yaml.safe_load((request_.folder / "options.yaml").read_text(encoding="utf-8")) == request_.options


def test_whom_the_user_trusts_is_typed_and_stands_in_no_file(
    request_: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s.yaml").write_text(f"model: {DEMO}\nformat: onnx\n")
    told, trusting = (read_sweep(tmp_path / "s.yaml", trust=trust).runs[0] for trust in (False, True))
    assert told.job
    assert trusting.job
    assert (told.job.trust_checkpoint, trusting.job.trust_checkpoint) == (False, True)
    run(replace(request_, options=trusting.options), WORDS, monkeypatch)
    assert (tmp_path / "words").read_text().splitlines()[-1] == "--trust-checkpoint"
    read_config(request_.folder / "options.yaml")  # which refuses a file that says so


def test_links_in_a_folder_of_runs_are_not_followed(request_: RunRequest, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    save_run(RunRecord("0" * 64), elsewhere)
    request_.folder.parent.mkdir()
    request_.folder.symlink_to(elsewhere)
    with pytest.raises(InputError, match="m_onnx_int8 is a link"):
        run_export(request_, progress=Silent())
    assert [each.name for each in elsewhere.iterdir()] == ["sweep-run.json"]
    for name in ("room", "door"):
        (tmp_path / f".turns-{platform.node()}-{name}").symlink_to(tmp_path / "made")
    assert not Turns(tmp_path).can_be_taken()
    assert not (tmp_path / "made").exists()


def test_runs_side_by_side_take_turns_where_files_can_be_locked(
    request_: RunRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = replace(request_, turns=tmp_path)
    assert run(shared, WORDS, monkeypatch).alone
    assert (tmp_path / "words").read_text().splitlines()[-2:] == ["--turns", str(tmp_path)]
    monkeypatch.setattr(Turns, "can_be_taken", lambda _: False)
    assert not run(shared, WORDS, monkeypatch).alone
    assert "--turns" not in (tmp_path / "words").read_text()


@pytest.mark.parametrize(
    ("code", "exit_code", "line"),
    [
        (
            "import sys; sys.exit('a library: one\\nqexport: error: no x: take y\\nqexport: error: z')",
            1,
            "no x: take y",
        ),
        ("import sys; print('Segmentation', file=sys.stderr); sys.exit(9)", 9, "Segmentation"),
        ("import os; os.kill(os.getpid(), 9)", 137, "its process was ended by SIGKILL: is there enough memory"),
        ("import os; os._exit(0)", 137, "its process was ended by SIGKILL"),  # whoever reaps a child keeps its code
        ("import sys; sys.stderr.buffer.write(b'\\xff\\n'); sys.exit(3)", 3, "\ufffd"),
    ],
)
def test_how_it_ends_is_kept(
    code: str, exit_code: int, line: str, request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = run(request_, code, monkeypatch)
    assert record.exit_code == exit_code
    assert record.line.startswith(line)


def test_what_is_there_of_the_same_run_stays_and_of_another_goes(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = request_.folder / "shapes_int8.onnx.finished.json"
    request_.folder.mkdir(parents=True)
    save_run(RunRecord(request_.fingerprint), request_.folder)
    kept.touch()
    run(request_, "", monkeypatch)
    assert kept.exists()
    run(replace(request_, fingerprint="0" * 64), "", monkeypatch)
    assert not kept.exists()
    assert request_.folder.parent.exists()


def test_a_folder_that_no_sweep_has_made_is_left_as_it_is(
    request_: RunRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    request_.folder.mkdir(parents=True)
    (request_.folder / "mine.txt").touch()
    run(request_, "", monkeypatch)
    assert (request_.folder / "mine.txt").exists()
    (request_.folder.parent / "file").touch()
    with pytest.raises(InputError):
        run_export(replace(request_, folder=request_.folder.parent / "file"), progress=Silent())


DRIVER = """
import sys, time
from qexport.__main__ import main
from qexport.sweeps import one_run
from qexport.system.signals import at_end
at_end.append(lambda: time.sleep(0.5))  # in which no run may begin, nor get a record that says it ended by itself
one_run.COMMAND = '''
import json, os, sys, time
from pathlib import Path
out = Path(sys.argv[sys.argv.index("--out") + 1])
with open("began", "a") as log:
    print(out.name, os.getpid(), file=log, flush=True)
if out.name == "m_onnx_fp16" and not Path("go").exists():
    time.sleep(600)
from reports import artifact, content
(out / "report.json").write_text(json.dumps({**content(artifact("fp16")), "qexport": VERSION}))
print(0)
'''.replace("VERSION", repr(__import__("qexport").__version__))
sys.exit(main())
"""


def begun(folder: Path) -> list[list[str]]:
    """Name and process of each run that has begun."""
    log = folder / "began"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def wait_for(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.02)


def alive(pid: str) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)], ids=["kill -9", "Ctrl-C"])
def test_a_sweep_that_is_ended_takes_its_runs_with_it_and_goes_on_with_the_others(
    sent: signal.Signals, code: int, tmp_path: Path
) -> None:
    grid = {"models": str(tmp_path / "m.pt"), "formats": ["openvino", "onnx", "tflite"], "precisions": ["fp16"]}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({**grid, "no-eval": True, "no-latency": True}))
    (tmp_path / "m.pt").write_bytes((DEMO / "shapes26.pt").read_bytes())
    path = os.pathsep.join((str(DEMO.parent), str(DEMO.parent / "tests")))
    command = [sys.executable, "-c", DRIVER, "sweep", "sweep.yaml", "--out", "out", "--quiet"]
    settings = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": path}}
    first = subprocess.Popen(command, **settings)  # type: ignore[call-overload]
    wait_for(lambda: len(begun(tmp_path)) == 2)
    first.send_signal(sent)
    assert first.wait() == code
    names, pids = zip(*begun(tmp_path), strict=True)
    assert names == ("m_openvino_fp16", "m_onnx_fp16")
    wait_for(lambda: not alive(pids[1]))
    ended = load_run(tmp_path / "out" / "m_onnx_fp16")
    assert ended is not None
    assert (ended.exit_code, ended.line) == (None, "")
    (tmp_path / "go").touch()
    assert subprocess.run(command, **settings, check=False).returncode == 0  # type: ignore[call-overload]
    assert [name for name, _ in begun(tmp_path)[2:]] == ["m_onnx_fp16", "m_tflite_fp16"]
