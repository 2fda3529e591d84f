"""Measure how near INT8 is to FP32 on the real models, effort by effort, and write the tables of it.

    make bench-accuracy    (or: .venv/bin/python benchmarks/accuracy.py [--effort E …] [--half H] [--results FILE] …)

Detectors in four formats and integer-only, calibrated on coco128 (and the default once more on the four images of
coco8), masks and keypoints in three formats. Scored on one half of coco-val100's images: settings were chosen on the
first half, the second one is what the documentation reports. Exits with 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from results import SHARED, Run, begin, ended, keep, missed, table
from tables import Column, cell, grid

QEXPORT = Path(sys.executable).with_name("qexport")
DETECTORS = ("yolo26n", "yolo11n", "yolov8n")
FORMATS = "tflite,onnx,openvino,tensorrt"
BOUNDS = {"balanced": (0.960, 0.945, 0.03), "best": (0.975, 0.965, 0.01)}
"""Effort → least mean fidelity, least fidelity of any file, largest mean shift of confidence."""
MIN_FULL, MIN_COCO8, MIN_TASK, MIN_RETENTION = 0.955, 0.94, 0.95, 0.985
MAX_SECONDS = {"best": 480.0}
SCORED = {
    "first": "scored on the first half of the images, which settings were chosen on",
    "second": "scored on the second half of the images, which nothing was chosen on",
    "both": "scored on all images, of which settings were chosen on the first half",
}
"""Half → of which images figures are, those of coco-val100 for detectors."""
COLUMNS = (
    Column("model"),
    Column("format"),
    Column("fidelity", "{:.4f}"),
    Column("95 % interval", "{:.3f} to {:.3f}"),
    Column("mAP50-95, share of FP32's", "{:.1%}"),
    Column("shift of confidence", "{:+.3f}"),
)


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

    def cells(self) -> list[Any]:
        """Its line of the table."""
        span, kept = self.accuracy.get("fidelity_interval"), self.accuracy.get("retention")
        return [self.model, self.format, self.fidelity, span, kept, shift_of(self)]


def main() -> int:
    """Run everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--effort", nargs="*", default=["balanced", "best"])
    parser.add_argument("--models", nargs="*", default=list(DETECTORS))
    parser.add_argument("--half", choices=("first", "second", "both"), default="second")
    parser.add_argument("--only-detectors", action="store_true", help="no integer-only files, coco8, masks, keypoints")
    given, bench = begin(parser, "make bench-accuracy")
    broken: list[str] = []
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        runs = Runs(given.shared, Path(scratch), given.half)
        for effort in given.effort:
            rows, seconds = runs.detectors(given.models, effort)
            lost = list(judge(effort, rows, seconds))
            remark = (
                f"Mean {mean(rows):.4f}, least {min(row.fidelity for row in rows):.4f}. Seconds, scoring included: "
            )
            remark += ", ".join(f"{model} {taken:.0f}" for model, taken in seconds.items()) + "."
            about = f"`--effort {effort}`, calibrated on coco128, {SCORED[given.half]}"
            keep_rows(bench, f"accuracy-{effort}", about, rows, bounds_of(effort), lost, remark)
            broken += lost
        if not given.only_detectors:
            broken += others(bench, runs, given.models)
    return ended(broken)


@dataclass(frozen=True)
class Runs:
    """Where models and data are, and where files go."""

    shared: Path
    scratch: Path
    half: str

    def evaluation(self, name: str, half: str = "") -> str:
        """A list of the images of one half of a data set; `half`: where it is not the one that is asked for."""
        half = half or self.half
        images = sorted((self.shared / "datasets" / name / "images/val2017").glob("*.jpg"))
        middle = len(images) // 2
        chosen = {"first": images[:middle], "second": images[middle:], "both": images}[half]
        path = self.scratch / f"{name}-{half}.txt"
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


def mean(rows: Sequence[Row]) -> float:
    """Mean fidelity."""
    return sum(row.fidelity for row in rows) / len(rows)


def judge(effort: str, rows: Sequence[Row], seconds: dict[str, float]) -> Iterator[str]:
    """Bounds of an effort that are broken."""
    if effort not in BOUNDS:
        return
    least_mean, least, shift = BOUNDS[effort]
    yield from missed(f"{effort}: mean fidelity", mean(rows), least=least_mean, form=".4f")
    for row in rows:
        name = f"{effort} {row.model} {row.format}:"
        yield from missed(f"{name} fidelity", row.fidelity, least=least, form=".4f")
        yield from missed(f"{name} shift of confidence", shift_of(row) or 0, least=-shift, most=shift, form="+.4f")
    for model, taken in seconds.items():
        yield from missed(f"{effort} {model}: seconds", taken, most=MAX_SECONDS.get(effort, math.inf), form=".0f")


def bounds_of(effort: str) -> str:
    """An effort's bounds in words; "" where it has none."""
    if effort not in BOUNDS:
        return ""
    least_mean, least, shift = BOUNDS[effort]
    time_too = f"; {MAX_SECONDS[effort]:.0f} s a model" if effort in MAX_SECONDS else ""
    return (
        f"fidelity {least_mean:.3f} on average and {least:.3f} of each file; shift of confidence {shift:.2f}{time_too}"
    )


def others(bench: Run, runs: Runs, models: Sequence[str]) -> list[str]:
    """Integer-only files, few calibration images, masks and keypoints: keep their tables; bounds that are broken."""
    half, scored = runs.evaluation("coco-val100"), SCORED[runs.half]
    full = [r for m in models for r in runs.rows(m, "int8-full", "tflite", "coco128", half, "--precision", "int8-full")]
    broken = [said for row in full for said in too_far(row, MIN_FULL)]
    keep_rows(
        bench,
        "accuracy-integer-only",
        f"default effort, calibrated on coco128, {scored}",
        full,
        f"fidelity {MIN_FULL:.3f}",
        broken,
    )
    few = [r for m in models for r in runs.rows(m, "coco8", FORMATS, "coco8", half, "--int8")]
    lost = [said for row in few for said in too_far(row, MIN_COCO8)]
    about = f"default effort, calibrated on the four training images of coco8, {scored}"
    keep_rows(bench, "accuracy-few-images", about, few, f"fidelity {MIN_COCO8:.2f}", lost, f"Mean {mean(few):.4f}.")
    three = "tflite,onnx,openvino"
    other = runs.rows("yolo11n-seg", "masks", three, "coco128", runs.evaluation("coco-val100-seg"), "--int8")
    people = runs.evaluation("coco-val25-pose", "both")  # so few that half of them would say nothing
    other += runs.rows("yolo26n-pose", "keypoints", three, "coco128", people, "--int8")
    apart = [said for row in other for said in (*too_far(row, MIN_TASK), *too_little(row))]
    about = f"default effort, calibrated on coco128, masks {SCORED[runs.half]}; keypoints on all images that have some"
    bounds = f"fidelity {MIN_TASK:.2f}; retention {MIN_RETENTION:.1%}"
    keep_rows(bench, "accuracy-tasks", about, other, bounds, apart)
    return [*broken, *lost, *apart]


def too_far(row: Row, least: float) -> list[str]:
    """What is said of a file that is too far from FP32."""
    return missed(f"{row.what} {row.model} {row.format}: fidelity", row.fidelity, least=least, form=".4f")


def too_little(row: Row) -> list[str]:
    """What is said of a file that keeps too little of FP32's mAP."""
    name = f"{row.what} {row.model} {row.format}: retention"
    return missed(name, row.accuracy["retention"], least=MIN_RETENTION, form=".1%")


def keep_rows(
    bench: Run, name: str, about: str, rows: Sequence[Row], bounds: str, broken: Sequence[str], remark: str = ""
) -> None:
    """Keep a table of artifacts."""
    remarks = [remark] if remark else []
    cells = [row.cells() for row in rows]
    keep(bench, table(bench, name, about, COLUMNS, cells, bounds, broken if bounds else None, remarks))


def shift_of(row: Row) -> float | None:
    """Mean shift of confidence of matched detections."""
    found = row.accuracy.get("confidence")
    return float(found["shift"]) if found else None


def print_table(title: str, rows: Iterable[Row]) -> None:
    """Print Markdown, without keeping it."""
    lines = [[row.what, *map(cell, row.cells(), COLUMNS)] for row in rows]
    print(f"\n{title}\n\n{grid(['what', *(column.title for column in COLUMNS)], lines)}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
