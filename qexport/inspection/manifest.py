"""The manifest beside each artifact: hashes of everything that it was made from, and of itself.

Equal hashes of weights, calibration images, plan and versions give equal artifacts, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.backends.artifact import SAMPLES, manifest_path
from qexport.errors import InputError
from qexport.system.files import write_text
from qexport.system.given_files import read_text
from qexport.system.json_form import from_plain, parse_json
from qexport.system.machine import Environment
from qexport.verification.plan_check import WeightNames, weight_names
from qexport.version import __version__

if TYPE_CHECKING:
    from qexport.calibration.calibration_table import CalibrationTable
    from qexport.programs.build import Source
    from qexport.verification.result import ArtifactResult

SCHEMA = 1


@dataclass(frozen=True)
class _File:
    """Entry of a file that an artifact was made from."""

    file: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class _Plan(_File):
    weights: Mapping[str, str] = field(default_factory=dict)
    merged: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Read:
    """What is read of a manifest, of any version; what else is in it may be of any form."""

    artifact: str = ""
    format: str = ""
    sha256: str = ""
    weights: _File | None = None
    program: str = ""
    plan: _Plan | None = None
    samples: str | None = None


def make_manifest(
    source: Source,
    item: ArtifactResult,
    table: CalibrationTable | None,
    environment: Environment,
    command: str,
    ranges: str,
    samples: str | None = None,
) -> dict[str, Any]:
    """Say what an artifact is, and what it was made from.

    Args:
        environment: as in the report: Python, system and package versions.
        command: the command line, as one string.
        ranges: how activation ranges were chosen.
        samples: name of the file with samples of what it finds, None for none.
    """
    artifact, program = item.artifact, source.program
    return {
        "schema": SCHEMA,
        "artifact": artifact.path.name,
        "format": artifact.format,
        "precision": artifact.precision,
        "sha256": artifact.sha256,
        "bytes": artifact.bytes,
        "weights": {"file": source.checkpoint.path.name, "sha256": source.checkpoint.fingerprint},
        "program": program.fingerprint,
        "calibration": _calibration(table, ranges) if item.plan and table else None,
        "plan": _plan(source, item.plan) if item.plan else None,
        **({"candidate": _file(item.candidate)} if item.candidate else {}),
        "samples": samples,
        "qexport": __version__,
        "python": environment.python,
        "system": environment.system,
        "packages": dict(environment.packages),
        "command": command,
    }


def _calibration(table: CalibrationTable, ranges: str) -> dict[str, Any]:
    listed = json.dumps([table.image_names, table.skipped]).encode()
    return {
        "fingerprint": table.images,
        "images": len(table.image_names),
        "list_sha256": hashlib.sha256(listed).hexdigest(),
        "preprocess": table.preprocess,
        "ranges": ranges,
    }


def _plan(source: Source, path: Path) -> dict[str, Any]:
    """The plan's hash, and what leads from names in the file to its weights."""
    return {**_file(path), **asdict(weight_names(source.program))}


def _file(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write_manifest(manifest: Mapping[str, Any], artifact: Path) -> None:
    """Write the manifest beside its artifact."""
    write_text(manifest_path(artifact), json.dumps(manifest, indent=2) + "\n")


def read_manifest(artifact: Path) -> dict[str, Any] | None:
    """Read the manifest beside an artifact; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = manifest_path(artifact)
    if not path.exists():
        return None
    try:
        content = parsed(path)
        if content.get("schema") != SCHEMA:
            raise ValueError(f"schema {content.get('schema')}")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a manifest of qexport ({error})", "remove it, or export again") from error
    return content


def parsed(path: Path) -> dict[str, Any]:
    """The manifest at a path, of any version.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none; names the entry that is of another type.
    """
    content: dict[str, Any] = parse_json(read_text(path))
    from_plain(_Read, content)
    return content


def recorded_names(manifest: Mapping[str, Any]) -> WeightNames:
    """What leads from names in the file to its plan's weights; nothing where the manifest knows no plan."""
    plan = manifest.get("plan") or {}
    return WeightNames(plan.get("weights", {}), plan.get("merged", {}))


def samples_of(artifact: Path) -> Path:
    """Where the samples of an artifact are, if there are any: as its manifest says; old ones say nothing of them.

    Raises:
        InputError: the manifest cannot be read.
    """
    named = (read_manifest(artifact) or {}).get("samples", SAMPLES) or f"{artifact.name}.{SAMPLES}"
    return artifact.absolute().with_name(Path(str(named)).name)
