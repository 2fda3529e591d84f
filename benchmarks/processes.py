"""Do two processes of torchrun train as one does, whatever ends one of them?

    .venv/bin/python benchmarks/processes.py [--epochs 4] [--keep FOLDER]

The demo model at 64 pixels, on the CPU: alone; in two processes; in two of which one is killed behind the first epoch,
and then resumed alone; in two that Ctrl-C ends there, resumed in two. Prints the largest difference between what was
learned each time and alone. Exits with 1 where that is more than the order of sums explains, or where a run does not
end as docs/training.md says.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from qexport.training.container import unpack

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
STATE, FILE = "train_tflite.state", "shapes26_qat.pt"
MAX_APART = 1e-3
"""Of what is learned, in its own units: steps of weights, logarithms of scales."""


def main() -> int:
    """Run all of them, print what they came to, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--keep", type=Path, help="leave everything in this folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qexport-processes-") as scratch:
        folder = (given.keep or Path(scratch)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        return trained(folder, given.epochs)


def trained(folder: Path, epochs: int) -> int:
    """Train in every way, and return the exit code."""
    faults = []
    for name, processes, number, resumed in (
        ("alone", 1, None, 0),
        ("both", 2, None, 0),
        ("killed", 2, signal.SIGKILL, 1),
        ("interrupted", 2, signal.SIGINT, 2),
    ):
        out = folder / name
        code, errors = run(out, epochs, processes, number)
        told = [line for line in errors.splitlines() if line.startswith("qexport: error:")]
        faults += [f"{name}: {each}" for each in misbehaved(out, code, told, number)]
        if resumed:
            code, errors = run(out, epochs, resumed, None, "--resume")
            faults += [f"{name}, resumed: exit code {code}\n{errors}"] if code else []
        apart = difference(folder / "alone", out)
        faults += [f"{name}: {apart} from what one process learns"] if not apart <= MAX_APART else []
        sys.stdout.write(f"{name}: at most {apart:.2g} from alone; {' / '.join(told) or 'no errors'}\n")
        sys.stdout.flush()
    sys.stdout.writelines(f"fault: {each}\n" for each in faults)
    return int(bool(faults))


def run(out: Path, epochs: int, processes: int, number: signal.Signals | None, *more: str) -> tuple[int, str]:
    """Exit code and standard error of a run; `number`: what ends it behind the first epoch."""
    words = ("qat", str(DEMO / "shapes26.pt"), "--data", str(DEMO / "shapes" / "shapes.yaml"), "--imgsz", "64")
    quick = ("--calib-images", "32", "--effort", "none", "--batch", "4", "--epochs", str(epochs), "--patience", "0")
    start = TORCHRUN if processes > 1 else (sys.executable,)
    command = [*start, "-m", "qexport", *words, *quick, "--quiet", "--out", str(out), *more]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while number and process.poll() is None:
        time.sleep(0.01)
        if (out / STATE).exists():
            os.kill(process.pid if number == signal.SIGINT else second_of(process.pid), number)
            break
    _, errors = process.communicate()
    return process.returncode, errors


def second_of(launcher: int) -> int:
    """Process of rank 1 that a launcher has started (where there is /proc)."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split()
    return next(int(each) for each in children if b"\0RANK=1\0" in Path(f"/proc/{each}/environ").read_bytes())


def misbehaved(out: Path, code: int, told: list[str], number: signal.Signals | None) -> list[str]:
    """What is not as documented of how a run ended."""
    lines = {
        None: "",
        signal.SIGKILL: "another of the 2 processes has ended|terminated",
        signal.SIGINT: "interrupted: .* has what .* epochs for tflite came to",
    }
    said = [] if number is None else [line for line in told if re.search(lines[number], line)]
    found = [] if (code == 0) == (number is None) else [f"exit code {code}"]
    found += [] if len(told) == len(said) == int(number is not None) else [f"it said {told}"]
    found += [] if (out / FILE).exists() == (number != signal.SIGKILL) else ["a checkpoint too many, or none"]
    return found


def difference(one: Path, other: Path) -> float:
    """The largest one between any two numbers that were learned."""
    (_, expected), (_, found) = (unpack((folder / STATE).read_bytes()) for folder in (one, other))
    names = [name for name in expected if name.startswith(("weights/", "biases/", "scales/"))]
    return max(float(np.abs(expected[name] - found[name]).max(initial=0)) for name in names)


if __name__ == "__main__":
    sys.exit(main())
