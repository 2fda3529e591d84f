"""Artifacts that a run has finished are kept until all of it is: begun anew after a kill, it does not build them again.

What is kept is bound by a fingerprint to all that the artifact depends on. Another model, preprocessing, choice of
images, option or version builds it anew, and so does a file that is not what was written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from qexport.backends.artifact import describe_artifact
from qexport.backends.registry import find_backend, reported_packages
from qexport.calibration.calibrate import preprocess_name
from qexport.calibration.calibration_table import CalibrationTable
from qexport.data.dataset import fingerprint
from qexport.optimisation.registry import PASSES
from qexport.planning.registry import RANGES
from qexport.plugins import BACKENDS, packages_of
from qexport.programs.build import Source
from qexport.progress import Progress, Silent
from qexport.steps.build import BuildRequest, Built, build
from qexport.system.files import write_text
from qexport.system.given_files import read_text
from qexport.system.json_form import from_plain, parse_json, to_plain
from qexport.system.machine import environment
from qexport.verification.result import ArtifactResult
from qexport.version import __version__

SILENT = Silent()
SUFFIX = ".finished.json"
GROUPS = (BACKENDS, RANGES.group, PASSES.group)


@dataclass(frozen=True)
class Finished:
    """A finished artifact.

    Attributes:
        identity: see `identity`.
        files: SHA-256 of each file that was written with it, by name.
        result: what is known of the artifact, as JSON's types, but for its backend.
    """

    identity: str
    files: Mapping[str, str]
    result: Mapping[str, Any]


def build_once(source: Source, request: BuildRequest, *, progress: Progress = SILENT) -> Built:
    """Build and verify one artifact, unless an earlier run, which did not get to its end, has: see `build`."""
    wanted = identity(source, request)
    if known := _kept(request, wanted):
        with progress.step(f"Taking {request.path.name} of a run that was not finished"):
            return Built(known, {})
    built = build(source, request, progress=progress)
    _keep(built.result, request.path, wanted)
    return built


def forget_finished(folder: Path) -> None:
    """The run is over: the next one is another."""
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            path.unlink()


def identity(source: Source, request: BuildRequest) -> str:
    """SHA-256 over all that an artifact and what is known of it depend on."""
    given = to_plain(replace(request, table=None, plan=None, candidate=None, images=(), samples=()))
    machine = environment(reported_packages())
    parts = {
        "request": given,
        "plan": request.plan.fingerprint if request.plan else None,
        "candidate": _digest(request.candidate) if request.candidate else None,
        "table": identity_of_table(request.table) if request.table else None,
        "images": [_of_images(each) for each in (request.images, request.samples)],
        "model": source.checkpoint.fingerprint,
        "program": [source.program.fingerprint, preprocess_name(source.program)],
        "qexport": __version__,
        "packages": {**machine.packages, **packages_of(*GROUPS)},
        "machine": [machine.python, machine.system, machine.processor],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=_as_text).encode()).hexdigest()


def _as_text(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else repr(value)


def _of_images(images: tuple[Path, ...]) -> list[str]:
    return [fingerprint(images), *(image.name for image in images)]


def identity_of_table(table: CalibrationTable) -> str:
    """SHA-256 over all that a plan is made from."""
    total = hashlib.sha256(repr((table.program, table.preprocess, table.images, table.made_by)).encode())
    for name, each in table.statistics.items():
        arrays = [array.tobytes() for array in (each.counts, each.importance) if array is not None]
        numbers = (each.minimum, each.maximum, each.limit, each.lowest, each.highest, each.images)
        total.update(repr((name, *numbers)).encode() + b"".join(arrays))
    return total.hexdigest()


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder."""
    return describe_artifact(path, "", "").sha256


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name}{SUFFIX}")


def _keep(result: ArtifactResult, path: Path, wanted: str) -> None:
    beside = (result.artifact.path, result.plan, result.candidate, *(result.fit.files if result.fit else ()))
    files = {each.name: _digest(each) for each in beside if each}
    plain = {name: to_plain(getattr(result, name)) for name in _known_fields()}
    with suppress(TypeError):  # another package's backend tells of numbers that are none of JSON's: not kept, then
        write_text(_record(path), json.dumps(to_plain(Finished(wanted, files, plain)), indent=1) + "\n")


def _kept(request: BuildRequest, wanted: str) -> ArtifactResult | None:
    try:
        finished = from_plain(Finished, parse_json(read_text(_record(request.path))))
        if finished.identity != wanted or any(
            _digest(request.path.with_name(name)) != digest for name, digest in finished.files.items()
        ):
            return None
        values = {name: from_plain(kind, finished.result[name]) for name, kind in _known_fields().items()}
    except (OSError, ValueError, KeyError):  # there is none, or nothing that was written here
        return None
    return ArtifactResult(backend=find_backend(request.target.format), **values)


def _known_fields() -> dict[str, Any]:
    """Fields of an artifact's result that are plain data, with their types."""
    hints = get_type_hints(ArtifactResult)
    return {field.name: hints[field.name] for field in fields(ArtifactResult) if field.name != "backend"}
