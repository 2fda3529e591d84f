"""Measure INT8 of every task on the demo models of the repository and print the table of the README.

    make bench-tasks    (or: .venv/bin/python benchmarks/tasks.py [TASK …])

Runs the installed `qexport` on each task's demo model, calibrated on the rendered training images and scored on the
rendered validation images, in three formats from one calibration. Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from qexport.demo import DEMOS, Demo, demo_folder

QEXPORT = Path(sys.executable).with_name("qexport")
FORMATS = ("tflite", "onnx", "openvino")
LEAST_RETENTION = 0.97


def main() -> int:
    """Run everything, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(DEMOS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        reports = {task: run(DEMOS[task], Path(scratch) / task) for task in given.tasks}
    broken = print_table(reports)
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if broken else 0


def run(demo: Demo, out: Path) -> dict[str, Any]:
    """Export and score one task's model; its report."""
    model, data = demo_folder() / demo.model, demo_folder() / demo.data
    words = [str(QEXPORT), str(model), "--format", ",".join(FORMATS), "--int8", "--no-latency", "--quiet"]
    subprocess.run([*words, "--data", str(data), "--imgsz", str(demo.imgsz), "--out", str(out)], check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def print_table(reports: dict[str, dict[str, Any]]) -> list[str]:
    """Print Markdown, and return the bounds that are broken."""
    print("| task | metric | format | FP32 → INT8 | retention | fidelity | INT8 MACs |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    broken = []
    for task, report in reports.items():
        for entry in (entry for entry in report["artifacts"] if entry["precision"] == "int8"):
            accuracy = entry["accuracy"]
            print(
                f"| {task} | {report['evaluation']['metrics'][0]} | {entry['format']} "
                f"| {accuracy['map_float']:.4f} → {accuracy['map']:.4f} | {accuracy['retention']:.1%} "
                f"| {accuracy['fidelity']:.3f} | {entry['int8_mac_coverage']:.1%} |"
            )
            if accuracy["retention"] < LEAST_RETENTION:
                broken.append(f"{task} {entry['format']}: retention")
    return broken


if __name__ == "__main__":
    sys.exit(main())
