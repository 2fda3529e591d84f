"""Measure TFLite's precisions on the real YOLO26n and print the table of docs/measured.md.

    make bench-precisions    (or: .venv/bin/python benchmarks/precisions.py [--shared DIR] [PRECISION …])

Runs the installed `qexport` for both heads and each precision, calibrated on coco128 and scored on coco-val100, then
`qexport verify` on the integer-only files. Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QEXPORT = Path(sys.executable).with_name("qexport")
HEADS = ("end2end", "one2many")
MIN_FIDELITY = {"fp16": 0.98, "int8-dynamic": 0.93, "w8a16": 0.95, "int8-full": 0.87}
MAX_OF_FLOAT_BYTES = {"fp16": 0.52, "int8-dynamic": 0.30, "w8a16": 0.30, "int8-full": 0.30}
MIN_RETENTION = 0.965


@dataclass(frozen=True)
class Row:
    """One run: its artifact's entry in report.json, and that of the FP32 file beside it."""

    head: str
    precision: str
    artifact: dict[str, Any]
    reference: dict[str, Any]

    @property
    def size(self) -> float:
        """Share of the FP32 file's bytes."""
        return float(self.artifact["bytes"] / self.reference["bytes"])

    def broken(self) -> list[str]:
        """Bounds that this run does not hold."""
        accuracy = self.artifact["accuracy"]
        held = {
            "fidelity": accuracy["fidelity"] >= MIN_FIDELITY[self.precision],
            "retention": accuracy["retention"] >= MIN_RETENTION,
            "size": self.size <= MAX_OF_FLOAT_BYTES[self.precision],
        }
        return [f"{self.precision} {self.head}: {name}" for name, good in held.items() if not good]


def main() -> int:
    """Run everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="*", default=list(MIN_FIDELITY))
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        folder = Path(scratch)
        rows = [run(given.shared, head, name, folder) for name in given.precisions for head in HEADS]
        print_table(rows)
        broken = [name for row in rows for name in row.broken()]
        broken += [
            f"verify {row.head}" for row in rows if row.precision == "int8-full" and not agrees(given.shared, row)
        ]
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if broken else 0


def run(shared: Path, head: str, precision: str, scratch: Path) -> Row:
    """Export and score one configuration."""
    out = scratch / f"{head}-{precision}"
    words = [str(QEXPORT), str(shared / "models/yolo26n.pt"), "--format", "tflite", "--precision", precision]
    words += ["--head", head, "--data", str(shared / "datasets/coco128/coco128.yaml"), "--quiet", "--out", str(out)]
    words += ["--eval-data", str(shared / "datasets/coco-val100/coco-val100.yaml")]
    subprocess.run(words, check=True)
    entries = json.loads((out / "report.json").read_text(encoding="utf-8"))["artifacts"]
    by_precision = {entry["precision"]: entry for entry in entries}
    return Row(head, precision, by_precision[precision], by_precision["fp32"])


def agrees(shared: Path, row: Row) -> bool:
    """Ask `qexport verify`, and show what it prints."""
    data = str(shared / "datasets/coco-val100/coco-val100.yaml")
    words = [str(QEXPORT), "verify", row.artifact["path"], "--runtime", "tensorflow", "--data", data]
    print(f"\n{row.precision} {row.head}")
    return subprocess.run(words, check=False).returncode == 0


def print_table(rows: list[Row]) -> None:
    """Print Markdown."""
    print("| precision | head | fidelity | retention | mAP50-95 FP32 → | MB | of FP32 | p50 of FP32 |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        accuracy = row.artifact["accuracy"]
        ratio = row.artifact["latency_ms"]["p50"] / row.artifact["latency_float_ms"]["p50"]
        print(
            f"| {row.precision} | {row.head} | {accuracy['fidelity']:.3f} | {accuracy['retention']:.1%} "
            f"| {accuracy['map_float']:.4f} → {accuracy['map']:.4f} | {row.artifact['bytes'] / 1e6:.2f} "
            f"| {row.size:.2f} | {ratio:.2f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
