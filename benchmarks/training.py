"""Measure what a step of quantisation-aware training costs on the real models, or what training is worth.

    make bench-training    (or: .venv/bin/python benchmarks/training.py [--device cuda] [--models NAME …] …)
    .venv/bin/python benchmarks/training.py --fidelity [--epochs N] [--formats F,F] [--half first]

Seconds of a step and peak memory, each model in a process of its own, against the float network's forward pass over
the same batch. With --fidelity the models are trained without labels on coco128, exported to all formats, and scored
on one half of coco-val100 beside `--effort best` without training.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accuracy import FORMATS, QEXPORT, Row, Runs, print_table

from qexport import calibrate, make_target, plan, read_model
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import hold_out
from qexport.programs.captured_graph import on_device
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.training.images import Batch, augmented
from qexport.training.judge import Judge
from qexport.training.loop import train
from qexport.training.recipe import Recipe
from qexport.training.state import TrainingState

MODELS = ("yolo26n", "yolov8n")
WARM_UP = 1
"""Steps that are not counted: the first one allocates."""


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(__file__).resolve().parents[2] / "shared")
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--format", default="tflite", help="whose plan is trained when steps are timed")
    parser.add_argument("--imgsz", type=int, default=640)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--fidelity", action="store_true", help="train, export and score instead")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--half", choices=("first", "second", "both"), default="second")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(cost(given, given.one)))
    elif given.fidelity:
        with tempfile.TemporaryDirectory(prefix="qexport-bench-") as scratch:
            for model in given.models:
                print_table(model, worth(given, Runs(given.shared, Path(scratch), given.half), model))
    else:
        print_costs(given)
    return 0


def print_costs(given: argparse.Namespace) -> None:
    """Print a line for each model, measured in a process of its own: peaks of memory never fall."""
    card = torch.cuda.get_device_name(given.device) if given.device != "cpu" else f"{torch.get_num_threads()} threads"
    print(f"{card}, torch {torch.__version__}, {given.imgsz} pixels, batches of {given.batch}\n")
    print("| model | float forward, s | step, s | step / forward | peak memory, GB |\n| --- | --- | --- | --- | --- |")
    for model in given.models:
        words = [sys.executable, __file__, *sys.argv[1:], "--one", model]
        done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        ratio = found["step"] / found["forward"]
        line = f"| {model} | {found['forward']:.3f} | {found['step']:.3f} | {ratio:.1f} | {found['memory'] / 1e9:.2f} |"
        print(line, flush=True)


def cost(given: argparse.Namespace, model: str) -> dict[str, float]:
    """Median seconds of a float forward pass and of a training step, and peak memory in bytes."""
    images = sorted((given.shared / "datasets/coco128/images/train2017").glob("*.jpg"))[: 4 * given.batch]
    program = read_model(given.shared / f"models/{model}.pt", imgsz=given.imgsz, batch=given.batch).program
    made = plan(program, calibrate(program, images), make_target(given.format))
    assert made is not None
    recipe = Recipe(epochs=1, batch=given.batch, device=given.device)
    batches = list(augmented(images, program.input, given.batch, 0).epoch(1))
    steps = Timed([batches[i % len(batches)] for i in range(given.steps + WARM_UP + 1)], waited(given.device))
    forward = forward_seconds(program, batches[0], given)
    if given.device != "cpu":
        torch.cuda.reset_peak_memory_stats(given.device)
    held_out = hold_out(program, images[: given.batch])
    train(Candidate(program, made, program), steps, Judge(held_out), recipe, Nowhere(), Silent())
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if given.device != "cpu":
        memory = torch.cuda.max_memory_allocated(given.device)
    return {"forward": forward, "step": statistics.median(steps.seconds[WARM_UP:]), "memory": memory}


def forward_seconds(program: Program, batch: Batch, given: argparse.Namespace) -> float:
    """Median seconds of the float network's forward pass."""
    graph, pixels, wait = on_device(program, given.device), batch.pixels.to(given.device), waited(given.device)
    seconds = []
    with torch.no_grad():
        for _ in range(given.steps + WARM_UP):
            wait()
            started = time.perf_counter()
            graph(pixels)
            wait()
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM_UP:])


def waited(device: str) -> Callable[[], None]:
    """Return what waits until a device has done its work."""
    return torch.cuda.synchronize if device != "cpu" else lambda: None


class Timed:
    """Batches that are there already, and the seconds between one and the next: those of a step."""

    def __init__(self, batches: list[Batch], wait: Callable[[], None]) -> None:
        self.batches, self.wait = batches, wait
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, number: int) -> Iterator[Batch]:
        """Yield all of them."""
        for batch in self.batches:
            started = time.perf_counter()
            yield batch
            self.wait()
            self.seconds.append(time.perf_counter() - started)


class Nowhere:
    """Keeps no state."""

    def save(self, state: TrainingState, /) -> None:
        """Forget it."""

    def load(self) -> None:
        """There is none."""


def worth(given: argparse.Namespace, runs: Runs, model: str) -> Iterator[Row]:
    """Fidelity of `--effort best`, and of what training makes of it, on the same images."""
    half = runs.evaluation("coco-val100")
    size = ("--imgsz", str(given.imgsz))
    yield from runs.rows(model, "PTQ", given.formats, "coco128", half, "--int8", "--effort", "best", *size)
    out, started = runs.scratch / f"{model}-qat", time.perf_counter()
    data = str(given.shared / "datasets/coco128/coco128.yaml")
    words = [str(QEXPORT), "qat", str(given.shared / f"models/{model}.pt"), "--data", data, "--effort", "best", *size]
    words += ["--format", given.formats, "--epochs", str(given.epochs), "--batch", str(given.batch)]
    subprocess.run([*words, "--device", given.device, "--out", str(out)], check=True)
    print(f"{model}: {time.perf_counter() - started:.0f} s of qat for {given.formats}", flush=True)
    trained = out / f"{model}_qat.pt"
    yield from runs.rows(model, "QAT", given.formats, "coco128", half, "--int8", *size, file=trained)


if __name__ == "__main__":
    sys.exit(main())
