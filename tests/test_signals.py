"""Ctrl-C, SIGTERM and SIGHUP at moments in which an exception would be swallowed: one line, the code, nothing left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DEMO
from refusals import TOLD

from qexport.cli.app import main
from qexport.execution.executor import Task
from qexport.execution.worker_process import worker_process
from qexport.system.guard import run_code
from qexport.system.signals import STOPPING

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
SECONDS = 20.0
"""No moment lasts that long; a process that goes on ends with 0 after it."""

START = """
import atexit, contextlib, ctypes, os, subprocess, sys, threading, time
from pathlib import Path
from qexport.system.files import make_folder, write_whole
from qexport.system.scratch import scratch_folder
from qexport.system.signals import run_process

def there():
    print("there", flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end:
        time.sleep(0.01)
"""
MOMENTS = {
    "plain code": "there()",
    "code that suppresses everything": """
while True:
    with contextlib.suppress(BaseException):
        there()
        break
""",
    "a callback of compiled code": """
kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
def order(a, b):
    there()
    return 0
ctypes.CDLL(None).qsort((ctypes.c_int * 2)(), 2, 4, kind(order))
""",
    "compiled code that does not return": """
print("there", flush=True)
ctypes.CDLL(None).sleep(20)
""",
    "a finaliser": """
class Owner:
    def __del__(self):
        there()
owner = Owner()
del owner
""",
    "an import": """
Path("slow_module.py").write_text("import __main__; __main__.there()")
sys.path.insert(0, ".")
try:
    import slow_module
except BaseException:
    pass
""",
    "a wait for a thread": """
thread = threading.Thread(target=there)
thread.start()
thread.join()
""",
    "the exit of the interpreter": "atexit.register(there)",
    "the wait for threads at exit": "threading.Thread(target=there).start()",
    "a library that took the wake-up descriptor": """
import signal
signal.set_wakeup_fd(-1)
there()
""",
    "a library that took the signals": """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)
there()
""",
}


def script(work: str) -> str:
    body = "\n".join(f"    {line}" for line in work.strip().splitlines())
    return f"{START}\ndef work():\n{body}\n    return 0\n\nsys.exit(run_process(work))\n"


AS_A_TERMINAL = """import os, signal, sys
for number in map(int, sys.argv[1].split()):
    signal.signal(number, signal.SIG_DFL)
for number in map(int, sys.argv[2].split()):
    signal.signal(number, signal.SIG_IGN)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""What a process begins with: signals as a terminal has them, but for those to be ignored.

A function that is called before it would run what libraries of this process do at a fork.
"""


def start(folder: Path, *words: str, ignored: tuple[signal.Signals, ...] = ()) -> subprocess.Popen[str]:
    """A process with a session and a folder for temporary files of its own, and signals as a terminal starts it."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    signals = [" ".join(str(int(number)) for number in numbers) for numbers in (CODES, ignored)]
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", AS_A_TERMINAL, *signals, sys.executable, *words],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(DEMO.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def living(session: int) -> list[str]:
    """Processes of a session that are not dead."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state not in "ZX":
            found.append(file.parent.name)
    return found


def ended(process: subprocess.Popen[str], number: signal.Signals, whole_group: bool = False) -> list[str]:
    """Send a signal; check what holds at every moment; return the lines on stderr before the last."""
    (os.killpg if whole_group else os.kill)(process.pid, number)
    output, errors = process.communicate(timeout=SECONDS - 5)
    assert process.returncode == CODES[number], errors
    *before, last = errors.splitlines()
    assert last.startswith("qexport: error: "), errors
    assert "Traceback" not in errors + output
    assert living(process.pid) == []
    return before


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", CODES, ids=lambda number: number.name)
def test_a_signal_ends_the_process_at_every_moment(tmp_path: Path, moment: str, number: signal.Signals) -> None:
    process = start(tmp_path, "-c", script(MOMENTS[moment]))
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    assert ended(process, number) == []


LEFT = """
with scratch_folder() as scratch:
    (scratch / "log").write_text("x")
    # As the worker does: it is for the first process to say what an interrupt means, in one line.
    child = "import signal, subprocess; signal.signal(signal.SIGINT, signal.SIG_IGN); subprocess.run(['sleep', '60'])"
    subprocess.Popen([sys.executable, "-c", child])
    folder = make_folder(Path("kept/out"))
    (folder / "finished.bin").write_text("whole")
    make_folder(Path("empty/out"))
    with write_whole(folder / "a.tflite") as file, write_whole(folder / "b_model") as below:
        file.write_text("half")
        below.mkdir()
        (below / "a.xml").write_text("half")
        time.sleep(0.3)
        there()
"""


@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "its group, as a terminal does"])
def test_nothing_is_left_behind(tmp_path: Path, whole_group: bool) -> None:
    process = start(tmp_path, "-c", script(LEFT))
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    assert len(living(process.pid)) == 3
    assert ended(process, signal.SIGINT, whole_group) == []
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["kept", "kept/out", "kept/out/finished.bin", "tmp"]


def test_many_signals_are_one(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", script(MOMENTS["plain code"]))
    assert process.stdout
    process.stdout.readline()
    for _ in range(5):
        process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert (process.returncode, errors) == (130, "qexport: error: interrupted\n")


STOPS = """
from qexport.system.signals import stop_request
with stop_request() as stopped:
    print("there", flush=True)
    end = time.monotonic() + 20
    while time.monotonic() < end and not (stopped() and {leaves}):
        time.sleep(0.01)
    print("state saved", flush=True)
"""


LIMITED = """
from qexport.system.signals import time_limit
with time_limit({seconds}, lambda: "Calibrating"), write_whole(Path("a.bin")) as file:
    file.write_text("half")
    there()
"""


def test_a_time_limit_ends_it_as_a_signal_does(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", script(LIMITED.format(seconds=0.3)))
    output, errors = process.communicate(timeout=10)
    assert (process.returncode, output) == (124, "there\n")
    expected = 'error: not finished in 0.3 s in the step "Calibrating": give a longer --timeout, or less to do ('
    assert errors.startswith(f"qexport: {expected}")
    assert errors.count("\n") == 1
    assert living(process.pid) == []
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_a_time_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    work = "from qexport.system.signals import time_limit\nwith time_limit(0.2, str):\n    pass\ntime.sleep(0.4)"
    process = start(tmp_path, "-c", script(work))
    assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 0


def test_a_run_that_is_out_of_time(tmp_path: Path) -> None:
    words = ("--int8", "--data", str(DEMO / "shapes" / "shapes.yaml"), "--imgsz", "64", "--timeout", "1.5")
    process = start(tmp_path, "-m", "qexport", str(DEMO / "shapes26.pt"), *words, "--out", "out")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 124
    (line,) = (line for line in errors.splitlines() if not line.startswith(TOLD))
    assert line.startswith("qexport: error: not finished in 1.5 s")
    assert living(process.pid) == []
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_what_is_no_time_limit(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["absent.pt", "--timeout", seconds]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--timeout" in line


def test_work_that_asks_for_it_ends_by_itself_on_the_first_interrupt(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", script(STOPS.format(leaves=True)))
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=10) == ("state saved\n", f"qexport: {STOPPING}\n")
    assert process.returncode == 0


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals) -> None:
    process = start(tmp_path, "-c", script(STOPS.format(leaves=False)))
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == f"qexport: {STOPPING}\n"
    assert ended(process, second) == []


def test_what_was_started_to_ignore_a_signal_ignores_it(tmp_path: Path) -> None:
    work = 'print("there", flush=True)\ntime.sleep(0.5)\nprint("done")'
    process = start(tmp_path, "-c", script(work), ignored=(signal.SIGHUP,))
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=10) == ("done\n", "")
    assert process.returncode == 0


def test_a_fork_is_ended_by_signals_as_any_process(tmp_path: Path) -> None:
    work = """
child = os.fork()
if child == 0:
    there()
    os._exit(0)
print(os.waitpid(child, 0)[1], flush=True)
"""
    process = start(tmp_path, "-c", script(work))
    assert process.stdout
    process.stdout.readline()
    (child,) = {*living(process.pid)} - {str(process.pid)}
    os.kill(int(child), signal.SIGINT)
    assert process.communicate(timeout=10) == (f"{int(signal.SIGINT)}\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_is_not_interrupted_has_its_own_code(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, "-c", script(f'atexit.register(print, "late")\nreturn {code}'))
    assert process.communicate(timeout=10) == ("late\n", "")
    assert process.returncode == code


def test_output_that_cannot_be_written_is_no_success(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    words, buffered = [sys.executable, "-m", "qexport", "--version"], {**os.environ, "PYTHONUNBUFFERED": ""}
    with full.open("w") as sink:
        done = subprocess.run(words, stdout=sink, stderr=subprocess.PIPE, text=True, timeout=20, env=buffered)
    assert done.returncode == 1
    assert done.stderr == "qexport: error: the output cannot be written (No space left on device)\n"


KEEPS_THE_GIL = """
import ctypes, pathlib
from qexport.system.files import write_whole
with write_whole(pathlib.Path("a.bin")) as file:
    file.write_text("half")
    ctypes.PyDLL(None).sleep(20)
"""
SECOND = f"""
from qexport.execution.executor import Task
from qexport.execution.worker_process import worker_process
with worker_process() as worker:
    worker.submit(Task(exec, ({KEEPS_THE_GIL!r},))).result()
"""


def test_the_second_process_ends_with_one_that_is_killed_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", SECOND)
    limit = time.monotonic() + 60
    while not list(tmp_path.glob(".*.bin")) and time.monotonic() < limit:
        time.sleep(0.05)
    assert len(living(process.pid)) == 3
    process.kill()
    process.communicate()
    limit = time.monotonic() + 10  # on an idle machine a hundredth of a second
    while living(process.pid) and time.monotonic() < limit:
        time.sleep(0.05)
    assert living(process.pid) == []
    assert list(tmp_path.glob(".*")) == list(tmp_path.glob("*.bin")) == []
    assert list((tmp_path / "tmp").iterdir()) == []


SEVERAL = """
from qexport.execution.executor import Task
from qexport.execution.workers import worker_processes
with worker_processes(2) as executor:
    futures = [executor.submit(Task(time.sleep, (20,))) for _ in range(3)]
    there()
"""


def test_an_interrupt_ends_every_process_that_scores(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", script(SEVERAL))
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    limit = time.monotonic() + 10
    while len(living(process.pid)) < 3 and time.monotonic() < limit:
        time.sleep(0.01)
    assert len(living(process.pid)) >= 3
    assert ended(process, signal.SIGINT, whole_group=True) == []


REPLACED = """
from qexport.execution.executor import Task, WorkerDiedError
from qexport.execution.workers import Workers
from qexport.system.signals import at_end

def scored():
    while True:
        with contextlib.suppress(WorkerDiedError):
            executor.submit(Task(time.sleep, (20,))).result()

def children():
    time.sleep(0.5)  # long enough to start another process for one that was killed
    Path("children").write_text(Path(f"/proc/self/task/{scores.native_id}/children").read_text())

executor = Workers(1)
executor.submit(Task(time.sleep, (0,))).result()
scores = executor._threads._threads.copy().pop()
at_end.append(children)
threading.Thread(target=scored, daemon=True).start()
there()
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads the children of a thread from /proc")
def test_no_process_is_replaced_while_a_signal_ends_the_run(tmp_path: Path) -> None:
    process = start(tmp_path, "-c", script(REPLACED))
    assert process.stdout
    assert process.stdout.readline() == "there\n"
    ended(process, signal.SIGINT)
    assert (tmp_path / "children").read_text() == ""


@pytest.mark.skipif(not hasattr(os, "getpgrp"), reason="there are no groups of processes")
def test_a_terminal_interrupts_the_first_process_alone() -> None:
    """An interpreter that is starting would say so itself, at length."""
    assert int(run_code("import os; print(os.getpgrp())").stdout) != os.getpgrp()
    with worker_process() as worker:
        assert worker.submit(Task(os.getpgrp)).result() != os.getpgrp()


def test_a_run_that_is_interrupted_while_the_second_process_converts(tmp_path: Path) -> None:
    """Ctrl-C in a terminal goes to all processes; the file that the second one has begun goes, finished ones stay."""
    words = ("--int8", "--data", str(DEMO / "shapes" / "shapes.yaml"), "--imgsz", "64", "--calib-images", "4")
    process = start(tmp_path, "-m", "qexport", str(DEMO / "shapes26.pt"), *words, "--out", "out")
    assert process.stderr
    process.stderr.readline()  # what is going to be done
    read = process.stderr.readline()
    assert re.fullmatch(r"✓ Reading model and data: \d+\.\d s\n", read), read
    time.sleep(0.5)
    assert len(living(process.pid)) == 3  # the second process has one that guards it
    begun = ended(process, signal.SIGINT, whole_group=True)
    assert all(line.startswith(("✓ ", "… ")) for line in begun)  # steps that were done
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    assert list((tmp_path / "tmp").iterdir()) == []
