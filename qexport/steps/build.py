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
from qexport.planning.plan import QuantPlan, save_plan
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.progress import Silent
from qexport.steps.lower import lower
from qexport.steps.plan import beyond_half, plan
from qexport.steps.verify import Verified, verify
from qexport.system.files import write_whole
from qexport.verification.result import ArtifactResult


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built, so that any process with the source can.

    Attributes:
        path, plan_path: where the file and its plan go.
        samples: images to try it on.
        model: SHA-256 of the model's file as the first process read it.
        plan: one that was given, obeyed in place of planning.
        table, ranges, keep_float: what a plan is made by, see `qexport.steps.plan.plan`.
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
    table: CalibrationTable | None = None
    ranges: str = "percentile"
    keep_float: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 2
    device: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Built:
    """What came of it, and the seconds that planning, lowering and verifying took."""

    result: ArtifactResult
    seconds: Mapping[str, float]


def ready(source: Source) -> None:
    """Let a process read the source while nothing is asked of it yet."""


def build(source: Source, request: BuildRequest) -> Built:
    """Build and verify one artifact; its plan is saved first.

    Raises:
        ConversionError, VerificationError: the file is not kept.
        WorkerDiedError: this process has read another model than the request is of.
    """
    if request.model != source.checkpoint.fingerprint:
        raise WorkerDiedError("the model's file was another one when this process read it")
    clock, target, program, notes = Clock(Silent()), request.target, source.program, list[str]()
    name = f"{target.format}_{target.precision}"
    with clock.timed(f"plan_{name}"):
        planned = _planned(program, request)
        float32 = beyond_half(program, target, request.table, request.samples)
    # `optimise` is called here, on the program and its plan: what it returns is lowered, and verified against its plan.
    with _others_named(target, request.others), write_whole(request.path) as temporary:
        with clock.timed(f"lower_{name}"):
            keep, options, warn = request.keep_float, request.options, notes.append
            lower(source, target, temporary, planned, float32=float32, keep_float=keep, options=options, warn=warn)
        with clock.timed(f"verify_{name}"):
            verified = verify(temporary, program, target, planned, request.samples, request.threads)
            fit = _fit(request.device, find_backend(target.format), temporary, request.path)
    result = _result(request, verified, fit)
    return Built(replace(result, plan=request.plan_path if planned else None, warnings=tuple(notes)), clock.seconds)


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


def _planned(program: Program, request: BuildRequest) -> QuantPlan | None:
    """The plan that was given, or one that is made; saved, whichever it is."""
    made = request.plan
    if made is None:
        keep, table = request.keep_float, request.table
        made = plan(program, table, request.target, ranges=request.ranges, keep_float=keep)
    if made is not None:
        save_plan(made, request.plan_path)
    return made


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


def plan_path(target: Target, artifact: Path, stem: str, alone: bool) -> Path:
    """`plan.json` beside an artifact, with the format in its name unless `alone`; with the artifact's if that is taken.

    Args:
        stem: what the run's artifacts are named after.
    """
    name = "plan.json" if alone else f"plan_{target.format}.json"

    def same(manifest: Mapping[str, Any]) -> bool:  # an engine shares its graph's
        named = str(manifest.get("artifact", "")).startswith(f"{stem}_{target.precision}")
        return named and manifest.get("format") == target.format

    return artifact.with_name(free_name(artifact.parent, name, artifact.name, "plan", same))
