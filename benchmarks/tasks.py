"""Measure INT8 of every task on the demo models of the repository and print the table of docs/measured.md.

    make bench-tasks    (or: .venv/bin/python benchmarks/tasks.py [TASK …])

Runs the installed `qexport` on each task's demo model, calibrated on the rendered training images and scored on the
rendered validation images, in three formats from one calibration; then once more for the integer-only TFLite file.
Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qexport.cli.demo import DEMOS, Demo, demo_folder

QEXPORT = Path(sys.executable).with_name("qexport")
RUNS = {"int8": "tflite,onnx,openvino", "int8-full": "tflite"}
"""Precision → formats."""
MIN_RETENTION = 0.97


def main() -> int:
    """Run everything, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(DEMOS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        reports = {
            task: [run(DEMOS[task], precision, Path(scratch) / task / precision) for precision in RUNS]
            for task in given.tasks
        }
    broken = print_table(reports)
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if broken else 0


def run(demo: Demo, precision: str, out: Path) -> dict[str, Any]:
    """Export and score one task's model; its report."""
    model, data = demo_folder() / demo.model, demo_folder() / demo.data
    words = [str(QEXPORT), str(model), "--format", RUNS[precision], "--precision", precision, "--no-latency", "--quiet"]
    subprocess.run([*words, "--data", str(data), "--imgsz", str(demo.imgsz), "--out", str(out)], check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def print_table(reports: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Print Markdown, and return the bounds that are broken."""
    print("| task | metric | format | FP32 → INT8 | retention | fidelity | INT8 MACs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    broken = []
    for task, report in ((task, report) for task, several in reports.items() for report in several):
        for entry in (entry for entry in report["artifacts"] if entry["precision"] in RUNS):
            accuracy, name = entry["accuracy"], f"{entry['format']} {entry['precision']}"
            print(
                f"| {task} | {report['evaluation']['metrics'][0]} | {name} "
                f"| {accuracy['map_float']:.4f} → {accuracy['map']:.4f} | {accuracy['retention']:.1%} "
                f"| {accuracy['fidelity']:.3f} | {entry['int8_mac_coverage']:.1%} |"
            )
            if accuracy["retention"] < MIN_RETENTION:
                broken.append(f"{task} {name}: retention")
    return broken


if __name__ == "__main__":
    sys.exit(main())
