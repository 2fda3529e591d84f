"""Compare qexport's ONNX, OpenVINO and TensorRT files with Ultralytics' own exports, and write the tables of it.

    make bench-formats    (or: .venv/bin/python benchmarks/against_incumbent.py [--keep DIR] [MODEL …] [--results FILE])

For each model: both tools export FP32 and INT8, calibrated on coco128 and scored on coco-val100, each INT8 file against
the FP32 file of its own tool and format (fidelity, retention); then all files of a runtime are timed in turns. Exits
with 1 if a bound is broken.
`--keep` keeps the files; a second call takes what is there and only times it again. Remove MODEL/qexport.json there to
export and score with qexport once more, beside the incumbent's files as they are.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from results import SHARED, begin, ended, keep, missed, table
from tables import Column

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
BLOCKS = 40
"""Turns of all files. The machine's speed changes within seconds: two files are compared turn by turn, and the median
ratio counts."""
ABOUT = (
    "files of 640 pixels, default effort, calibrated on coco128, scored on coco-val100; fidelity and retention are "
    "against the FP32 file of the same tool and format; files of a model and runtime are timed in turns, ratios are "
    "medians of forty turns; TensorRT's graph is scored on ONNX Runtime, no engine is built"
)
BOUNDS = "; ".join(
    [
        f"fidelity {', '.join(f'{name} {least:.2f}' for name, least in MIN_FIDELITY.items())}",
        f"retention {MIN_RETENTION:.1%}",
        f"{MIN_COVERAGE:.0%} of the arithmetic in INT8",
        f"time of FP32's {', '.join(f'{name} {most:.2f}' for name, most in MAX_OF_FLOAT.items())}",
        f"time of the incumbent's {', '.join(f'{name} {most:.2f}' for name, most in MAX_OF_INCUMBENT.items())}",
    ]
)
COLUMNS = (
    Column("model"),
    Column("format"),
    Column("tool"),
    Column("fidelity", "{:.3f}"),
    Column("retention", "{:.1%}"),
    Column("mAP50-95 FP32 → INT8", "{:.4f} → {:.4f}"),
    Column("INT8 MACs", "{:.1%}"),
    Column("INT8 ms", "{:.1f}"),
    Column("of FP32", "{:.3f}"),
    Column("of incumbent's", "{:.3f}"),
)
SHORT_ABOUT = (
    "INT8 files of 640 pixels, default effort, calibrated on coco128, scored on coco-val100; fidelity is agreement "
    "with the FP32 file of the same tool and format, mAP kept the share of its mAP50-95"
)
SHORT_COLUMNS = (
    Column("model"),
    Column("format"),
    Column("fidelity: qexport", "{:.3f}"),
    Column("Ultralytics", "{:.3f}"),
    Column("mAP kept: qexport", "{:.1%}"),
    Column("Ultralytics", "{:.1%}"),
    Column("time, of Ultralytics' file", "{:.3f}"),
)


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


@dataclass(frozen=True)
class Compared:
    """An INT8 file beside the FP32 file of its tool and format; ratios of times are None where none were taken."""

    row: Row
    whole: Row
    of_float: float | None
    of_incumbent: float | None

    @property
    def retention(self) -> float:
        """Share of FP32's mAP50-95."""
        return self.row.map / self.whole.map

    def cells(self) -> list[Any]:
        """Its line of the table."""
        row, took = self.row, statistics.median(self.row.ms) if self.row.ms else None
        scores = [self.whole.map, row.map]
        named = [row.model, row.format, row.tool]
        return [*named, row.fidelity, self.retention, scores, row.coverage, took, self.of_float, self.of_incumbent]

    def broken(self) -> list[str]:
        """Bounds that it does not hold, as one of our files."""
        of, form = f"{self.row.model} {self.row.format}:", self.row.format
        return [
            *missed(f"{of} fidelity", self.row.fidelity or 0, least=MIN_FIDELITY[form]),
            *missed(f"{of} retention", self.retention, least=MIN_RETENTION, form=".1%"),
            *missed(f"{of} INT8 MACs", self.row.coverage or 0, least=MIN_COVERAGE, form=".1%"),
            *missed(f"{of} INT8 / FP32", self.of_float or 0, most=MAX_OF_FLOAT.get(form, 99.0)),
            *missed(f"{of} INT8 / incumbent's", self.of_incumbent or 0, most=MAX_OF_INCUMBENT.get(form, 99.0)),
        ]


def main() -> int:
    """Run everything, print the tables, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--no-timing", action="store_true", help="export and score only")
    given, bench = begin(parser, "make bench-formats")
    with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
        folder = (given.keep or Path(scratch)).resolve()
        rows = [row for model in given.models for row in rows_of(given.shared.resolve(), model, folder / model)]
        if not given.no_timing:
            for model in given.models:
                time_rows([row for row in rows if row.model == model], given.shared)
    compared = compare(rows)
    broken = [said for each in compared if each.row.tool == "qexport" for said in each.broken()]
    full = table(bench, "against-incumbent", ABOUT, COLUMNS, [each.cells() for each in compared], BOUNDS, broken)
    short = table(bench, "against-incumbent-short", SHORT_ABOUT, SHORT_COLUMNS, side_by_side(compared))
    keep(bench, full, short)
    return ended(broken)


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


def call(shared: Path, model: str, out: Path, formats: tuple[str, ...], *options: str) -> None:
    """Run `qexport`."""
    words = [str(QEXPORT), str(shared / f"models/{model}.pt"), "--format", ",".join(formats), "--int8", "--quiet"]
    words += ["--data", str(yaml_of(shared, "coco128")), "--no-build", "--out", str(out), *options]
    subprocess.run(words, check=True)


def yaml_of(shared: Path, name: str) -> Path:
    """A data set's YAML."""
    return shared / f"datasets/{name}/{name}.yaml"


def compare(rows: list[Row]) -> list[Compared]:
    """Every INT8 file beside what it is measured against."""
    found = {(row.model, row.tool, row.format, row.precision): row for row in rows}
    compared = []
    for row in (row for row in rows if row.precision == "int8"):
        whole = found[row.model, row.tool, row.format, "fp32"]
        other = found.get((row.model, "ultralytics", row.format, "int8"))
        of_other = ratio(row, other) if other and other is not row else None
        compared.append(Compared(row, whole, ratio(row, whole), of_other))
    return compared


def side_by_side(compared: list[Compared]) -> list[list[Any]]:
    """A line for each model and format that both tools write."""
    by_file = {(each.row.model, each.row.format, each.row.tool): each for each in compared}
    pairs = [(one, by_file.get((one.row.model, one.row.format, "ultralytics"))) for one in compared]
    return [
        [
            *(one.row.model, one.row.format, one.row.fidelity, other.row.fidelity),
            *(one.retention, other.retention, one.of_incumbent),
        ]
        for one, other in pairs
        if other and other is not one
    ]


def ratio(row: Row, other: Row) -> float | None:
    """Median over blocks of how long one file takes as a share of another."""
    pairs = list(zip(row.ms, other.ms, strict=True))
    return statistics.median(one / two for one, two in pairs) if pairs else None


if __name__ == "__main__":
    sys.exit(main())
