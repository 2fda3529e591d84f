"""Compare qexport's ONNX, OpenVINO and TensorRT files with Ultralytics' own exports, side by side.

    make bench-formats    (or: .venv/bin/python benchmarks/against_incumbent.py [--shared DIR] [--keep DIR] [MODEL …])

For each model: both tools export FP32 and INT8, calibrated on coco128 and scored on coco-val100, each INT8 file against
the FP32 file of its own tool and format (fidelity, retention); then all files of a runtime are timed in turns. At last
four formats are written in one run without evaluation, for its time. Exits with 1 if a bound is broken.
`--keep` keeps the files; a second call takes what is there and only times it again. Remove MODEL/qexport.json there to
export and score with qexport once more, beside the incumbent's files as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qexport.compat.quiet import quiet_ultralytics

quiet_ultralytics()  # before anything imports Ultralytics or a runtime; processes that are started inherit it

if TYPE_CHECKING:
    from qexport.backends.protocol import Runner

QEXPORT = Path(sys.executable).with_name("qexport")
MODELS = ("yolo26n", "yolo11n", "yolov8n")
SIZE = (640, 640)
FORMATS = ("onnx", "openvino", "tensorrt")
MIN_FIDELITY = {"onnx": 0.91, "openvino": 0.94, "tensorrt": 0.91}
MIN_RETENTION = 0.965
MIN_COVERAGE = 0.90
MAX_OF_FLOAT = {"onnx": 0.75}
MAX_OF_INCUMBENT = {"onnx": 0.4, "openvino": 1.0}
MAX_SECONDS = 90.0
BLOCKS = 40
"""Turns of all files. The machine's speed changes within seconds: two files are compared turn by turn, and the median
ratio counts."""


@dataclass
class Row:
    """One file and its figures; `ms` has the median of each block."""

    model: str
    tool: str
    format: str
    precision: str
    path: str
    map: float
    fidelity: float | None = None
    coverage: float | None = None
    ms: tuple[float, ...] = ()


def main() -> int:
    """Run everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--no-timing", action="store_true", help="export and score only")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        folder = (given.keep or Path(scratch)).resolve()
        rows = [row for model in given.models for row in rows_of(given.shared.resolve(), model, folder / model)]
        if given.no_timing:
            return 0
        for model in given.models:
            time_rows([row for row in rows if row.model == model], given.shared)
        seconds = four_formats(given.shared, folder)
    print(f"{machine()}\n")
    broken = print_rows(rows)
    print(f"\nfour formats without evaluation: {seconds:.0f} s")
    broken += ["time of four formats"] * (seconds > MAX_SECONDS)
    for name in broken:
        print(f"BROKEN {name}")
    return 1 if broken else 0


def rows_of(shared: Path, model: str, folder: Path) -> list[Row]:
    """Export with both tools and score; kept rows of a tool are taken as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    found: list[Row] = []
    for tool, work in (("qexport", ours), ("ultralytics", incumbents)):
        saved = folder / f"{tool}.json"
        if not saved.is_file():
            rows = [asdict(row) for row in work(shared, model, folder)]
            saved.write_text(json.dumps(rows, indent=1), encoding="utf-8")
        found += [Row(**entry) for entry in json.loads(saved.read_text(encoding="utf-8"))]
    return found


def ours(shared: Path, model: str, folder: Path) -> list[Row]:
    """Run `qexport` and read its report."""
    call(shared, model, folder / "qexport", FORMATS, "--no-latency", "--eval-data", str(yaml_of(shared, "coco-val100")))
    report = json.loads((folder / "qexport/report.json").read_text(encoding="utf-8"))
    return [
        Row(
            model,
            "qexport",
            entry["format"],
            entry["precision"],
            entry["path"],
            entry["accuracy"]["map"],
            entry["accuracy"]["fidelity"],
            entry["int8_mac_coverage"],
        )
        for entry in report["artifacts"]
    ]


def incumbents(shared: Path, model: str, folder: Path) -> list[Row]:
    """Export with Ultralytics and score with the same code as ours."""
    from qexport.compat.torchvision import repair

    repair()
    from ultralytics.models import YOLO

    from qexport.data.dataset import image_list, load_dataset
    from qexport.data.evaluation_set import make_evaluation_set
    from qexport.detections.layout import HeadLayout
    from qexport.measurement.accuracy import evaluate

    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    dataset = load_dataset(yaml_of(shared, "coco-val100"))
    rows = []
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        data = make_evaluation_set(dataset, image_list(dataset, "val"), Path(scratch) / "data")
        for name in ("onnx", "openvino"):
            reference = None
            for precision in ("fp32", "int8"):
                path = exported(YOLO, shared, model, name, precision, folder / "ultralytics")
                runner = runner_of(path, name, precision)
                # Rows of six are detections, others anchors: (1, 300, 6) or (1, 4 + classes, anchors).
                rows_of_six = runner(np.zeros((1, 3, *SIZE), np.float32))[0].shape[-1] == 6
                layout = HeadLayout((), SIZE, len(dataset.names), end2end=rows_of_six)
                found = evaluate(runner, layout, "detect", data, reference=reference)
                reference = reference or found.detections
                assert found.map is not None  # the images have labels
                rows.append(Row(model, "ultralytics", name, precision, str(path), found.map, found.fidelity))
    return rows


def exported(yolo: Any, shared: Path, model: str, name: str, precision: str, folder: Path) -> Path:
    """One export of Ultralytics, moved to a name of its own: the next one would overwrite it."""
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{model}.pt"
    shutil.copyfile(shared / f"models/{model}.pt", checkpoint)
    made = Path(
        yolo(str(checkpoint)).export(
            format=name, quantize=8 if precision == "int8" else None, data=str(yaml_of(shared, "coco128")), device="cpu"
        )
    )
    kept = folder / f"{model}_{precision}{'_openvino_model' if made.is_dir() else made.suffix}"
    shutil.move(made, kept)
    return kept


def runner_of(path: Path, name: str, precision: str) -> Runner:
    """A file of either tool on its runtime."""
    from qexport.backends.openvino.backend import OpenVINORunner
    from qexport.programs.onnx.session import OnnxRunner

    # FP32 is FP32 in every row, also where OpenVINO would take BF16.
    exact = True if precision == "fp32" else None
    return OnnxRunner(path, 2) if name == "onnx" else OpenVINORunner(path, 2, exact)


def time_rows(rows: list[Row], shared: Path) -> None:
    """Time the files of one model in turns, two threads each."""
    from qexport.data.images import letterbox, read_image, to_tensor
    from qexport.measurement.latency import measure_latency

    image = sorted((shared / "datasets/coco-val100/images").rglob("*.jpg"))[0]
    batch = to_tensor(letterbox(read_image(image), SIZE))[None]

    for name in ("onnx", "openvino"):
        timed = [row for row in rows if row.format == name]
        # One runtime at a time: in one loop, who runs behind another runtime's session was seen to be slower.
        runners = {row.path: runner_of(Path(row.path), row.format, row.precision) for row in timed}
        order = list(runners.items())
        blocks = [measure_latency(dict(order[:: -1 if block % 2 else 1]), batch, rounds=1) for block in range(BLOCKS)]
        for row in timed:
            row.ms = tuple(block[row.path].p50 for block in blocks)


def four_formats(shared: Path, folder: Path) -> float:
    """Seconds of one run that writes four formats without evaluation."""
    started = time.perf_counter()
    call(shared, "yolo26n", folder / "four", ("onnx", "openvino", "tensorrt", "tflite"), "--no-eval")
    report = json.loads((folder / "four/report.json").read_text(encoding="utf-8"))
    assert [step for step in report["seconds"] if step.startswith("calibrate")] == ["calibrate"]
    return time.perf_counter() - started


def call(shared: Path, model: str, out: Path, formats: tuple[str, ...], *options: str) -> None:
    """Run `qexport`."""
    words = [str(QEXPORT), str(shared / f"models/{model}.pt"), "--format", ",".join(formats), "--int8", "--quiet"]
    words += ["--data", str(yaml_of(shared, "coco128")), "--no-build", "--out", str(out), *options]
    subprocess.run(words, check=True)


def yaml_of(shared: Path, name: str) -> Path:
    """A data set's YAML."""
    return shared / f"datasets/{name}/{name}.yaml"


def machine() -> str:
    """What the figures were measured on."""
    from qexport.system.machine import cpu_kind, processor_name

    return f"{processor_name()} ({cpu_kind()}), {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"


def print_rows(rows: list[Row]) -> list[str]:
    """Print Markdown, and return the bounds that are broken."""
    print(
        "| model | format | tool | fidelity | retention | mAP50-95 | INT8 MACs | INT8 ms | of FP32 | of incumbent's |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    broken = []
    found = {(row.model, row.tool, row.format, row.precision): row for row in rows}
    for row in (row for row in rows if row.precision == "int8"):
        whole = found[row.model, row.tool, row.format, "fp32"]
        other = found.get((row.model, "ultralytics", row.format, "int8"))
        retention = row.map / whole.map
        of_float = ratio(row, whole)
        of_other = ratio(row, other) if other and other is not row else None
        figures = (row.coverage, statistics.median(row.ms) if row.ms else None, of_float, of_other)
        cells = [shown(value, form) for value, form in zip(figures, (".1%", ".1f", ".3f", ".3f"), strict=True)]
        print(
            f"| {row.model} | {row.format} | {row.tool} | {shown(row.fidelity, '.3f')} | {retention:.1%} "
            f"| {whole.map:.4f} → {row.map:.4f} | {' | '.join(cells)} |"
        )
        if row.tool == "qexport":
            broken += broken_bounds(row, retention, of_float, of_other)
    return broken


def ratio(row: Row, other: Row) -> float | None:
    """Median over blocks of how long one file takes as a share of another."""
    pairs = list(zip(row.ms, other.ms, strict=True))
    return statistics.median(one / two for one, two in pairs) if pairs else None


def shown(value: float | None, form: str) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:{form}}"


def broken_bounds(row: Row, retention: float, of_float: float | None, of_other: float | None) -> list[str]:
    """Names of the bounds that one of our files does not hold."""
    held = {
        "fidelity": (row.fidelity or 0) >= MIN_FIDELITY[row.format],
        "retention": retention >= MIN_RETENTION,
        "coverage": (row.coverage or 0) >= MIN_COVERAGE,
        "latency against FP32": (of_float or 0) <= MAX_OF_FLOAT.get(row.format, 99.0),
        "latency against the incumbent": (of_other or 0) <= MAX_OF_INCUMBENT.get(row.format, 99.0),
    }
    return [f"{row.model} {row.format}: {name}" for name, good in held.items() if not good]


if __name__ == "__main__":
    sys.exit(main())
