"""Interrupt the demo export at every half second of its run: exit code 130, one line, no process and no file left.

Each moment is a run of its own from the start to the signal, which goes to the whole process group as from a terminal.
Linux only: it looks for processes in /proc.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(sys.executable).with_name("qexport")
DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
WORDS = (str(DEMO / "shapes26.pt"), "--int8", "--data", str(DEMO / "shapes" / "shapes.yaml"))
SMALL = ("--imgsz", "96", "--calib-images", "16")
FIRST = 0.1
"""Seconds until the command has surely taken the signals over; before, Python's default holds."""
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 129}


@dataclass(frozen=True)
class Ended:
    """How an interrupted run ended."""

    finished: bool
    code: int
    seconds: float
    errors: tuple[str, ...]
    left: tuple[str, ...]
    processes: int

    def faults(self, code: int) -> str:
        """What is not as it must be, "" for nothing."""
        found = {
            f"exit code {self.code}": self.code != code,
            f"{len(self.errors)} error lines": len(self.errors) != 1,
            f"left {', '.join(self.left)}": bool(self.left),
            f"{self.processes} processes live on": self.processes > 0,
        }
        return "; ".join(text for text, wrong in found.items() if wrong)


def interrupted(moment: float, number: signal.Signals) -> Ended:
    """Start the export, send the signal after `moment` seconds, and look at what is left."""
    with tempfile.TemporaryDirectory(prefix="interrupts-") as name:
        folder, temporary = Path(name), Path(name) / "tmp"
        temporary.mkdir()
        process = subprocess.Popen(
            [COMMAND, *WORDS, *SMALL, "--out", "out"],
            cwd=folder,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        )
        time.sleep(moment)
        finished, sent = process.poll() is not None, time.monotonic()
        if not finished:
            os.killpg(process.pid, number)
        _, errors = process.communicate()
        seconds = time.monotonic() - sent
        lines = tuple(line for line in errors.splitlines() if not line.startswith(("✓ ", "… ")))
        hidden = (path for path in folder.glob("out/**/.*"))
        left = tuple(str(path.relative_to(folder)) for path in (*temporary.iterdir(), *hidden))
        return Ended(finished, process.returncode, seconds, lines, left, living(process.pid))


def living(session: int) -> int:
    """How many processes of a session there are."""
    count = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = file.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        count += int(of) == session and state not in "ZX"
    return count


def main() -> int:
    """Sweep, print a line for each moment, and return 1 where one was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--start", type=float, default=FIRST, help="seconds")
    parser.add_argument("--step", type=float, default=0.5, help="seconds")
    parser.add_argument("--signal", choices=CODES, default="SIGINT")
    given = parser.parse_args()
    moment, faults, slowest = given.start, 0, 0.0
    while True:
        ended = interrupted(moment, signal.Signals[given.signal])
        if ended.finished:
            break
        wrong = ended.faults(CODES[given.signal])
        print(f"{moment:6.2f} s: {wrong or 'ok'}, {ended.seconds:.2f} s until it was gone", flush=True)
        faults, slowest = faults + bool(wrong), max(slowest, ended.seconds)
        moment += given.step
    print(f"the run is over after {moment:.1f} s; {faults} moments with faults, {slowest:.2f} s at most")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
