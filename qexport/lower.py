"""Write one artifact: plan, lower, verify, and only then give the file its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qexport.backends import Artifact, Backend, describe_artifact
from qexport.calibration_table import CalibrationTable
from qexport.checkpoint import Checkpoint
from qexport.files import write_text, write_whole
from qexport.job import ExportJob
from qexport.metadata import artifact_metadata
from qexport.plan import QuantPlan, to_json
from qexport.planner import make_plan
from qexport.program import Program
from qexport.verify import Verification, check_outputs, sample_inputs, verify


@dataclass(frozen=True)
class Written:
    """An artifact that is on disk, and what was verified of it (None for float ones)."""

    artifact: Artifact
    backend: Backend
    verification: Verification | None = None


def write_float(
    job: ExportJob,
    checkpoint: Checkpoint,
    program: Program,
    backend: Backend,
    samples: Sequence[Path],
    folder: Path,
) -> Written:
    """Write the float32 artifact; compare it with the program where there are images to do it on.

    Raises:
        ConversionError, VerificationError: the file is not kept.
    """
    path = folder / f"{job.stem}_fp32{backend.suffix}"
    with write_whole(path) as temporary:
        backend.lower(program, None, artifact_metadata(checkpoint, program, "fp32", None), temporary)
        inputs = sample_inputs(samples, program)
        if inputs:
            check_outputs(program.graph, program, backend.runner(temporary, job.threads), inputs, backend.name)
    return Written(describe_artifact(path, backend.name, "fp32"), backend)


def plan_for(job: ExportJob, program: Program, table: CalibrationTable, backend: Backend, folder: Path) -> QuantPlan:
    """Plan for a backend's runtime and save the plan."""
    plan = make_plan(program, table.statistics, backend.profile, job.ranges)
    write_text(folder / "plan.json", to_json(plan))
    return plan


def write_int8(
    job: ExportJob,
    checkpoint: Checkpoint,
    program: Program,
    plan: QuantPlan,
    backend: Backend,
    samples: Sequence[Path],
    folder: Path,
) -> Written:
    """Write the INT8 artifact and verify it against its plan on `samples`.

    Raises:
        ConversionError, VerificationError: the file is not kept.
    """
    path = folder / f"{job.stem}_int8{backend.suffix}"
    with write_whole(path) as temporary:
        backend.lower(program, plan, artifact_metadata(checkpoint, program, "int8", plan), temporary)
        inputs = sample_inputs(samples, program)
        verification = verify(program, plan, backend.read(temporary), backend.runner(temporary, job.threads), inputs)
    return Written(describe_artifact(path, backend.name, "int8"), backend, verification)
