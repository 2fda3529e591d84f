"""Accuracy and latency of everything that a run has written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qexport.clock import Clock
from qexport.data.evaluation_set import EvaluationSet, make_evaluation_set
from qexport.data.inputs import RunImages
from qexport.job import ExportJob
from qexport.lowering.lower import Written
from qexport.measurement.accuracy import Accuracy, Detections, evaluate
from qexport.measurement.latency import ROUNDS, WARM_UP, Latency, measure_latency
from qexport.programs.program import INPUT, Program
from qexport.verification.output_fidelity import OutputFidelity, compare_outputs
from qexport.verification.verify import sample_inputs

MOST_COMPARED = 128
"""Runs that outputs are compared on."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one artifact; None where it was not asked for.

    `outputs` is what is measured in place of accuracy where nobody knows what they mean.
    """

    accuracy: Accuracy | None = None
    latency: Latency | None = None
    outputs: tuple[OutputFidelity, ...] = ()


def measure(
    job: ExportJob, task: str, program: Program, images: RunImages, written: Sequence[Written], clock: Clock
) -> dict[Path, Figures]:
    """Measure every artifact, by path. Float ones are scored first: INT8 fidelity refers to them."""
    latencies = _latencies(job, program, images, written, clock) if job.times else {}
    accuracies = _accuracies(task, program.head, images, written, clock) if task and not job.no_eval else {}
    outputs = _outputs(job, program, images, written, clock) if not task and not job.no_eval else {}
    paths = [item.artifact.path for item in written]
    return {path: Figures(accuracies.get(path), latencies.get(path), outputs.get(path, ())) for path in paths}


def _outputs(
    job: ExportJob, program: Program, images: RunImages, written: Sequence[Written], clock: Clock
) -> dict[Path, tuple[OutputFidelity, ...]]:
    """Compare every artifact's outputs with those of the FP32 file of its runtime."""
    floats = {w.backend.name: w.artifact.path for w in written if w.artifact.precision == "fp32"}
    found: dict[Path, tuple[OutputFidelity, ...]] = {}
    for item in (w for w in written if w.runs_here and w.artifact.precision != "fp32" and w.backend.name in floats):
        paths = images.evaluation[: MOST_COMPARED * program.batch]
        title = f"compare_{item.backend.name}_{item.artifact.precision}", f"Comparing {item.artifact.path.name}"
        with clock.step(*title, len(paths)) as advance:
            reference = item.backend.runner(floats[item.backend.name], job.threads)
            actual = item.backend.runner(item.artifact.path, job.threads)
            batches = (b for p in each_batch(paths, program.batch) for b in sample_inputs(p, program, count=1))
            found[item.artifact.path] = compare_outputs(program, reference, actual, batches, advance)
    return found


def each_batch(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Images for one run after the other."""
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _latencies(
    job: ExportJob, program: Program, images: RunImages, written: Sequence[Written], clock: Clock
) -> dict[Path, Latency]:
    # Without any image a grey one does: what these kernels take does not depend on the pixels.
    grey = np.full(program.values[INPUT].shape, 0.5, dtype=np.float32)
    batch = next(iter(sample_inputs(images.any, program, count=1)), grey)
    found: dict[Path, Latency] = {}
    # One runtime at a time: in one loop, who runs behind another runtime's session was seen to be slower.
    for name in dict.fromkeys(item.backend.name for item in written if item.timed):
        paths = [item for item in written if item.timed and item.backend.name == name]
        runners = {str(w.artifact.path): w.backend.runner(w.artifact.path, job.threads) for w in paths}
        with clock.step("latency", f"Timing {name}", WARM_UP + ROUNDS) as advance:
            timed = measure_latency(runners, batch, on_round=advance)
        found.update((Path(path), latency) for path, latency in timed.items())
    return found


def _accuracies(
    task: str, head: str, images: RunImages, written: Sequence[Written], clock: Clock
) -> dict[Path, Accuracy]:
    assert images.evaluation_data is not None
    found: dict[Path, Accuracy] = {}
    references: dict[str, Detections] = {}
    with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
        data = make_evaluation_set(images.evaluation_data, images.evaluation, Path(scratch) / "data")
        for item in sorted((w for w in written if w.runs_here), key=lambda w: w.artifact.precision != "fp32"):
            accuracy = _accuracy(item, (task, head), data, Path(scratch), references.get(item.backend.name), clock)
            found[item.artifact.path] = accuracy
            if item.artifact.precision == "fp32":
                references[item.backend.name] = accuracy.detections
    return found


def _accuracy(
    item: Written,
    model: tuple[str, str],
    data: EvaluationSet,
    scratch: Path,
    reference: Detections | None,
    clock: Clock,
) -> Accuracy:
    path = item.artifact.path
    kind = item.backend.name if item.engine_runtime is None else "engine"
    title = f"evaluate_{kind}_{item.artifact.precision}", f"Scoring {path.name}"
    with clock.step(*title, len(data.links)) as advance, item.backend.validation():
        return evaluate(path, model[0], data, scratch, reference, advance, model[1])
