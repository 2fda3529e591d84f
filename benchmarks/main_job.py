"""Measure the main job on the real YOLO26n, and write its table (results.json, docs/measured.md).

    make bench            (or: .venv/bin/python benchmarks/main_job.py [--shared DIR] [--results FILE])

Runs the installed `qexport` for both heads, calibrated on coco128 and on the four training images of coco8, scored on
coco-val100, with `--effort none`; then once more without evaluation for time and peak memory. Exits with 1 if a bound
is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import SHARED, begin, ended, keep, missed, table
from tables import Column

QEXPORT = Path(sys.executable).with_name("qexport")
HEADS = ("end2end", "one2many")
MIN_FIDELITY = {"coco128": 0.90, "coco8": 0.88}
MIN_RETENTION = 0.965
MAX_LATENCY_RATIO = 0.45
MAX_BYTES = 3.2e6
MIN_COVERAGE = 0.95
MAX_SECONDS = 60.0
MAX_GIGABYTES = 2.0
ABOUT = "YOLO26n at 640 pixels as TFLite on LiteRT, `--effort none`, scored on coco-val100"
BOUNDS = (
    f"fidelity {MIN_FIDELITY['coco128']:.2f}, with the four images of coco8 {MIN_FIDELITY['coco8']:.2f}; "
    f"retention {MIN_RETENTION:.1%}; INT8 / FP32 {MAX_LATENCY_RATIO:.2f}, which was set for CPUs with VNNI; "
    f"{MAX_BYTES / 1e6:.1f} MB; {MIN_COVERAGE:.0%} of the arithmetic in INT8; "
    f"{MAX_SECONDS:.0f} s and {MAX_GIGABYTES:.0f} GB without evaluation"
)
COLUMNS = (
    Column("calibrated on"),
    Column("head"),
    Column("fidelity", "{:.3f}"),
    Column("retention", "{:.1%}"),
    Column("mAP50-95 FP32 → INT8", "{:.4f} → {:.4f}"),
    Column("INT8 / FP32 p50", "{:.2f}"),
    Column("MB", "{:.2f}"),
    Column("INT8 MACs", "{:.1%}"),
)


@dataclass(frozen=True)
class Row:
    """One run: what it was of and its figures, as in report.json."""

    head: str
    data: str
    artifact: dict[str, Any]

    @property
    def ratio(self) -> float:
        """INT8 latency as a share of FP32's, medians of one interleaved run."""
        return float(self.artifact["latency_ms"]["p50"] / self.artifact["latency_float_ms"]["p50"])

    def broken(self) -> list[str]:
        """Bounds that this run does not hold."""
        accuracy, of = self.artifact["accuracy"], f"{self.data} {self.head}:"
        return [
            *missed(f"{of} fidelity", accuracy["fidelity"], least=MIN_FIDELITY[self.data]),
            *missed(f"{of} retention", accuracy["retention"], least=MIN_RETENTION, form=".1%"),
            *missed(f"{of} INT8 / FP32", self.ratio, most=MAX_LATENCY_RATIO, form=".2f"),
            *missed(f"{of} MB", self.artifact["bytes"] / 1e6, most=MAX_BYTES / 1e6, form=".2f"),
            *missed(f"{of} INT8 MACs", self.artifact["int8_mac_coverage"], least=MIN_COVERAGE, form=".1%"),
        ]

    def cells(self) -> list[Any]:
        """Its line of the table."""
        accuracy = self.artifact["accuracy"]
        scores = [accuracy["map_float"], accuracy["map"]]
        size, inside = self.artifact["bytes"] / 1e6, self.artifact["int8_mac_coverage"]
        return [self.data, self.head, accuracy["fidelity"], accuracy["retention"], scores, self.ratio, size, inside]


def main() -> int:
    """Run everything, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    given, bench = begin(parser, "make bench")
    shared = given.shared
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        rows = [run(shared, head, data, Path(scratch)) for data in MIN_FIDELITY for head in HEADS]
        seconds, gigabytes = bare(shared, Path(scratch))
    broken = [name for row in rows for name in row.broken()]
    broken += missed("seconds without evaluation", seconds, most=MAX_SECONDS, form=".0f")
    broken += missed("GB without evaluation", gigabytes, most=MAX_GIGABYTES, form=".2f")
    cost = f"Without evaluation: {seconds:.0f} s, {gigabytes:.2f} GB for both processes together."
    keep(bench, table(bench, "main-job", ABOUT, COLUMNS, [row.cells() for row in rows], BOUNDS, broken, [cost]))
    return ended(broken)


def run(shared: Path, head: str, data: str, scratch: Path) -> Row:
    """Export, score and time one configuration."""
    out = scratch / f"{head}-{data}"
    evaluation = shared / "datasets/coco-val100/coco-val100.yaml"
    call(shared, data, out, "--head", head, "--eval-data", str(evaluation))
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return Row(head, data, next(a for a in report["artifacts"] if a["precision"] == "int8"))


def bare(shared: Path, scratch: Path) -> tuple[float, float]:
    """Wall-clock seconds of the command without evaluation, and the peak of what its processes hold, gigabytes."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen(words(shared, "coco128", scratch / "bare", "--no-eval"))
    while process.poll() is None:
        peak = max(peak, sum(map(held, tree(process.pid))))
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit("the run without evaluation failed")
    return time.perf_counter() - started, peak / 1e6


def tree(pid: int) -> list[int]:
    """A process and those that it started (Linux)."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in tree(int(child)))]


def held(pid: int) -> int:
    """Kilobytes that a process holds; what it shares with others counts in parts."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def call(shared: Path, data: str, out: Path, *options: str) -> None:
    """Run `qexport` on YOLO26n."""
    subprocess.run(words(shared, data, out, *options), check=True)


def words(shared: Path, data: str, out: Path, *options: str) -> list[str]:
    """The command line."""
    given = [str(QEXPORT), str(shared / "models/yolo26n.pt"), "--format", "tflite", "--int8", "--effort", "none"]
    return [*given, "--quiet", "--data", str(shared / f"datasets/{data}/{data}.yaml"), "--out", str(out), *options]


if __name__ == "__main__":
    sys.exit(main())
