"""Measure what each range estimator and each pass is worth on the real models, and write their table.

    make bench-ablation    (or: .venv/bin/python benchmarks/ablation.py [--models M …] [--imgsz N] [--results FILE] …)

Plans are simulated, calibrated on coco128, and compared with the float program by their distance (decision 044) on
images of one half of coco-val100. Every row is compared with one of the table, image by image: the gain is the mean
logarithm of the ratio, its standard error stands beside it. What means nothing (scales changed by a millionth) is the
first row: nothing under its figure can be told from chance.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from results import SHARED, begin, keep, table
from tables import Column

from qexport import calibrate, make_target, optimise, plan, read_model
from qexport.calibration.calibration_table import CalibrationTable
from qexport.data.choice import take
from qexport.lowering.request import Target
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, distance, hold_out, log_margin
from qexport.optimisation.effort import EFFORTS
from qexport.planning.plan import QuantPlan
from qexport.planning.registry import RANGES
from qexport.programs.program import Program

MODELS = ("yolo26n", "yolo11n", "yolov8n")
CHOSEN = EFFORTS["best"]
NUDGE = 1e-6
GAIN = "{:+.3f} ± {:.3f}"


def main() -> int:
    """Measure every row of every model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--format", default="tflite")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--images", type=int, default=24, help="that distances are measured on")
    parser.add_argument("--half", choices=("first", "second"), default="second")
    given, bench = begin(parser, "make bench-ablation")
    every = sorted((given.shared / "datasets/coco-val100/images/val2017").glob("*.jpg"))
    middle = len(every) // 2
    judged = take(every[:middle] if given.half == "first" else every[middle:], count=given.images)
    found: dict[str, list[Row]] = {}
    for name in given.models:
        program = read_model(given.shared / f"models/{name}.pt", imgsz=given.imgsz).program
        seen = sorted((given.shared / "datasets/coco128/images/train2017").glob("*.jpg"))
        statistics = calibrate(program, seen, importance=True)
        target = make_target(given.format)
        for row in rows(Setup(program, statistics, target, seen, hold_out(program, judged))):
            print(f"{name}, {row.what}: distance {row.distance:.4f}, {row.gain:+.3f} ± {row.noise:.3f}", flush=True)
            found.setdefault(name, []).append(row)
    about = f"plans for {given.format} at {given.imgsz} pixels, calibrated on coco128, simulated, compared "
    about += f"on {len(judged)} images of the {given.half} half of coco-val100"
    columns = [Column("what"), Column("against"), *(Column(name, GAIN) for name in found)]
    keep(bench, table(bench, "ablation", about, columns, side_by_side(found)))
    return 0


@dataclass(frozen=True)
class Setup:
    """One model, and what it is calibrated and judged by."""

    program: Program
    table: CalibrationTable
    target: Target
    seen: Sequence[Path]
    judged: HeldOut

    def planned(self, ranges: str) -> Candidate:
        """The candidate before passes."""
        made = plan(self.program, self.table, self.target, ranges=ranges)
        assert made is not None
        return Candidate(self.program, made, self.program)

    def passed(self, candidate: Candidate, names: Sequence[str]) -> Candidate:
        """Behind some passes, each kept only by its own judgement."""
        return optimise(candidate, list(names), self.seen, replan=self.replanned)[0]

    def replanned(self, floats: Mapping[str, str]) -> QuantPlan:
        """The plan that passes start from, with values in float."""
        assert CHOSEN.ranges is not None
        made = plan(self.program, self.table, self.target, ranges=CHOSEN.ranges, floats=floats)
        assert made is not None
        return made

    def measured(self, candidate: Candidate) -> Distance:
        """How far it is from the float program."""
        return distance(candidate, self.judged)


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    against: str
    distance: float
    gain: float
    noise: float


def side_by_side(found: Mapping[str, Sequence[Row]]) -> Iterator[list[Any]]:
    """A line for each row, with gain and noise of each model."""
    for several in zip(*found.values(), strict=True):
        yield [several[0].what, several[0].against, *([row.gain, row.noise] for row in several)]


def rows(setup: Setup) -> Iterator[Row]:
    """Noise, estimators, passes alone, all passes, and all but each."""
    assert CHOSEN.ranges is not None
    percentile = setup.planned("percentile")
    base = setup.measured(percentile)
    yield row("scales nudged by a millionth", "percentile", base, setup.measured(nudged(percentile)))
    for name in RANGES.own:
        yield row(f"ranges {name}", "percentile", base, setup.measured(setup.planned(name)))
    start = setup.planned(CHOSEN.ranges)
    before = setup.measured(start)
    for name in (*CHOSEN.passes, "bias-correction"):
        yield row(f"{name} alone", CHOSEN.ranges, before, setup.measured(setup.passed(start, [name])))
    whole = setup.measured(setup.passed(start, CHOSEN.passes))
    yield row("all passes of best", CHOSEN.ranges, before, whole)
    for name in CHOSEN.passes:
        without = [each for each in CHOSEN.passes if each != name]
        yield row(f"all but {name}", "all passes of best", whole, setup.measured(setup.passed(start, without)))


def row(what: str, against: str, before: Distance, after: Distance) -> Row:
    """Compare two."""
    return Row(what, against, after.mean, *log_margin(before, after))


def nudged(candidate: Candidate) -> Candidate:
    """The same plan with scales that differ by nothing that means anything."""
    tensors = {
        name: replace(each, scale=tuple(scale * (1 + NUDGE) for scale in each.scale))
        if each.rule in ("own", "shared") and each.axis is None
        else each
        for name, each in candidate.plan.tensors.items()
    }
    changed: QuantPlan = replace(candidate.plan, tensors=tensors)
    return replace(candidate, plan=changed)


if __name__ == "__main__":
    sys.exit(main())
