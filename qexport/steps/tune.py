"""Make an artifact as fast as this machine lets it be: plan, write and time other plans, and build the fastest.

What is found depends on the machine, so that it is taken of an earlier run where model, plan, versions and machine are
the same ones.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qexport.backends.protocol import Runner
from qexport.backends.registry import find_backend
from qexport.errors import QexportError
from qexport.measurement.kept import keep, kept
from qexport.measurement.paired import Paired, compare_latency
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, distance, hold_out
from qexport.optimisation.mixed_precision import replanned
from qexport.optimisation.sensitivity import NOT_MEASURABLE
from qexport.optimisation.tune_record import TuneRecord
from qexport.optimisation.variations import variations
from qexport.planning.runtime_profiles import Alternative
from qexport.programs.build import Source
from qexport.programs.program import INPUT
from qexport.programs.sample_inputs import sample_inputs
from qexport.progress import Progress
from qexport.steps.build import BuildRequest, replanner
from qexport.steps.changed_plan import asked_with, float_before, judging_images, made_from
from qexport.steps.lower import lower
from qexport.steps.plan import beyond_half, make_target
from qexport.steps.tune_search import Budget, Contender, Planned, fastest
from qexport.system.cache import Cache
from qexport.system.capabilities import control_group_limits
from qexport.verification.result import ArtifactResult

FILE = "tuned.npz"
MAX_TRIED = 24
"""Plans that are tried at most."""
Tuned = tuple[ArtifactResult, BuildRequest]
"""An artifact, and what it was built by."""


def tuned(
    request: BuildRequest,
    first: ArtifactResult,
    source: Source,
    build: Callable[[BuildRequest], ArtifactResult],
    search: Callable[[BuildRequest, Candidate], TuneRecord],
    folder: Path,
) -> Tuned:
    """Return the artifact, or one in its place that is faster here beyond noise and no farther from FP32.

    Args:
        request: what `first` was built by, with images to judge plans on.
        build: builds a request in the place of what was there.
        search: finds a plan for what the artifact was made from: see `searched`.
        folder: where a candidate is saved to; it has to stay while that may be built.

    Raises:
        QexportError: images cannot be read, or the runtime is gone; the first file is in its place.
    """
    candidate = made_from(request, first, source.program)
    why = unfit(request, first, candidate)
    if why or candidate is None:
        return replace(first, warnings=(*first.warnings, f"not tuned: {why}")), request
    record = search(request, candidate)
    if not (record.floats or record.changes):
        return replace(first, tuning=record), request
    chosen = alternatives_of(request, record)
    planned = planner(request, candidate)(chosen, record.floats)
    asked = asked_with(varied(request, chosen), planned, folder / FILE)
    try:
        made = build(asked)
    except QexportError as error:
        again = build(request)
        return replace(again, warnings=(*again.warnings, f"not tuned: {error}")), request
    return replace(made, passes=first.passes, tuning=record), asked


def unfit(request: BuildRequest, first: ArtifactResult, candidate: Candidate | None) -> str:
    """Why there is nothing to search for, "" where there is."""
    target = request.target
    if not first.timed:
        return f"{first.backend.info.title} files are not timed on this machine"
    if make_target(target.format, target.precision).profile != target.profile:
        return f"the file is for {target.cpu} CPUs, which this machine is not"
    if candidate is None or not candidate.measurable:
        return NOT_MEASURABLE
    return "" if replanner(request, candidate) else "its plan is given"


def searched(
    request: BuildRequest, candidate: Candidate, source: Source, seconds: float, cache: Cache, key: str, show: Progress
) -> TuneRecord:
    """Search, or take what an earlier run has found.

    Args:
        key: see `tuning_key`.
        show: where the search is shown.
    """
    if earlier := kept(cache, key, TuneRecord):
        return replace(earlier[0], taken=earlier[1])
    program, target, name = source.program, request.target, find_backend(request.target.format).info.title
    assert target.profile is not None
    images = judging_images(request.images or request.samples)
    with show.step("measuring the float program", len(images)) as advance:
        held_out = hold_out(candidate.reference, images, advance)
    grey = np.full(program.values[INPUT].shape, 0.5, dtype=np.float32)
    batch = next(iter(sample_inputs(request.samples, program, count=1)), grey)
    bench = Workbench(source, request, held_out, batch)
    tried = list(variations(candidate, target.profile))[:MAX_TRIED]
    with show.step(f"Tuning {name} {target.precision} for latency", len(tried)) as advance:
        first = Contender(candidate, bench.loaded(request.path))
        _, record = fastest(first, tried, planner(request, candidate), bench, Budget(seconds), advance)
    if record.floats or record.changes or not record.restless:
        keep(cache, key, record)
    return record


def tuning_key(cache: Cache, artifact: str, first: ArtifactResult, request: BuildRequest, seconds: float) -> str:
    """Key of what a search finds; "" where nothing is kept.

    Args:
        artifact: key of the artifact as it was before: model, plan, images, versions and CPU are in it.
    """
    if not artifact:
        return ""
    machine = {"threads": request.threads, "host": platform.node(), "quota": control_group_limits()[0]}
    return cache.key("tuning", {"artifact": artifact, "file": first.artifact.sha256, "seconds": seconds, **machine})


def planner(request: BuildRequest, candidate: Candidate) -> Planned:
    """What plans a candidate once more; what a pass has put into float stays there."""
    replan = replanner(request, candidate)
    assert replan is not None
    before = float_before(candidate, replan)

    def planned(alternatives: tuple[Alternative, ...], floats: Mapping[str, str]) -> Candidate:
        again = replanner(varied(request, alternatives), candidate)
        assert again is not None
        return replanned(candidate, again, {**before, **floats})

    return planned


def varied(request: BuildRequest, alternatives: tuple[Alternative, ...]) -> BuildRequest:
    """The request for a runtime's other choices."""
    profile = request.target.profile
    assert profile is not None
    return replace(request, target=replace(request.target, profile=profile.changed(alternatives)))


def alternatives_of(request: BuildRequest, record: TuneRecord) -> tuple[Alternative, ...]:
    """A runtime's other choices by their names."""
    profile = request.target.profile
    assert profile is not None
    return tuple(each for each in profile.alternatives if each.name in record.changes)


@dataclass(frozen=True)
class Workbench:
    """Judges plans in the simulator, writes them, and times their files.

    Attributes:
        request: what the plan was built by that is there.
        batch: (n, channels, height, width) float32 to time with.
    """

    source: Source
    request: BuildRequest
    held_out: HeldOut
    batch: NDArray[np.float32]

    def distance(self, candidate: Candidate, /) -> Distance:
        """See `qexport.optimisation.distance.distance`."""
        return distance(candidate, self.held_out)

    def runner(self, candidate: Candidate, alternatives: tuple[Alternative, ...], /) -> Runner:
        """Write a file and load it; it is gone then."""
        request = varied(self.request, alternatives)
        target, program = request.target, candidate.program
        made = replace(self.source, program=program)
        with tempfile.TemporaryDirectory(prefix="qexport-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / request.path.name
            float32 = beyond_half(program, target, request.table, request.samples)
            kept_float, options = request.keep_float, request.options
            lower(made, target, path, candidate.plan, float32=float32, keep_float=kept_float, options=options)
            return self.loaded(path)

    def loaded(self, path: Path) -> Runner:
        """What runs a file, once it has run."""
        runner = find_backend(self.request.target.format).runner(path, self.request.threads)
        runner(self.batch)
        return runner

    def compare(self, first: Runner, second: Runner, stop: Callable[[], bool], /) -> Paired:
        """See `qexport.measurement.paired.compare_latency`."""
        return compare_latency(first, second, self.batch, stop=stop)
