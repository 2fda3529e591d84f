"""Accuracy and latency of everything that a run has written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import LowersFloats, Runner
from qexport.clock import Clock
from qexport.data.dataset import fingerprint
from qexport.data.evaluation_set import EvaluationSet, make_shards
from qexport.data.selection import RunImages
from qexport.measurement.accuracy import Accuracy, Elsewhere, evaluate_shards
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.kept import (
    Compared,
    Timing,
    Timings,
    identity,
    keep,
    keep_accuracy,
    kept,
    kept_accuracy,
    placed,
    set_digest,
    still_holds,
    timing_key,
    unchanged,
)
from qexport.measurement.latency import ROUNDS, WARM_UP, Latency, measure_latency
from qexport.measurement.recorder import Detections
from qexport.measurement.shards import RunnerRequest
from qexport.programs.program import INPUT, Program
from qexport.programs.sample_inputs import named_inputs, sample_inputs
from qexport.system.cache import Cache
from qexport.verification.finite import FiniteRunner, NotFiniteError
from qexport.verification.outcome import OutputFidelity
from qexport.verification.output_fidelity import compare_outputs
from qexport.verification.result import ArtifactResult

Elsewheres = Callable[[RunnerRequest], Elsewhere]
"""Other processes that score shards, once they know what with."""
NO_CACHE = Cache()
MAX_COMPARED = 128
"""Runs that outputs are compared on."""
Timed = tuple[Path, str]
"""What is timed: a file, and the type that it is computed in where that is not the one that all else is measured in."""


@dataclass(frozen=True)
class Figures:
    """What was measured of one artifact; None where it was not asked for.

    `outputs` is what is measured in place of accuracy where nobody knows what they mean, `by_default` an FP32 file's
    latency where its runtime would compute it in less than FP32 if nobody asked, as (type, latency). `taken` has those
    that an earlier run has measured, "accuracy", "latency" or "outputs" → when, in UTC. `key` is the same where the
    accuracy is, of images at the same places; "" where nobody can tell.
    """

    accuracy: Accuracy | None = None
    latency: Latency | None = None
    outputs: tuple[OutputFidelity, ...] = ()
    by_default: tuple[str, Latency] | None = None
    taken: Mapping[str, str] = field(default_factory=dict)
    key: str = ""


def measure(
    program: Program,
    task: str,
    images: RunImages,
    results: Sequence[ArtifactResult],
    *,
    threads: int,
    accuracy: bool,
    latency: bool,
    clock: Clock,
    missing: list[Unmeasured] | None = None,
    cache: Cache = NO_CACHE,
    elsewhere: Elsewheres | None = None,
) -> dict[Path, Figures]:
    """Measure every artifact, by path. Float ones are scored first: INT8 fidelity refers to them.

    Args:
        task: what its outputs mean; "" if unknown, and output similarity replaces accuracy.
        images: with `evaluation_data` where accuracy is asked for and there is a task.
        threads: CPU threads of runners.
        missing: gains what could not be measured; what else can be is.
        cache: figures of earlier runs.
        elsewhere: processes that score beside this one; latency is never measured there.
    """
    lost = [] if missing is None else missing
    run = _Run(program, task, images, results, threads, clock, lost, cache, elsewhere)
    with clock.alone() if latency else nullcontext():
        latencies, lowered = _latencies(run) if latency else ({}, {})
    accuracies = _accuracies(run) if task and accuracy else {}
    outputs = _outputs(run) if not task and accuracy else {}
    paths = [item.artifact.path for item in results]
    return {
        path: Figures(
            accuracies.get(path),
            latencies.get(path),
            outputs.get(path, ()),
            lowered.get(path),
            {what: when for (each, what), when in run.taken.items() if each == path},
            run.keys.get(path, ""),
        )
        for path in paths
    }


@dataclass(frozen=True)
class _Run:
    """What is measured, and with what.

    `taken` gains when an earlier run has measured what of an artifact, `keys` by what its accuracy is known again.
    """

    program: Program
    task: str
    images: RunImages
    results: Sequence[ArtifactResult]
    threads: int
    clock: Clock
    missing: list[Unmeasured]
    cache: Cache
    elsewhere: Elsewheres | None
    taken: dict[tuple[Path, str], str] = field(default_factory=dict)
    keys: dict[Path, str] = field(default_factory=dict)


def _outputs(run: _Run) -> dict[Path, tuple[OutputFidelity, ...]]:
    """Compare every artifact's outputs with those of the FP32 file of its runtime."""
    program, results = run.program, run.results
    floats = {item.backend.info.name: item for item in results if item.artifact.precision == "fp32"}
    found: dict[Path, tuple[OutputFidelity, ...]] = {}
    others = (r for r in results if r.runs_here and r.artifact.precision != "fp32")
    for item in (other for other in others if other.backend.info.name in floats):
        path, exact = item.artifact.path, floats[item.backend.info.name]
        paths = run.images.evaluation[: MAX_COMPARED * program.input.batch]
        title = f"compare_{item.backend.info.name}_{item.artifact.precision}", f"Comparing {path.name}"
        with attempt(run.missing, "outputs", path):
            key = _key(run, "outputs", item, {"reference": identity(exact)}, fingerprint(paths))
            if earlier := kept(run.cache, key, Compared):
                found[path], run.taken[path, "outputs"] = earlier[0].outputs, earlier[1]
                continue
            with run.clock.step(*title, len(paths)) as advance:
                reference = item.backend.runner(exact.artifact.path, run.threads)
                found[path] = _compared(program, reference, _finite(item, run), paths, advance)
            if key and unchanged((item, exact)):
                keep(run.cache, key, Compared(found[path]))
    return found


def _key(run: _Run, kind: str, item: ArtifactResult, parts: Mapping[str, Any], data: str) -> str:
    """Key of what a file computes on some data; "" where nothing is kept, as of engines, whose GPU nobody knows.

    Args:
        data: digest of them, "" where nobody knows all of them.
    """
    if run.cache.folder is None or item.engine or not data:
        return ""
    program = run.program
    of_program = {"program": program.fingerprint, "input": repr(program.input), "layout": repr(program.layout)}
    given = {"file": identity(item), "task": run.task, "threads": run.threads, "data": data}
    return run.cache.key(kind, {**of_program, **given, **parts})


def _compared(
    program: Program, reference: Runner, actual: Runner, paths: Sequence[Path], advance: Callable[[], None]
) -> tuple[OutputFidelity, ...]:
    latest: tuple[Path, ...] = ()

    def batches() -> Iterator[NDArray[np.float32]]:
        nonlocal latest
        for some in each_batch(paths, program.input.batch):
            for latest, given in named_inputs(some, program, count=1):  # noqa: B007  a refusal names it
                yield given

    try:
        return compare_outputs(program, reference, actual, batches(), advance)
    except NotFiniteError as error:
        raise error.named(str(latest[error.place])) from error


def _finite(item: ArtifactResult, run: _Run) -> FiniteRunner:
    name = "engine" if item.engine else item.backend.info.name
    runner = item.backend.runner(item.artifact.path, run.threads)
    return FiniteRunner(runner, run.program, name, half=item.artifact.precision == "fp16")


def each_batch(paths: Sequence[Path], size: int) -> Iterator[Sequence[Path]]:
    """Images for one run after the other."""
    return (paths[start : start + size] for start in range(0, len(paths), size))


def _latencies(run: _Run) -> tuple[dict[Path, Latency], dict[Path, tuple[str, Latency]]]:
    """Latency of each artifact; and of FP32 files in the type that their runtime would choose, where it is another."""
    program, missing = run.program, run.missing
    timed = [item for item in run.results if item.timed]
    found: dict[Timed, Latency] = {}
    with attempt(missing, "latency", *(item.artifact.path for item in timed)):
        # Without any image a grey one does: what these kernels take does not depend on the pixels.
        grey = np.full(program.values[INPUT].shape, 0.5, dtype=np.float32)
        batch = next(iter(sample_inputs(run.images.samples, program, count=1)), grey)
        # One runtime at a time: in one loop, who runs behind another runtime's session was seen to be slower.
        for name in dict.fromkeys(item.backend.info.name for item in timed):
            found |= _timed_once(run, name, [item for item in timed if item.backend.info.name == name], batch)
    own = {path: latency for (path, kind), latency in found.items() if not kind}
    return own, {path: (kind, latency) for (path, kind), latency in found.items() if kind}


def _timed_once(
    run: _Run, name: str, items: Sequence[ArtifactResult], batch: NDArray[np.float32]
) -> dict[Timed, Latency]:
    """Latencies of a runtime's files, timed in turns now, or all of them by one earlier run."""
    key, before = timing_key(run.cache, items, batch, run.threads), len(run.missing)
    if (earlier := kept(run.cache, key, Timings)) and still_holds(*earlier):
        run.taken.update({(item.artifact.path, "latency"): earlier[1] for item in items})
        return {(items[row.artifact].artifact.path, row.kind): row.latency for row in earlier[0].rows}
    runners: dict[Timed, Runner] = {}
    for item in items:
        with attempt(run.missing, "latency", item.artifact.path):
            runners |= _runners(item, run.threads)
    with run.clock.step("latency", f"Timing {name}", WARM_UP + ROUNDS) as advance:
        found = _timed(runners, batch, advance, run.missing)
    if key and len(run.missing) == before and unchanged(items):
        places = {item.artifact.path: number for number, item in enumerate(items)}
        rows = (Timing(places[path], kind, latency) for (path, kind), latency in found.items())
        keep(run.cache, key, Timings(tuple(rows)))
    return found


def _runners(item: ArtifactResult, threads: int) -> dict[Timed, Runner]:
    """What is timed of a file: FP32 ones once more where their runtime would compute them in another type."""
    path, backend = item.artifact.path, item.backend
    runners: dict[Timed, Runner] = {(path, ""): backend.runner(path, threads)}
    if item.artifact.precision == "fp32" and isinstance(backend, LowersFloats):
        other = backend.by_default(path, threads)
        if other is not None:
            runners[path, other[0]] = other[1]
    return runners


def _timed(
    runners: Mapping[Timed, Runner], batch: NDArray[np.float32], advance: Callable[[], None], missing: list[Unmeasured]
) -> dict[Timed, Latency]:
    """Time all of a runtime together; where that fails, without those that do not run at all."""
    blamed: list[Unmeasured] = []
    together: list[Unmeasured] = []
    with attempt(together, "latency", *dict.fromkeys(path for path, _ in runners)):
        named = {f"{path} {kind}": runner for (path, kind), runner in runners.items()}
        measured = measure_latency(named, batch, on_round=advance) if runners else {}
        return dict(zip(runners, measured.values(), strict=True))
    for (path, _), runner in runners.items():
        with attempt(blamed, "latency", path):
            runner(batch)
    missing += blamed or together
    names = {each.artifact for each in blamed or together}
    able = {(path, kind): runner for (path, kind), runner in runners.items() if path.name not in names}
    return _timed(able, batch, advance, missing) if able else {}


def _accuracies(run: _Run) -> dict[Path, Accuracy]:
    found: dict[Path, Accuracy] = {}
    references: dict[str, tuple[Detections, str]] = {}
    scored = sorted((r for r in run.results if r.runs_here), key=lambda r: r.artifact.precision != "fp32")
    with (
        attempt(run.missing, "accuracy", *(item.artifact.path for item in scored)),
        tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as scratch,
    ):
        place = Path(scratch) / "data"
        data = evaluation_shards(run.program, run.task, run.images, place)
        links = {name: path for each in data for name, path in each.links.items()}
        digest = set_digest(data) if run.cache.folder else ""
        for item in scored:
            path, name = item.artifact.path, item.backend.info.name
            with attempt(run.missing, "accuracy", path):
                detections, of_reference = references.get(name, (None, ""))
                key = _key(run, "accuracy", item, {"reference": of_reference}, digest)
                if earlier := kept_accuracy(run.cache, key, links):
                    found[path], run.taken[path, "accuracy"] = earlier
                    run.keys[path] = placed(run.cache, key, links)
                else:
                    found[path] = _accuracy(run, item, data, detections)
                    if key and unchanged((item,)) and set_digest(data) == digest:
                        keep_accuracy(run.cache, key, found[path])
                        run.keys[path] = placed(run.cache, key, links)
                if item.artifact.precision == "fp32":
                    references[name] = found[path].detections, key
    return found


def evaluation_shards(program: Program, task: str, images: RunImages, folder: Path) -> tuple[EvaluationSet, ...]:
    """The evaluation images of a run, which have a data set, as validators read them.

    Args:
        folder: new; there as long as they are read.
    """
    data = images.evaluation_data
    assert data is not None
    if task == "pose" and data.kpt_shape is None:
        data = replace(data, kpt_shape=program.layout.shape)
    given = data, images.evaluation, folder, images.classes
    return make_shards(*given, task=task, labelled=images.labelled, batch=program.input.batch)


def _accuracy(
    run: _Run, item: ArtifactResult, shards: Sequence[EvaluationSet], reference: Detections | None
) -> Accuracy:
    path, program = item.artifact.path, run.program
    kind = item.backend.info.name if not item.engine else "engine"
    title = f"evaluate_{kind}_{item.artifact.precision}", f"Scoring {path.name}"
    elsewhere = None
    if run.elsewhere and not item.engine:
        elsewhere = run.elsewhere(RunnerRequest(item.backend.info.name, path, item.artifact.sha256, run.threads))
    with run.clock.step(*title, sum(len(each.links) for each in shards)) as advance:
        return evaluate_shards(
            lambda: _finite(item, run),
            program.layout,
            run.task,
            shards,
            batch=program.input.batch,
            reference=reference,
            on_image=advance,
            elsewhere=elsewhere,
        )
