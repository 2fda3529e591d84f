"""Measure INT8 of every task on the repository's demo models, and write its table (results.json, docs/measured.md).

    make bench-tasks    (or: .venv/bin/python benchmarks/tasks.py [TASK …] [--results FILE])

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

from results import begin, ended, keep, missed, table
from tables import Column

from qexport.cli.demo import DEMOS, Demo, demo_folder

QEXPORT = Path(sys.executable).with_name("qexport")
RUNS = {"int8": "tflite,onnx,openvino", "int8-full": "tflite"}
"""Precision → formats."""
MIN_RETENTION = 0.97
ABOUT = (
    "the small models of `calibration_data/`, where all images are rendered, default effort, calibrated on the train "
    "split, scored on the 100 images or 192 crops of the val split"
)
COLUMNS = (
    Column("task"),
    Column("metric"),
    Column("format"),
    Column("FP32 → INT8", "{:.4f} → {:.4f}"),
    Column("retention", "{:.1%}"),
    Column("fidelity", "{:.3f}"),
    Column("INT8 MACs", "{:.1%}"),
)


def main() -> int:
    """Run everything, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(DEMOS))
    given, bench = begin(parser, "make bench-tasks")
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        reports = {
            task: [run(DEMOS[task], precision, Path(scratch) / task / precision) for precision in RUNS]
            for task in given.tasks
        }
    rows = [row for task, several in reports.items() for report in several for row in rows_of(task, report)]
    broken = [
        said
        for task, _, name, _, kept, *_ in rows
        for said in missed(f"{task} {name}: retention", kept, least=MIN_RETENTION, form=".1%")
    ]
    keep(bench, table(bench, "tasks", ABOUT, COLUMNS, rows, f"retention {MIN_RETENTION:.0%}", broken))
    return ended(broken)


def run(demo: Demo, precision: str, out: Path) -> dict[str, Any]:
    """Export and score one task's model; its report."""
    model, data = demo_folder() / demo.model, demo_folder() / demo.data
    words = [str(QEXPORT), str(model), "--format", RUNS[precision], "--precision", precision, "--no-latency", "--quiet"]
    subprocess.run([*words, "--data", str(data), "--imgsz", str(demo.imgsz), "--out", str(out)], check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return report


def rows_of(task: str, report: dict[str, Any]) -> list[list[Any]]:
    """A line of the table for each INT8 file."""
    metric = report["evaluation"]["metrics"][0]
    rows = []
    for entry in (entry for entry in report["artifacts"] if entry["precision"] in RUNS):
        accuracy, name = entry["accuracy"], f"{entry['format']} {entry['precision']}"
        scores = [accuracy["map_float"], accuracy["map"]]
        inside = entry["int8_mac_coverage"]
        rows.append([task, metric, name, scores, accuracy["retention"], accuracy["fidelity"], inside])
    return rows


if __name__ == "__main__":
    sys.exit(main())
