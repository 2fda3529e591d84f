"""Measure how near INT8 is to FP32 on the real models, effort by effort, and print the tables of the documentation.

    make bench-accuracy    (or: .venv/bin/python benchmarks/accuracy.py [--effort EFFORT …] [--half H] …)

Detectors in four formats and integer-only, calibrated on coco128 (and the default once more on the four images of
coco8), masks and keypoints in three formats. Scored on one half of coco-val100's images: settings were chosen on the
first half, the second one is what the documentation reports. Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

QEXPORT = Path(sys.executable).with_name("qexport")
DETECTORS = ("yolo26n", "yolo11n", "yolov8n")
FORMATS = "tflite,onnx,openvino,tensorrt"
BOUNDS = {"balanced": (0.960, 0.945, 0.03), "best": (0.975, 0.965, 0.01)}
"""Effort → least mean fidelity, least fidelity of any file, largest mean shift of confidence."""
MIN_FULL, MIN_COCO8, MIN_TASK, MIN_RETENTION = 0.955, 0.94, 0.95, 0.985
MAX_SECONDS = {"best": 480.0}


@dataclass(frozen=True)
class Row:
    """One artifact of one run."""

    model: str
    what: str
    format: str
    accuracy: dict[str, Any]

    @property
    def fidelity(self) -> float:
        """mAP50-95 against FP32's detections."""
        return float(self.accuracy["fidelity"])


def main() -> int:
    """Run everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--effort", nargs="*", default=["balanced", "best"])
    parser.add_argument("--models", nargs="*", default=list(DETECTORS))
    parser.add_argument("--half", choices=("first", "second", "both"), default="second")
    parser.add_argument("--only-detectors", action="store_true", help="no integer-only files, coco8, masks, keypoints")
    given = parser.parse_args()
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        runs = Runs(given.shared, Path(scratch), given.half)
        for effort in given.effort:
            broken += list(judge(effort, *runs.detectors(given.models, effort)))
        if not given.only_detectors:
            broken += list(others(runs, given.models))
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if broken else 0


@dataclass(frozen=True)
class Runs:
    """Where models and data are, and where files go."""

    shared: Path
    scratch: Path
    half: str

    def evaluation(self, name: str) -> str:
        """A list of the images of one half of a data set."""
        images = sorted((self.shared / "datasets" / name / "images/val2017").glob("*.jpg"))
        middle = len(images) // 2
        chosen = {"first": images[:middle], "second": images[middle:], "both": images}[self.half]
        path = self.scratch / f"{name}-{self.half}.txt"
        path.write_text("".join(f"{each}\n" for each in chosen), encoding="utf-8")
        return str(path)

    def rows(
        self, model: str, what: str, formats: str, data: str, evaluation: str, *options: str, file: Path | None = None
    ) -> list[Row]:
        """Export and score a model in several formats; `file`: where it is not one of the shared ones."""
        out = self.scratch / f"{model}-{what}".replace(" ", "-")
        words = [
            str(QEXPORT),
            str(file or self.shared / f"models/{model}.pt"),
            "--format",
            formats,
            *options,
            "--quiet",
        ]
        words += ["--data", str(self.shared / f"datasets/{data}/{data}.yaml"), "--eval-data", evaluation]
        words += ["--no-build"] if "tensorrt" in formats else []
        subprocess.run([*words, "--no-latency", "--out", str(out)], check=True)
        report = json.loads((out / "report.json").read_text(encoding="utf-8"))
        chosen = [each for each in report["artifacts"] if each["precision"].startswith("int8") and each["accuracy"]]
        return [Row(model, what, each["format"], each["accuracy"]) for each in chosen]

    def detectors(self, models: Sequence[str], effort: str) -> tuple[list[Row], dict[str, float]]:
        """All formats of all detectors, and the seconds that each model took, scoring included."""
        rows, seconds = [], {}
        for model in models:
            started = time.perf_counter()
            options = ("--int8", "--effort", effort)
            rows += self.rows(model, effort, FORMATS, "coco128", self.evaluation("coco-val100"), *options)
            seconds[model] = time.perf_counter() - started
        return rows, seconds


def judge(effort: str, rows: Sequence[Row], seconds: dict[str, float]) -> Iterator[str]:
    """Print one effort's table, and yield the bounds that are broken."""
    print_table(f"--effort {effort}", rows)
    mean = sum(row.fidelity for row in rows) / len(rows)
    print(f"\nmean {mean:.4f}, least {min(row.fidelity for row in rows):.4f}; seconds a model: {seconds}\n")
    if effort not in BOUNDS:
        return
    least_mean, least, shift = BOUNDS[effort]
    if mean < least_mean:
        yield f"{effort}: mean fidelity {mean:.4f} is under {least_mean}"
    for row in rows:
        if row.fidelity < least:
            yield f"{effort} {row.model} {row.format}: fidelity {row.fidelity:.4f} is under {least}"
        moved = shift_of(row)
        if moved is not None and abs(moved) > shift:
            yield f"{effort} {row.model} {row.format}: confidence moves by {moved:+.4f}"
    for model, taken in seconds.items():
        if taken > MAX_SECONDS.get(effort, taken):
            yield f"{effort} {model}: {taken:.0f} s"


def others(runs: Runs, models: Sequence[str]) -> Iterator[str]:
    """Integer-only files, few calibration images, masks and keypoints; yield the bounds that are broken."""
    half = runs.evaluation("coco-val100")
    full = [r for m in models for r in runs.rows(m, "full", "tflite", "coco128", half, "--precision", "int8-full")]
    print_table("integer-only", full)
    few = [r for m in models for r in runs.rows(m, "coco8", FORMATS, "coco8", half, "--int8")]
    print_table("four calibration images", few)
    three = "tflite,onnx,openvino"
    masks = runs.rows("yolo11n-seg", "masks", three, "coco128", runs.evaluation("coco-val100-seg"), "--int8")
    points = runs.rows("yolo26n-pose", "keypoints", three, "coco128", runs.evaluation("coco-val25-pose"), "--int8")
    print_table("masks and keypoints", [*masks, *points])
    for rows, least in ((full, MIN_FULL), (few, MIN_COCO8), ([*masks, *points], MIN_TASK)):
        for row in (row for row in rows if row.fidelity < least):
            yield f"{row.what} {row.model} {row.format}: fidelity {row.fidelity:.4f} is under {least}"
    for row in (row for row in [*masks, *points] if row.accuracy["retention"] < MIN_RETENTION):
        yield f"{row.what} {row.model} {row.format}: retention {row.accuracy['retention']:.4f}"


def shift_of(row: Row) -> float | None:
    """Mean shift of confidence of matched detections."""
    found = row.accuracy.get("confidence")
    return float(found["shift"]) if found else None


def print_table(title: str, rows: Iterable[Row]) -> None:
    """Print Markdown."""
    print(f"\n{title}\n\n| model | what | format | fidelity | mAP50-95, share of FP32's | shift of confidence |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        span, kept, moved = row.accuracy.get("fidelity_interval"), row.accuracy.get("retention"), shift_of(row)
        interval = f" ({span[0]:.3f} to {span[1]:.3f})" if span else ""
        share, shift = f"{100 * kept:.1f} %" if kept else "", "" if moved is None else f"{moved:+.3f}"
        line = f"| {row.model} | {row.what} | {row.format} | {row.fidelity:.4f}{interval} | {share} | {shift} |"
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
