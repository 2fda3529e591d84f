"""YOLO26n on photographs: the bounds that the project has set itself. `make bench` has all of them, and both heads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
MODEL = SHARED / "models" / "yolo26n.pt"
COCO128 = SHARED / "datasets" / "coco128" / "coco128.yaml"
VAL100 = SHARED / "datasets" / "coco-val100" / "coco-val100.yaml"
MISSING = [str(path) for path in (MODEL, COCO128, VAL100) if not path.is_file()]
PROC = Path("/proc/self/status")
MIB = 2**10  # VmHWM is in KiB

# The peak is read from inside: what wait4 says of a child includes its parent's memory at the moment of the fork.
PEAK = """
import pathlib
lines = pathlib.Path("/proc/self/status").read_text().splitlines()
print("peak", next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
COMMAND = f"""
import sys
from qexport.cli.app import main
code = main(sys.argv[1:])
{PEAK}
sys.exit(code)
"""
CALIBRATE = f"""
import sys
from pathlib import Path
from qexport.compat.quiet import quiet_libraries
quiet_libraries()
from qexport.calibration.calibrate import calibrate
from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.data.choice import take
from qexport.data.dataset import image_list, load_dataset
from qexport.programs.heads import split_head
from qexport.programs.capture import capture
size = (320, 320)
images = take(image_list(load_dataset(Path(sys.argv[2])), "train"), count=int(sys.argv[3]))
assert len(images) == int(sys.argv[3])
program = capture(split_head(load_checkpoint(Path(sys.argv[1])).module, None, size), size)
calibrate(program, images, lambda: None)
{PEAK}
"""

QUICK = ("--no-latency", "--quiet", "--effort", "none")
SOME = ("--calib-images", "48")
pytestmark = [
    pytest.mark.real,
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"not on this machine: {', '.join(MISSING)}"),
]


def python(code: str, *words: str) -> int:
    """Run code in a process of its own and return its peak memory in KiB."""
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.splitlines()[-1].removeprefix("peak "))


def export(folder: Path, data: Path, *options: str) -> tuple[dict[str, Any], int]:
    """Return the INT8 entry of a run's report, and the run's peak memory in KiB."""
    job = (str(MODEL), "--format", "tflite", "--int8", "--data", str(data), "--imgsz", "640", *QUICK)
    peak = python(COMMAND, *job, *options, "--out", str(folder))
    entries = json.loads((folder / "report.json").read_text())["artifacts"]
    return next(entry for entry in entries if entry["precision"] == "int8"), peak


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], int]:
    """YOLO26n, end-to-end head, calibrated on some of the images of coco128: folder, INT8 entry, peak."""
    folder = tmp_path_factory.mktemp("unmeasured")
    return folder, *export(folder, COCO128, "--no-eval", *SOME)


@pytest.mark.skipif(not PROC.is_file(), reason="peak memory is read from /proc")
def test_peak_memory(unmeasured: tuple[Path, dict[str, Any], int]) -> None:
    assert unmeasured[2] <= 2048 * MIB


@pytest.mark.skipif(not PROC.is_file(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_number_of_images() -> None:
    few, many = (python(CALIBRATE, str(MODEL), str(COCO128), count) for count in ("16", "64"))
    assert many <= 1.1 * few


def test_coco128(unmeasured: tuple[Path, dict[str, Any], int], tmp_path: Path) -> None:
    table = str(unmeasured[0] / "calibration.npz")
    entry, _ = export(tmp_path, COCO128, *SOME, "--eval-data", str(VAL100), "--calibration", table)
    assert entry["accuracy"]["images"] == 100
    assert entry["accuracy"]["fidelity"] >= 0.90
    assert entry["accuracy"]["retention"] >= 0.965
    assert entry["bytes"] <= 3_200_000
    assert entry["int8_mac_coverage"] >= 0.95
