"""A run on local files never asks for the network, and leaves nothing in the home folder but qexport's own cache.

What compiled code asks for no hook of Python sees. But whatever reports to its maker keeps an identity or a queue
somewhere, so the home folder tells of that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from elsewhere import Classifier, settled, write
from small_models import saved, small_model

from qexport.compat import quiet as offline
from qexport.system.cache import SUFFIX

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "calibration_data" / "shapes" / "images"

# Audit hooks cannot be removed or worked around from Python: every way through the socket module is seen, in the
# processes that a run starts, too. Local sockets (AF_UNIX, whose addresses are strings) reach nobody outside the
# machine.
GUARD = """
import os, sys
def watch(event, arguments, log=os.environ["GUARD_LOG"]):
    seen = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
    if seen or event == "socket.connect" and not isinstance(arguments[1], (str, bytes)):
        with open(log, "a") as file:
            print(event, arguments[1:] if event == "socket.connect" else arguments[:1], file=file)
        raise OSError("the network is not for this process")
sys.addaudithook(watch)
"""


class Watched:
    """What a process of its own asked of the network, and what it left in a fresh home folder."""

    def __init__(self, code: str, folder: Path, *words: str) -> None:
        for name in ("home", "guard", "tmp"):
            (folder / name).mkdir()
        (folder / "guard" / "sitecustomize.py").write_text(GUARD)
        # Nothing of this process: importing qexport has set switches here.
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp")}
        environment |= {"PYTHONPATH": str(folder / "guard"), "GUARD_LOG": str(folder / "log"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=900)
        assert done.returncode == 0, done.stderr
        log = folder / "log"
        self.attempts = log.read_text().splitlines() if log.exists() else []
        self.home = sorted(str(path.relative_to(folder / "home")) for path in (folder / "home").rglob("*"))
        self.leftovers = sorted(path.name for path in (folder / "tmp").iterdir())
        self.output = done.stdout


def test_the_guard_sees_connections_and_look_ups(tmp_path: Path) -> None:
    code = """
import contextlib, pathlib, socket, subprocess, sys, urllib.request
with contextlib.suppress(OSError):
    socket.create_connection(("127.0.0.1", 9), timeout=1)
with contextlib.suppress(OSError):
    urllib.request.urlopen("http://nowhere.invalid/", timeout=1)
lookup = "import socket; socket.gethostbyname('child.invalid')"
subprocess.run([sys.executable, "-c", lookup], stderr=subprocess.DEVNULL)
(pathlib.Path.home() / "trace").write_text("x")
"""
    found = Watched(code, tmp_path)
    assert any("127.0.0.1" in line for line in found.attempts)
    assert any("nowhere.invalid" in line for line in found.attempts)
    assert any("child.invalid" in line for line in found.attempts)
    assert found.home == ["trace"]


def test_runtimes_report_nothing_once_qexport_is_imported(tmp_path: Path) -> None:
    """OpenVINO reports on import, ONNX Runtime from compiled code, NNCF through OpenVINO's package."""
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
    code = """
import qexport
import onnxruntime
import openvino
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__.endswith("telemetry_stub"), telemetry_utils.tm
"""
    found = Watched(code, tmp_path)
    assert (found.attempts, found.home, found.leftovers) == ([], [], [])


def test_settings_and_caches_go_with_the_process(tmp_path: Path) -> None:
    code = """
from qexport.compat.quiet import quiet_libraries
quiet_libraries()
import ultralytics
from ultralytics.utils import SETTINGS_FILE
import gc, matplotlib.font_manager, os
print(SETTINGS_FILE.is_file(), os.path.isdir(os.environ["TORCHINDUCTOR_CACHE_DIR"]), gc.get_threshold()[0] > 10_000)
"""
    found = Watched(code, tmp_path)
    assert found.output == "True True True\n"  # they are kept, but not for good
    assert (found.attempts, found.home, found.leftovers) == ([], [], [])


@pytest.mark.parametrize("kept", ["settings", "variable"])
def test_settings_of_the_user_are_used(kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("YOLO_CONFIG_DIR", raising=False)
    monkeypatch.delitem(sys.modules, "ultralytics", raising=False)
    if kept == "variable":
        monkeypatch.setenv("YOLO_CONFIG_DIR", "mine")
    else:
        place = offline._ultralytics_settings()
        place.parent.mkdir(parents=True)
        place.write_text("{}")
    offline.quiet_ultralytics()
    assert os.environ.get("YOLO_CONFIG_DIR") == ("mine" if kept == "variable" else None)


@pytest.mark.slow
def test_a_run_on_local_files_makes_none(tmp_path: Path) -> None:
    """Every runtime that is installed, the second process, the validator, a network from elsewhere, looks at files."""
    runtimes = {"onnx": "onnxruntime", "openvino": "openvino", "tflite": "litert_torch"}
    formats = [name for name, module in runtimes.items() if _has(module)]
    for split in ("train", "val"):
        chosen = sorted((IMAGES / split).glob("*.jpg"))[:2]
        (tmp_path / f"{split}.txt").write_text("\n".join(map(str, chosen)))
    names = ["circle", "square", "triangle", "star", "ring", "cross"]
    data = {"path": str(tmp_path), "train": "train.txt", "val": "val.txt", "names": names}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(data))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the older exporter is deprecated
        network = write(settled(Classifier()), tmp_path / "network.onnx")
    code = """
import json, sys
from qexport.cli.app import main
for words in json.loads(sys.argv[1]):
    assert main(words) == 0, words
"""
    quick = ("--no-latency", "--quiet", "--effort", "none")
    out, described = tmp_path / "out", ("--data", str(tmp_path / "data.yaml"))
    model = saved(small_model("Detect", nc=len(names), end2end=True, reg_max=1), tmp_path / "small.pt")
    job = (str(model), "--int8", *described, "--imgsz", "64", *quick, "--format", ",".join(formats))
    report = str(out / "report.json")
    runs = (
        (*job, "--report", str(tmp_path / "page.html"), "--out", str(out)),
        ("verify", str(out / "small_int8.onnx")),
        ("diff", report, report),
        ("report", report, "--out", str(tmp_path / "again.html")),
        (
            str(network),
            "--int8",
            "--data",
            str(tmp_path / "train.txt"),
            *quick,
            "--format",
            "onnx",
            "--out",
            str(tmp_path / "other"),
        ),
    )
    found = Watched(code, tmp_path, json.dumps(runs))
    assert found.attempts == []
    assert {".cache/qexport", *found.home[:2]} == {".cache", ".cache/qexport"}
    assert all(each.endswith(SUFFIX) for each in found.home[2:])
    assert not [name for name in found.leftovers if not name.startswith("torchinductor_")]  # torch's own cache
    assert len(list(out.glob("small_int8*.manifest.json"))) == len(formats)


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None
