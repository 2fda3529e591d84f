"""Time whole runs: four formats with scales alone, and a scored run followed by the same one with another gate.

    make bench-runs       (or: .venv/bin/python benchmarks/run_times.py [--formats F] [--shared DIR] [--results FILE])

The real YOLO26n, calibrated on coco128; the last two scored on coco-val100, with a cache of their own, which the first
run has none of. Exits with 1 if a run takes too long, or if the last one writes or finds anything else than the one
before it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from results import SHARED, begin, ended, keep, missed, table
from tables import Column

QEXPORT = Path(sys.executable).with_name("qexport")
MODEL, CALIBRATED, SCORED = "yolo26n", "coco128", "coco-val100"
SCALES_ALONE = ("--effort", "none", "--no-eval")
GATES = ("--max-drop 5", "--max-drop 3")
MAX_ALONE, MAX_AGAIN = 90.0, 10.0
"""Seconds of the first run, and of the last one."""
BOUNDS = (
    f"{MAX_ALONE:.0f} s for the first; {MAX_AGAIN:.0f} s for the last, with the bytes and figures of the one before"
)
COLUMNS = (Column("run"), Column("options"), Column("seconds", "{:.1f}"))


def command(shared: Path, formats: str, out: Path, *options: str) -> list[str]:
    """The command line of a run."""
    given = ["--format", formats, "--int8", "--data", yaml_of(shared, CALIBRATED), "--no-build", "--quiet"]
    return [str(QEXPORT), str(shared / f"models/{MODEL}.pt"), *given, *options, "--out", str(out)]


def yaml_of(shared: Path, name: str) -> str:
    """A data set's YAML."""
    return str(shared / f"datasets/{name}/{name}.yaml")


def seconds_of(words: list[str], cache: str) -> float:
    """Run, and return the seconds that it took."""
    started = time.perf_counter()
    subprocess.run(words, check=True, env={**os.environ, "QEXPORT_CACHE": cache})
    return time.perf_counter() - started


def found(out: Path) -> dict[str, Any]:
    """Name of an artifact → its SHA-256 and all figures of its accuracy, as the report has them."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {Path(each["path"]).name: [each["sha256"], each["accuracy"]] for each in report["artifacts"]}


def differing(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """What is said of artifacts that are other than those of the run before."""
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            yield f"{name} has other bytes or figures than in the run before"


def main() -> int:
    """Run three times, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--formats", default="tflite,onnx,openvino,tensorrt")
    given, bench = begin(parser, "make bench-runs")
    shared, formats = given.shared.resolve(), given.formats
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        alone, out, cache = Path(scratch) / "alone", Path(scratch) / "out", str(Path(scratch) / "cache")
        seconds = seconds_of(command(shared, formats, alone, *SCALES_ALONE), os.devnull)
        rows: list[tuple[str, str, float]] = [("scales alone", f"`{' '.join(SCALES_ALONE)}`", seconds)]
        results = []
        for name, gate in zip(("default effort, scored and timed", "the same with another gate"), GATES, strict=True):
            words = command(shared, formats, out, "--eval-data", yaml_of(shared, SCORED), *gate.split())
            rows.append((name, f"`{gate}`", seconds_of(words, cache)))
            results.append(found(out))
    broken = missed("scales alone: seconds", rows[0][2], most=MAX_ALONE, form=".0f")
    broken += [*missed("another gate: seconds", rows[2][2], most=MAX_AGAIN, form=".1f"), *differing(*results)]
    about = f"{MODEL} at 640 pixels as {formats.replace(',', ', ')}, INT8, calibrated on {CALIBRATED}"
    keep(bench, table(bench, "run-times", f"{about}, scored on {SCORED}", COLUMNS, rows, BOUNDS, broken))
    return ended(broken)


if __name__ == "__main__":
    sys.exit(main())
