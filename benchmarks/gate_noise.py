"""Do equal files pass against their own baseline? Runs the demo export again and again against its first report.

    .venv/bin/python benchmarks/gate_noise.py [--runs 20] [--format onnx] [--imgsz 320]

Prints each run's speed-up, spreads and exit code, and how far speed-ups moved. Exits with 1 if a run failed the gate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

QEXPORT = Path(sys.executable).with_name("qexport")
DEMO = Path(__file__).resolve().parents[1] / "calibration_data"


def main() -> int:
    """Run everything and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--imgsz", default="320")
    given = parser.parse_args()
    words = ["--format", given.format, "--imgsz", given.imgsz]
    with tempfile.TemporaryDirectory(prefix="qexport-noise-") as scratch:
        folder = Path(scratch)
        code, first = run(folder / "first", words)
        print(f"first  exit {code}  {figures(first)}", flush=True)
        again = ["--baseline", str(folder / "first" / "report.json")]
        # What was calibrated is the same in every run: the file is byte-identical, only its timing is new.
        again += ["--calibration", str(folder / "first" / "calibration.npz")]
        results = [(code, first)]
        for number in range(1, given.runs + 1):
            code, report = run(folder / "again", [*words, *again])
            print(f"{number:5}  exit {code}  {figures(report)}", flush=True)
            results.append((code, report))
    speedups = [entry["speedup"] for _, report in results for entry in report["artifacts"] if entry["speedup"]]
    failed = sum(code != 0 for code, _ in results)
    print(f"speed-ups {min(speedups):.2f} to {max(speedups):.2f}, a factor of {max(speedups) / min(speedups):.2f}")
    print(f"{given.runs - failed} of {given.runs} passed")
    return 1 if failed else 0


def run(out: Path, words: list[str]) -> tuple[int, dict[str, Any]]:
    """Export the demo model; return the exit code and the report."""
    data = str(DEMO / "shapes" / "shapes.yaml")
    command = [str(QEXPORT), str(DEMO / "shapes26.pt"), "--int8", "--data", data, "--quiet", "--out", str(out), *words]
    code = subprocess.run(command, check=False).returncode
    report: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return code, report


def figures(report: dict[str, Any]) -> str:
    """Speed-up and both spreads of each INT8 file."""
    parts = []
    for entry in (each for each in report["artifacts"] if each["speedup"]):
        spreads = (entry[name]["p95"] / entry[name]["p50"] - 1 for name in ("latency_ms", "latency_float_ms"))
        int8, fp32 = (f"{spread:.0%}" for spread in spreads)
        parts.append(f"{entry['format']} {entry['speedup']:.2f}× (spread {int8}, FP32 {fp32})")
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())
