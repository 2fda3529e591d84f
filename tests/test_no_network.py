"""A run on local files never asks for the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODEL = str(ROOT / "calibration_data" / "shapes26.pt")
DATA = str(ROOT / "calibration_data" / "shapes" / "shapes.yaml")

# Audit hooks cannot be removed or worked around from Python: every way through the socket module is seen.
# Local sockets (AF_UNIX, whose addresses are strings) reach nobody outside the machine.
GUARD = """
import sys
seen = []
def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        seen.append(event)
    elif event in ("socket.connect",) and not isinstance(arguments[1], (str, bytes)):
        seen.append(f"{event} {arguments[1]}")
sys.addaudithook(watch)
"""


def attempts(code: str, folder: Path, *words: str) -> list[str]:
    """Return the network calls that `code` makes in a process of its own, with `words` in sys.argv."""
    script = f"{GUARD}\n{code}\nprint('attempts:', *seen, sep='\\n')"
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("attempts:\n")[2].splitlines()


def test_the_guard_sees_connections_and_look_ups(tmp_path: Path) -> None:
    code = """
import contextlib, socket, urllib.request
with contextlib.suppress(OSError):
    socket.create_connection(("127.0.0.1", 9), timeout=1)
with contextlib.suppress(OSError):
    urllib.request.urlopen("http://nowhere.invalid/", timeout=1)
"""
    found = attempts(code, tmp_path)
    assert "socket.getaddrinfo" in found
    assert any(line.startswith("socket.connect ('127.0.0.1', 9") for line in found)


@pytest.mark.slow
def test_a_run_on_local_files_makes_none(tmp_path: Path) -> None:
    code = "from qexport.cli.app import main\nassert main(sys.argv[1:]) == 0"
    job = (MODEL, "--int8", "--data", DATA, "--imgsz", "96", "--calib-images", "4", "--no-latency", "--quiet")
    assert attempts(code, tmp_path, *job, "--out", str(tmp_path / "out")) == []
    assert (tmp_path / "out" / "shapes26_int8.tflite").is_file()
