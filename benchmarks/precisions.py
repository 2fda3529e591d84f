"""Measure TFLite's precisions on the real YOLO26n, and write their table (results.json, docs/measured.md).

    make bench-precisions    (or: .venv/bin/python benchmarks/precisions.py [PRECISION …] [--results FILE])

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

from results import SHARED, begin, ended, keep, missed, table
from tables import Column

QEXPORT = Path(sys.executable).with_name("qexport")
HEADS = ("end2end", "one2many")
MIN_FIDELITY = {"fp16": 0.98, "int8-dynamic": 0.93, "w8a16": 0.95, "int8-full": 0.87}
MAX_OF_FLOAT_BYTES = {"fp16": 0.52, "int8-dynamic": 0.30, "w8a16": 0.30, "int8-full": 0.30}
MIN_RETENTION = 0.965
ABOUT = "YOLO26n at 640 pixels as TFLite, default effort, calibrated on coco128, scored on coco-val100"
BOUNDS = "; ".join(
    [
        *(
            f"{name}: fidelity {least:.2f}, {MAX_OF_FLOAT_BYTES[name]:.0%} of FP32's bytes"
            for name, least in MIN_FIDELITY.items()
        ),
        f"retention {MIN_RETENTION:.1%}",
    ]
)
COLUMNS = (
    Column("precision"),
    Column("head"),
    Column("fidelity", "{:.3f}"),
    Column("retention", "{:.1%}"),
    Column("mAP50-95 FP32 → file", "{:.4f} → {:.4f}"),
    Column("MB", "{:.2f}"),
    Column("of FP32", "{:.2f}"),
    Column("p50 of FP32", "{:.2f}"),
)
AGREES = "TensorFlow's reference kernels agree on the integer-only files (`qexport verify --runtime tensorflow`)."


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
        accuracy, of = self.artifact["accuracy"], f"{self.precision} {self.head}:"
        return [
            *missed(f"{of} fidelity", accuracy["fidelity"], least=MIN_FIDELITY[self.precision]),
            *missed(f"{of} retention", accuracy["retention"], least=MIN_RETENTION, form=".1%"),
            *missed(f"{of} share of FP32's bytes", self.size, most=MAX_OF_FLOAT_BYTES[self.precision]),
        ]

    def cells(self) -> list[Any]:
        """Its line of the table."""
        accuracy, of = self.artifact["accuracy"], [self.precision, self.head]
        ratio = self.artifact["latency_ms"]["p50"] / self.artifact["latency_float_ms"]["p50"]
        scores = [accuracy["map_float"], accuracy["map"]]
        size = self.artifact["bytes"] / 1e6
        return [*of, accuracy["fidelity"], accuracy["retention"], scores, size, self.size, ratio]


def main() -> int:
    """Run everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precisions", nargs="*", default=list(MIN_FIDELITY))
    parser.add_argument("--shared", type=Path, default=SHARED)
    given, bench = begin(parser, "make bench-precisions")
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        folder = Path(scratch)
        rows = [run(given.shared, head, name, folder) for name in given.precisions for head in HEADS]
        integers = [row for row in rows if row.precision == "int8-full"]
        apart = [f"verify {row.head}: TensorFlow differs" for row in integers if not agrees(given.shared, row)]
    broken = [name for row in rows for name in row.broken()] + apart
    remarks = [AGREES] if integers and not apart else []
    keep(bench, table(bench, "precisions", ABOUT, COLUMNS, [row.cells() for row in rows], BOUNDS, broken, remarks))
    return ended(broken)


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


if __name__ == "__main__":
    sys.exit(main())
