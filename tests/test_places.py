"""Where a process may find itself: it works, or says one line with a documented exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import INPUT, PREFIX, ROOT, TOLD, UNMEASURED

QEXPORT = (sys.executable, "-m", "qexport")
COMMAND = Path(sys.executable).with_name("qexport")
REFUSED = ("absent.pt", *UNMEASURED)
NOBODY = (
    "import pwd, sys\ndef nobody(number): raise KeyError(number)\npwd.getpwuid = nobody\n"
    "from qexport.__main__ import main\nsys.exit(main())"
)


def ran(*words: str, folder: Path, shell: str = 'exec "$@"', **variables: str) -> subprocess.CompletedProcess[str]:
    """A process that a shell starts, with a few variables and no others."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        ["sh", "-c", shell, "sh", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def check_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == INPUT, done.stderr
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith(TOLD))
    assert line.startswith(PREFIX)
    assert all(word in line for word in words), line


GONE = 'mkdir gone && cd gone && rmdir ../gone && exec "$@"'


def test_a_working_directory_that_was_deleted(tmp_path: Path) -> None:
    done = ran(*QEXPORT, "formats", folder=tmp_path, shell=GONE)
    assert (done.returncode, done.stderr) == (0, "")
    check_refused(ran(*QEXPORT, *REFUSED, folder=tmp_path, shell=GONE), "working directory", "change to another")


@pytest.mark.skipif(not COMMAND.is_file(), reason="the command is not installed")
def test_nothing_of_the_working_directory_is_imported(tmp_path: Path) -> None:
    others = {"torch", "numpy", "yaml", "typer", "rich", "onnx", "filelock", "usercustomize", "qexport"}
    for name in others | sys.stdlib_module_names:
        (tmp_path / f"{name}.py").write_text("import os; os._exit(99)")
    done = ran(str(COMMAND), "formats", folder=tmp_path, HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no numbers of users")
def test_no_home_and_no_such_user(tmp_path: Path) -> None:
    check_refused(ran(sys.executable, "-c", NOBODY, *REFUSED, folder=tmp_path), "absent.pt", "does not exist")
    bare = f"import tempfile\ndef none(**_): raise OSError(30, 'no')\ntempfile.mkdtemp = none\n{NOBODY}"
    check_refused(ran(sys.executable, "-c", bare, *REFUSED, folder=tmp_path), "home folder", "set HOME")


def test_warnings_as_errors_the_locale_c_and_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    words = (sys.executable, "-W", "error", "-m", "qexport", *REFUSED)
    check_refused(ran(*words, folder=tmp_path, LC_ALL="C", HOME="/proc"), "absent.pt")


def test_output_that_has_no_sign_for_what_is_printed(tmp_path: Path) -> None:
    done = ran(*QEXPORT, "--help", folder=tmp_path, PYTHONIOENCODING="ascii", HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert r"100 \xd7 (1" in done.stdout


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(tmp_path: Path, closed: str) -> None:
    done = ran(*QEXPORT, "--version", folder=tmp_path, shell=f'exec "$@" {closed}', HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in closed.split())
