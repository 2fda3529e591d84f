"""Evaluate many images in one process and in several: equal figures, and memory that does not grow with their number.

Images of a data set's val split are repeated until there are as many as wanted. Every run is a process of its own; its
memory is that of its whole tree, with pages that several share counted once (proportional set sizes, as they are
sampled; Linux). Peaks are those of the whole run, and of its scoring and evidence alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

DEMO = Path(__file__).resolve().parents[1] / "calibration_data"
MODEL, DATA = DEMO / "shapes26.pt", DEMO / "shapes" / "shapes.yaml"
FEW, MANY = 500, 5000
MAX_GROWTH = 0.10
"""Share of the peak with few images that it may be higher with many."""
EVALUATION = ("Scoring", "Resampling", "Comparing")
"""How titles of steps begin that are measured by themselves."""
PAUSE = 0.1
"""Seconds between two samples."""


@dataclass(frozen=True)
class Run:
    """What one run took and found: MB, seconds of its scoring, and figures by file."""

    peak: float
    peak_evaluation: float
    seconds: float
    figures: Mapping[str, Any]


def repeated(data: Path, folder: Path, count: int) -> Path:
    """The YAML of a data set with as many images to evaluate on, and the first of them to calibrate with."""
    from qexport.data.dataset import image_list, label_path, load_dataset

    known = load_dataset(data)
    originals = image_list(known, "val")
    for kind in ("images", "labels"):
        for split in ("train", "val"):
            (folder / kind / split).mkdir(parents=True)
    for number in range(count):
        image = originals[number % len(originals)]
        label = label_path(image, known.labels)
        for split in ("val", *(("train",) if number < 8 else ())):
            (folder / "images" / split / f"{number:06d}{image.suffix}").symlink_to(image.absolute())
            if label.is_file():
                (folder / "labels" / split / f"{number:06d}.txt").symlink_to(label.absolute())
    content = {"path": str(folder), "train": "images/train", "val": "images/val", "names": dict(known.names)}
    if known.kpt_shape:
        content["kpt_shape"] = list(known.kpt_shape)
    (folder / "data.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder / "data.yaml"


class Steps:
    """Writes the title of the step that a run is in to a file."""

    def __init__(self, note: Path) -> None:
        self._note = note

    @contextmanager
    def step(self, title: str, _total: int | None = None) -> Iterator[Callable[..., None]]:
        """See `qexport.progress.Progress`."""
        self._note.write_text(title, encoding="utf-8")
        yield lambda _note="": None
        self._note.write_text("", encoding="utf-8")


def exact(figures: Mapping[Path, Any]) -> dict[str, Any]:
    """Figures as they are, and a digest of what they are made of, image by image."""
    found = {}
    for path, each in figures.items():
        scored, total = each.accuracy, hashlib.sha256()
        for part in (scored.detections, scored.scores, scored.fidelity_scores, scored.found):
            for name, value in part.items():
                total.update(name.encode() + pickle.dumps(value))
        numbers = scored.map, scored.map50, scored.box_map, scored.fidelity, scored.images
        found[path.name] = [repr(numbers), total.hexdigest()]
    return found


def evaluate_here(given: dict[str, Any], note: Path) -> dict[str, Any]:
    """Export in this process; return figures and seconds."""
    from qexport.job.options import make_job
    from qexport.pipeline import export

    publish: Any = import_module("qexport.publish")
    kept: dict[str, Any] = {}
    measure = publish.measure

    def measured(*arguments: Any, **named: Any) -> Any:
        figures = measure(*arguments, **named)
        kept.update(exact(figures))
        return figures

    publish.measure = measured
    report = export(make_job(given), Steps(note))
    for entry in json.loads(Path(report.saved).read_text(encoding="utf-8"))["artifacts"]:
        kept[Path(entry["path"]).name] += [entry["accuracy"], entry["gallery"]]
    seconds = sum(took for step, took in report.seconds.items() if step.startswith("evaluate_"))
    return {"figures": kept, "seconds": seconds}


def tree(process: int) -> Iterator[int]:
    """A process and its descendants."""
    yield process
    for file in Path(f"/proc/{process}/task").glob("*/children"):
        with suppress(OSError):
            for child in file.read_text(encoding="ascii").split():
                yield from tree(int(child))


def megabytes(process: int) -> float:
    """Proportional set size of a process and its descendants."""
    total = 0
    for each in tree(process):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def run(given: dict[str, Any], folder: Path, jobs: int) -> Run:
    """Do one run in a process of its own."""
    note, result = folder / "step", folder / "result.json"
    note.write_text("", encoding="utf-8")
    words = ["--here", json.dumps({**given, "out": str(folder / "out"), "jobs": jobs}), str(note), str(result)]
    child = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    peak = peak_evaluation = 0.0
    while child.poll() is None:
        now, step = megabytes(child.pid), note.read_text(encoding="utf-8")
        peak = max(peak, now)
        peak_evaluation = max(peak_evaluation, now) if step.startswith(EVALUATION) else peak_evaluation
        time.sleep(PAUSE)
    if child.returncode:
        raise SystemExit(f"the run ended with {child.returncode}")
    found = json.loads(result.read_text(encoding="utf-8"))
    return Run(peak, peak_evaluation, found["seconds"], found["figures"])


def grown(name: str, few: Run, many: Run) -> bool:
    """Print how peaks have grown, and say whether that is within the bound."""
    growths = []
    for what, low, high in (
        ("the whole run", few.peak, many.peak),
        ("scoring and evidence", few.peak_evaluation, many.peak_evaluation),
    ):
        growths.append(high / low - 1)
        print(f"{name}: peak of {what} {low:.0f} → {high:.0f} MB: {growths[-1]:+.1%}, {MAX_GROWTH:.0%} at most")
    print(f"{name}: scoring took {few.seconds:.0f} and {many.seconds:.0f} s", flush=True)
    return max(growths) <= MAX_GROWTH


def main() -> int:
    """Measure, print, and return 0 if all bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--data", type=Path, default=DATA, help="its val split is repeated")
    parser.add_argument("--images", type=int, nargs=2, default=(FEW, MANY))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--format", default="onnx")
    parser.add_argument("--imgsz", type=int, default=64)
    parser.add_argument("--here", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        what, note, result = given.here
        Path(result).write_text(json.dumps(evaluate_here(json.loads(what), Path(note))), encoding="utf-8")
        return 0
    fixed = {"model": str(given.model), "format": given.format, "imgsz": given.imgsz, "int8": True, "effort": "none"}
    fixed |= {"no_latency": True, "no_cache": True}
    runs: dict[tuple[int, int], Run] = {}
    for count in given.images:
        with tempfile.TemporaryDirectory(prefix="large-") as name:
            folder = Path(name)
            data = repeated(given.data, folder / "set", count)
            for jobs in (1, given.jobs):
                runs[count, jobs] = run({**fixed, "data": str(data)}, folder, jobs)
    few, many = given.images
    held = [grown(f"{jobs} process(es)", runs[few, jobs], runs[many, jobs]) for jobs in (1, given.jobs)]
    for count in given.images:
        same = runs[count, 1].figures == runs[count, given.jobs].figures
        held.append(same)
        print(
            f"{count} images: figures of {given.jobs} processes are {'equal' if same else 'NOT equal'} to those of one"
        )
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
