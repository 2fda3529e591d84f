"""Time a run, and the same run with another gate: what the first one found out is taken, not found out again.

    make bench-again      (or: .venv/bin/python benchmarks/second_run.py [--formats F] [--shared DIR] [--results FILE])

The real YOLO26n, calibrated on coco128 and scored on coco-val100, with a cache of its own. Exits with 1 if the second
run takes too long, or writes or finds anything else than the first.
"""

from __future__ import annotations

import argparse
import hashlib
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
DROPS = ("5", "3")
"""Gates of the two runs: the percentage of mAP that may be lost."""
MAX_SECONDS = 10.0
FIGURES = ("map50_95", "map50", "fidelity", "retention")
COLUMNS = (Column("run"), Column("gate"), Column("seconds", "{:.1f}"))


def words(shared: Path, formats: str, drop: str, out: Path) -> list[str]:
    """The command line of a run."""
    data = [str(shared / f"datasets/{name}/{name}.yaml") for name in (CALIBRATED, SCORED)]
    chosen = ["--format", formats, "--int8", "--data", data[0], "--eval-data", data[1], "--max-drop", drop, "--quiet"]
    return [str(QEXPORT), str(shared / f"models/{MODEL}.pt"), *chosen, "--no-build", "--out", str(out)]


def seconds_of(command: list[str], cache: Path) -> float:
    """Run, and return the seconds that it took."""
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "QEXPORT_CACHE": str(cache)})
    return time.perf_counter() - started


def found(out: Path) -> dict[str, Any]:
    """Name of an artifact → its bytes' digest and its figures."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return {
        Path(each["path"]).name: [digest(out / Path(each["path"]).name), *map((each["accuracy"] or {}).get, FIGURES)]
        for each in report["artifacts"]
    }


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def differing(first: dict[str, Any], second: dict[str, Any]) -> Iterator[str]:
    """What is said of artifacts that are other than those of the first run."""
    for name in sorted(first.keys() | second.keys()):
        if first.get(name) != second.get(name):
            yield f"{name}: {first.get(name)} became {second.get(name)}"


def main() -> int:
    """Run twice, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--formats", default="tflite,onnx,openvino,tensorrt")
    given, bench = begin(parser, "make bench-again")
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        out, cache = Path(scratch) / "out", Path(scratch) / "cache"
        taken, results = [], []
        for drop in DROPS:
            taken.append(seconds_of(words(given.shared, given.formats, drop, out), cache))
            results.append(found(out))
    broken = [*missed("the second run: seconds", taken[1], most=MAX_SECONDS, form=".1f"), *differing(*results)]
    rows = [
        [name, f"`--max-drop {drop}`", each] for name, drop, each in zip(("first", "second"), DROPS, taken, strict=True)
    ]
    about = (
        f"{MODEL} at 640 pixels as {given.formats.replace(',', ', ')}, INT8, default effort, "
        f"calibrated on {CALIBRATED}, scored on {SCORED} and timed; "
        "the second run into the same folder, with the cache of the first"
    )
    bounds = f"{MAX_SECONDS:.0f} s for the second run, and the same bytes and figures"
    keep(bench, table(bench, "second-run", about, COLUMNS, rows, bounds, broken))
    return ended(broken)


if __name__ == "__main__":
    sys.exit(main())
