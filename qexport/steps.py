"""Write one artifact: plan, lower, verify, and only then give the file its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.artifact import describe_artifact
from qexport.backends.device_fit import DeviceFit
from qexport.backends.info import options_from, profile_for, target_for
from qexport.backends.protocol import Backend, EngineBuilder
from qexport.backends.registry import available_formats, device_check, formats_from_onnx, other_formats
from qexport.calibration.calibration_table import CalibrationTable
from qexport.calibration.peaks import measured_peaks
from qexport.errors import ConversionError, VerificationError
from qexport.inspection.run_folder import free_name
from qexport.job.options import ExportJob
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.request import Lowering
from qexport.planning.half_range import described, peaks_of, unfit_for_half
from qexport.planning.plan import QuantPlan, to_json
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.profile import RuntimeProfile
from qexport.planning.weights import weights_only
from qexport.programs.build import Source
from qexport.programs.named_values import kept_float, refuse_weightless
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.simulation.meters import metered, sqnr_of
from qexport.system.files import write_text, write_whole
from qexport.system.machine import kind_for
from qexport.verification.constants import check_weights
from qexport.verification.finite import FiniteRunner, generated_input
from qexport.verification.output_check import check_outputs
from qexport.verification.result import ArtifactResult, summary_of
from qexport.verification.verify import verify


def write_float(source: Source, backend: Backend, precision: str) -> ArtifactResult:
    """Write an artifact whose activations stay float, and run it: on a generated picture if there are no images.

    Raises:
        UsageError: `--keep-float` names what this precision has in float anyway.
        ConversionError, VerificationError: the file is not kept.
    """
    path, program = source.path(backend, precision), source.program
    images = sample_inputs(source.samples, program)
    inputs = images or [generated_input(program)]
    kept, notes = _kept_in_float(source, backend, precision), list[str]()
    plan = (
        weights_only(program, {**backend.info.float_weights(program), **kept}) if precision == "int8-dynamic" else None
    )
    unfit = _unfit(program, backend, inputs) if precision == "fp16" else {}
    notes += described(unfit)
    with _others_named(source.job, backend, precision), write_whole(path) as temporary:
        _lower(source, backend, plan, precision, temporary, frozenset(unfit | kept), notes)
        runner = FiniteRunner(backend.runner(temporary, source.job.threads), program, backend.info.name)
        if images:
            check_outputs(program.graph, program, runner, images, backend.info.name)
        else:
            runner(inputs[0])
        stored = backend.read(temporary)
        if plan:
            check_weights(program, plan, stored)
    artifact = describe_artifact(path, backend.info.name, precision)
    return ArtifactResult(artifact, backend, stored=summary_of(stored), warnings=tuple(notes))


def _kept_in_float(source: Source, backend: Backend, precision: str) -> dict[str, str]:
    """What `--keep-float` asks of a file whose activations stay float: value → why it is kept."""
    if precision == "fp32":  # all of it, of the file that others are compared with
        return {}
    program, given = source.program, source.job.keep_float
    if precision == "int8-dynamic" or backend.info.half_scope != "arithmetic":
        refuse_weightless(program, given, f"{precision} in format {backend.info.name}")
    return dict.fromkeys(kept_float(program, given), FLOAT_AS_ASKED)


def _unfit(program: Program, backend: Backend, inputs: Sequence[NDArray[np.float32]]) -> dict[str, str]:
    """What FP16 cannot hold of a program in a backend's files."""
    peaks = measured_peaks(program, inputs) if backend.info.half_scope == "arithmetic" else {}
    return unfit_for_half(program, peaks, backend.info.half_scope == "weights")


def write_calibrated(source: Source, backend: Backend, table: CalibrationTable) -> ArtifactResult:
    """Plan for the backend's runtime, save the plan, write the artifact and verify it against the plan.

    Raises:
        ConversionError, VerificationError: the file is not kept.
    """
    job, path = source.job, source.path(backend, source.job.precision)
    cpu, profile = chosen_profile(job, backend)
    kept, notes = kept_float(source.program, job.keep_float), list[str]()
    plan = make_plan(source.program, table.statistics, profile, job.range_method, kept)
    unfit = unfit_for_half(source.program, peaks_of(table.statistics)) if profile.fp16_scales else {}
    notes += described(unfit)
    saved = job.folder / plan_name(job, backend, path)
    write_text(saved, to_json(plan))
    with _others_named(job, backend, job.precision), write_whole(path) as temporary:
        _lower(source, backend, plan, job.precision, temporary, frozenset(unfit), notes)
        inputs = sample_inputs(source.samples, source.program)
        reference = metered(source.program, plan) if source.program.graph.instrumentable else None
        runner = FiniteRunner(backend.runner(temporary, job.threads), source.program, backend.info.name)
        stored = backend.read(temporary)
        verification = verify(source.program, plan, stored, runner, inputs, reference)
        fit = _fit(job, backend, temporary, path)
    sums = "16-bit sums of pairs" if profile.saturating_pair_accumulation else "full range"
    types = {
        "activations": profile.activation.name,
        "weights": f"{profile.weight.name}, {sums}",
        "cpu": cpu if len(backend.info.profiles[job.precision]) > 1 else "any",
    }
    artifact = describe_artifact(path, backend.info.name, job.precision)
    noise = sqnr_of(reference) if reference else None
    return ArtifactResult(artifact, backend, verification, saved, types, fit, noise, summary_of(stored), tuple(notes))


@contextmanager
def _others_named(job: ExportJob, backend: Backend, precision: str) -> Iterator[None]:
    """Let a format's refusal of a model say which formats do without its code, unless it names one itself."""
    try:
        yield
    except (ConversionError, VerificationError) as error:
        able = formats_from_onnx() if job.from_onnx else available_formats()
        others = [
            name for name in other_formats(backend.info.name, precision) if name in able and name not in job.format
        ]
        if not others or "--format" in error.remedy:
            raise
        remedy = f"{error.remedy}; other formats may take it: --format {','.join(others)}"
        raise type(error)(error.what, remedy) from error


def _fit(job: ExportJob, backend: Backend, file: Path, path: Path) -> DeviceFit | None:
    """What a device that is not here makes of a file that is going to be at `path`."""
    check = device_check(backend, job.target)
    return check(file, path) if check else None


def chosen_profile(job: ExportJob, backend: Backend) -> tuple[str, RuntimeProfile]:
    """The kind of CPU that integer types are chosen for, and the backend's profile for it."""
    cpu = kind_for(job.cpu, backend.info.name)
    return cpu, profile_for(backend.info, job.precision, cpu)


def plan_name(job: ExportJob, backend: Backend, artifact: Path) -> str:
    """`plan.json`, with the format in its name where a run writes several; with the artifact's where that is taken."""
    name = "plan.json" if len(job.format) == 1 else f"plan_{backend.info.name}.json"

    def same(manifest: Mapping[str, Any]) -> bool:  # an engine shares its graph's
        named = str(manifest.get("artifact", "")).startswith(f"{job.stem}_{job.precision}")
        return named and manifest.get("format") == backend.info.name

    return free_name(job.folder, name, artifact.name, "plan", same)


def _lower(
    source: Source,
    backend: Backend,
    plan: QuantPlan | None,
    precision: str,
    path: Path,
    float32: frozenset[str],
    notes: list[str],
) -> None:
    metadata = artifact_metadata(source.checkpoint, source.program, precision, plan)
    target = target_for(backend.info, precision, kind_for(source.job.cpu, backend.info.name))
    options = options_from(backend.info, source.job.backend_options)
    backend.lower(Lowering(source.program, target, metadata, plan, options, float32, notes.append), path)


def build_engine(source: Source, graph: ArtifactResult) -> ArtifactResult:
    """Build the engine of a graph that was written; the graph stays.

    Raises:
        EngineNotBuiltError: not on this machine.
    """
    job, builder, precision = source.job, graph.backend, graph.artifact.precision
    assert isinstance(builder, EngineBuilder)
    assert builder.info.engine is not None
    path = source.job.folder / f"{job.stem}_{precision}{builder.info.engine.suffix}"
    metadata = artifact_metadata(source.checkpoint, source.program, precision, None)
    batches = {"most_images": max(16, job.batch), "likely_images": job.batch}
    options = options_from(builder.info, {**batches, **job.backend_options})
    builder.build(graph.artifact.path, path, metadata, options)
    return ArtifactResult(
        describe_artifact(path, builder.info.name, precision),
        builder,
        plan=graph.plan,
        quantisation=graph.quantisation,
        sqnr=graph.sqnr,
        warnings=graph.warnings,
        engine=True,
    )
