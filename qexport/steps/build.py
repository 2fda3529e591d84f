"""One artifact: plan → optimise → lower → verify, and only then the file gets its name. In any process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qexport.backends.artifact import describe_artifact
from qexport.backends.device_fit import DeviceFit
from qexport.backends.protocol import Backend
from qexport.backends.registry import device_check, find_backend, other_formats
from qexport.calibration.calibration_table import CalibrationTable
from qexport.clock import Clock
from qexport.errors import ConversionError, VerificationError
from qexport.execution.executor import WorkerDiedError
from qexport.inspection.run_folder import free_name
from qexport.lowering.request import Target
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.candidate_file import load_candidate, save_candidate
from qexport.optimisation.mixed_precision import Replan
from qexport.optimisation.pass_record import NO_INTEGERS, PassRecord, not_run
from qexport.planning.learned_ranges import learned_ranges
from qexport.planning.plan import QuantPlan, save_plan
from qexport.planning.registry import DEFAULT_RANGES
from qexport.programs.build import Source
from qexport.progress import Progress, Silent, Titled
from qexport.steps.lower import lower
from qexport.steps.optimise import optimise
from qexport.steps.plan import beyond_half, computes_in_integers, plan, planned_as_learned
from qexport.steps.verify import Verified, verify
from qexport.system.files import write_whole
from qexport.targets import INTEGERS_ONLY
from qexport.verification.against_float import likeness
from qexport.verification.result import ArtifactResult

SILENT = Silent()
UNUSED = "the checkpoint was trained for integers; what it has learned is not used, as a plan or a candidate was given"
MADE_OF_LEARNED = "weights and scales were learned in training, but for what was planned once more"


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built, so that any process with the source can.

    Attributes:
        path, plan_path: where the file and its plan go.
        samples: images to try it on.
        model: SHA-256 of the model's file as the first process read it.
        plan: one that was given, obeyed in place of planning.
        candidate: file of one that was given, obeyed in place of planning and optimising.
        learned: weights and scales are those that the source's checkpoint has learned, which goes before planning; a
            plan or a candidate beside it was made of them.
        candidate_path: where a candidate goes that is not what was planned; None for nowhere.
        table, ranges, keep_float: what a plan is made by, see `qexport.steps.plan.plan`.
        densify: see `Candidate`.
        passes, images: names of passes over the weights, and the calibration images: passes and thresholds are made
            on them.
        views: passes see few images in other pictures, too.
        options: the backend's own.
        device: name of the target in `qexport.targets`, "" for none.
        others: formats that a refusal may name, because they are not asked for and take such models.
    """

    target: Target
    path: Path
    plan_path: Path
    samples: tuple[Path, ...]
    model: str
    plan: QuantPlan | None = None
    candidate: Path | None = None
    learned: bool = False
    candidate_path: Path | None = None
    table: CalibrationTable | None = None
    ranges: str = DEFAULT_RANGES
    keep_float: tuple[str, ...] = ()
    densify: bool = False
    passes: tuple[str, ...] = ()
    images: tuple[Path, ...] = ()
    views: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 2
    device: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """What came of it, and the seconds that planning, optimising, simulating, lowering and verifying took."""

    result: ArtifactResult
    seconds: Mapping[str, float]


def ready(source: Source) -> None:
    """Let a process read the source while nothing is asked of it yet."""


def build(source: Source, request: BuildRequest, *, progress: Progress = SILENT) -> Built:
    """Build and verify one artifact; its plan is saved first, and what passes made of its program.

    Args:
        progress: shows the passes' steps, with the name of the artifact.

    Raises:
        ConversionError, VerificationError: the file is not kept.
        WorkerDiedError: this process has read another model than the request is of.
    """
    if request.model != source.checkpoint.fingerprint:
        raise WorkerDiedError("the model's file was another one when this process read it")
    clock, target, notes = Clock(Silent()), request.target, list[str]()
    name = f"{target.format}_{target.precision}"
    with clock.timed(f"plan_{name}"):
        candidate, told = planned_candidate(source, request)
    notes += told
    candidate, records = optimised(candidate, request, progress, clock)
    seen = None
    if candidate and request.images and computes_in_integers(target):
        with clock.timed(f"simulate_{name}"):
            seen = likeness(candidate, request.images)
    kept = _save(candidate, request, any(record.kept for record in records)) if candidate else None
    made = replace(source, program=candidate.program) if candidate else source
    planned = candidate.plan if candidate else None
    with clock.timed(f"plan_{name}"):
        float32 = beyond_half(made.program, target, request.table, request.samples)
    with _others_named(target, request.others), write_whole(request.path) as temporary:
        with clock.timed(f"lower_{name}"):
            lower(
                made,
                target,
                temporary,
                planned,
                float32=float32,
                keep_float=request.keep_float,
                options=request.options,
                thresholds=seen.thresholds if seen else None,
                warn=notes.append,
            )
        with clock.timed(f"verify_{name}"):
            samples, threads = request.samples, request.threads
            verified = verify(temporary, made.program, target, planned, samples, threads, source.program)
            fit = _fit(request.device, find_backend(target.format), temporary, request.path)
    result = replace(_result(request, verified, fit), passes=records, candidate=kept, likeness=seen)
    result = replace(result, plan=request.plan_path if planned else None, warnings=tuple(notes))
    return Built(result, clock.seconds)


def _result(request: BuildRequest, verified: Verified, fit: DeviceFit | None) -> ArtifactResult:
    """What is known of a file that has its name now."""
    target, backend = request.target, find_backend(request.target.format)
    artifact = describe_artifact(request.path, target.format, target.precision)
    if verified.verification is None:
        return ArtifactResult(artifact, backend, stored=verified.stored)
    return ArtifactResult(
        artifact,
        backend,
        verified.verification,
        quantisation=integer_types(target, backend),
        fit=fit,
        sqnr=verified.sqnr,
        stored=verified.stored,
    )


def planned_candidate(source: Source, request: BuildRequest) -> tuple[Candidate | None, tuple[str, ...]]:
    """What was given or learned, or the program with the plan that is made for it; None where nothing becomes integers.

    With it what a report has to say of where weights and scales are from.
    """
    program = source.program
    origin = (MADE_OF_LEARNED if request.learned else UNUSED,) if source.checkpoint.trained else ()
    if request.candidate is not None:
        return load_candidate(request.candidate, program), origin
    if request.plan is not None:
        return Candidate(program, request.plan, program, request.densify), origin
    if request.learned:
        candidate, note = planned_as_learned(source, request.target, request.table, request.ranges, request.keep_float)
        return candidate, (note,)
    made = plan(program, request.table, request.target, ranges=request.ranges, keep_float=request.keep_float)
    return (None if made is None else Candidate(program, made, program, request.densify)), ()


def replanner(request: BuildRequest, candidate: Candidate) -> Replan | None:
    """What plans a program once more with values in float; None where the plan is given, or there must be no float."""
    if request.plan or request.candidate or request.target.precision == INTEGERS_ONLY:
        return None

    learned = learned_ranges(candidate.plan, "learned in training") if request.learned else None

    def replan(floats: Mapping[str, str]) -> QuantPlan:
        made = plan(
            candidate.program,
            request.table,
            request.target,
            ranges=request.ranges,
            keep_float=request.keep_float,
            floats=floats,
            learned=learned,
        )
        assert made is not None
        return made

    return replan


def optimised(
    candidate: Candidate | None, request: BuildRequest, progress: Progress, clock: Clock
) -> tuple[Candidate | None, tuple[PassRecord, ...]]:
    """Run the passes that are asked for, where there are integers to make better."""
    if not request.passes:
        return candidate, ()
    if candidate is None or not candidate.plan.integer:
        return candidate, not_run(request.passes, NO_INTEGERS)
    if request.learned:
        return candidate, not_run(request.passes, "weights and scales were learned in training")
    made = f"{request.target.format} {request.target.precision}"
    with clock.timed(f"optimise_{made.replace(' ', '_')}"):
        shown, again = Titled(progress, f" ({made})"), replanner(request, candidate)
        return optimise(candidate, request.passes, request.images, shown, replan=again, views=request.views)


def _save(candidate: Candidate, request: BuildRequest, changed: bool) -> Path | None:
    """Save the plan and, where it is not what was planned, the candidate; return where that is."""
    save_plan(candidate.plan, request.plan_path)
    if request.candidate_path is None or not (changed or request.candidate or request.learned):
        return None
    save_candidate(candidate, request.candidate_path)
    return request.candidate_path


def integer_types(target: Target, backend: Backend) -> dict[str, str]:
    """What a report says of the integers of a target's files."""
    profile = target.profile
    assert profile is not None
    sums = "16-bit sums of pairs" if profile.saturating_pair_accumulation else "full range"
    return {
        "activations": profile.activation.name,
        "weights": f"{profile.weight.name}, {sums}",
        "cpu": target.cpu if len(backend.info.profiles[target.precision]) > 1 else "any",
    }


@contextmanager
def _others_named(target: Target, able: tuple[str, ...]) -> Iterator[None]:
    """Let a format's refusal of a model say which formats do without its code, unless it names one itself."""
    try:
        yield
    except (ConversionError, VerificationError) as error:
        others = [name for name in other_formats(target.format, target.precision) if name in able]
        if not others or "--format" in error.remedy:
            raise
        remedy = f"{error.remedy}; other formats may take it: --format {','.join(others)}"
        raise type(error)(error.what, remedy) from error


def _fit(device: str, backend: Backend, file: Path, path: Path) -> DeviceFit | None:
    """What a device that is not here makes of a file that is going to be at `path`."""
    check = device_check(backend, device)
    return check(file, path) if check else None


def companion_path(wanted: str, target: Target, artifact: Path, stem: str, alone: bool) -> Path:
    """`plan.json` or `candidate.npz` beside an artifact.

    Its name has the format in it unless `alone`, and the artifact's name if that is taken.

    Args:
        wanted: as above.
        stem: what the run's artifacts are named after.
    """
    key, suffix = Path(wanted).stem, Path(wanted).suffix
    name = wanted if alone else f"{key}_{target.format}{suffix}"

    def same(manifest: Mapping[str, Any]) -> bool:  # an engine shares its graph's
        named = str(manifest.get("artifact", "")).startswith(f"{stem}_{target.precision}")
        return named and manifest.get("format") == target.format

    return artifact.with_name(free_name(artifact.parent, name, artifact.name, key, same))
