"""Write a file as it was planned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qexport.backends.artifact import describe_artifact
from qexport.backends.info import options_from
from qexport.backends.protocol import EngineBuilder
from qexport.backends.registry import find_backend
from qexport.compat.one_at_a_time import TRACING
from qexport.detections.thresholds import Thresholds
from qexport.errors import UsageError
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.request import Lowering, Target
from qexport.planning.half_range import described
from qexport.planning.plan import QuantPlan
from qexport.programs.build import Source
from qexport.steps.plan import beyond_half, kept_values
from qexport.system.files import write_whole
from qexport.verification.result import ArtifactResult


def lower(
    source: Source,
    target: Target,
    path: str | Path,
    plan: QuantPlan | None = None,
    *,
    float32: Mapping[str, str] | None = None,
    keep_float: Sequence[str] = (),
    options: Mapping[str, Any] = {},
    thresholds: Thresholds | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write a target's file, whole or not at all; return its path.

    Args:
        plan: what becomes integers; None for float files.
        float32: what `beyond_half` says of the target; None to ask it without any image.
        keep_float: values whose operation stays FP32 in an FP16 file.
        options: the backend's own: ONNX's "opset", TFLite's "io", "layout", "normalised_boxes"; what is not its own
            is left out.
        thresholds: what the file's metadata say of scores; None for nothing.
        warn: takes what must be known of how the file was written.

    Raises:
        UsageError: the target needs a plan, or another one.
        ConversionError: the backend cannot write it.
    """
    if plan is None and target.profile is not None:
        raise UsageError(f"{target.format} as {target.precision} needs a plan", "make one first")
    wanted = target.profile.name if target.profile else "nothing"
    if plan is not None and plan.profile != wanted:
        raise UsageError(
            f"the plan is for {plan.profile}, {target.format} as {target.precision} takes one for {wanted}",
            "plan for this target",
        )
    path, program = Path(path), source.program
    unfit = beyond_half(program, target) if float32 is None else float32
    for line in described(unfit):
        warn(line)
    kept = kept_values(program, target, keep_float) if plan is None else frozenset()
    metadata = artifact_metadata(source.checkpoint, program, target.precision, plan, thresholds)
    backend = find_backend(target.format)
    own = options_from(backend.info, options)
    request = Lowering(program, target, metadata, plan, own, frozenset(unfit) | kept, warn)
    with TRACING, write_whole(path) as temporary:
        backend.lower(request, temporary)
    return path


def build_engine(source: Source, graph: ArtifactResult, path: Path, options: Mapping[str, Any]) -> ArtifactResult:
    """Build the engine of a graph that was written; the graph stays.

    Args:
        options: the backend's own.

    Raises:
        EngineNotBuiltError: not on this machine.
    """
    builder, precision = graph.backend, graph.artifact.precision
    assert isinstance(builder, EngineBuilder)
    thresholds = graph.likeness.thresholds if graph.likeness else None
    metadata = artifact_metadata(source.checkpoint, source.program, precision, None, thresholds)
    builder.build(graph.artifact.path, path, metadata, options_from(builder.info, options))
    return ArtifactResult(
        describe_artifact(path, builder.info.name, precision),
        builder,
        plan=graph.plan,
        quantisation=graph.quantisation,
        sqnr=graph.sqnr,
        warnings=graph.warnings,
        passes=graph.passes,
        candidate=graph.candidate,
        likeness=graph.likeness,
        engine=True,
    )
