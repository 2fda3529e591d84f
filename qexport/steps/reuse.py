"""Calibrations and artifacts of earlier runs, which are taken where all that they depend on is the same.

An artifact is kept in the cache as soon as it is built and verified: a run that is begun anew after a kill, or that
asks for another gate, another format besides or another folder, does not build it again. Another model, preprocessing,
choice of images, option, version or machine builds it anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_type_hints

from qexport.backends.artifact import describe_artifact
from qexport.backends.registry import find_backend, reported_packages
from qexport.calibration.calibration_table import CalibrationTable, load_table, save_table
from qexport.data.dataset import fingerprint
from qexport.errors import InputError
from qexport.optimisation.registry import PASSES
from qexport.planning.plan import to_json
from qexport.planning.registry import RANGES
from qexport.plugins import BACKENDS, packages_of, places_of
from qexport.programs.build import Source
from qexport.programs.program import Program
from qexport.progress import Progress, Silent
from qexport.steps.build import BuildRequest, Built, build
from qexport.system.cache import Cache, Entry, cache_folder, read_json, written_json
from qexport.system.files import write_whole
from qexport.system.json_form import from_plain, to_plain
from qexport.system.machine import conditions
from qexport.verification.result import ArtifactResult

SILENT = Silent()
GROUPS = (BACKENDS, RANGES.group, PASSES.group)
FINISHED, TABLE = "finished.json", "calibration.npz"
"""Files of entries."""
MAIN, PLAN, CANDIDATE, BESIDE = "artifact", "plan", "candidate", "beside "
"""What the other files of an artifact's entry are; behind a slash, which file of a folder."""
PLACES = ("path", "plan_path", "candidate_path", "others")
"""What is asked for that changes nothing in the files."""


@dataclass(frozen=True)
class Finished:
    """A finished artifact.

    Attributes:
        files: SHA-256 of each file that was written, by what it is.
        result: what is known of the artifact, as JSON's types, but for its backend and where it lies.
    """

    files: Mapping[str, str]
    result: Mapping[str, Any]


def open_cache(wanted: bool = True) -> Cache:
    """The cache of this user on this machine; one that keeps nothing where none is wanted."""
    folder = cache_folder() if wanted else None
    if folder is None:
        return Cache()
    known = conditions(reported_packages(), places_of(*GROUPS))
    return Cache(folder, {**known, "packages": {**known["packages"], **packages_of(*GROUPS)}})


Fingerprint = Callable[[tuple[Path, ...]], str]
"""SHA-256 or the like over images, see `qexport.data.dataset.fingerprint`."""


def calibration_key(
    cache: Cache, program: Program, images: Sequence[Path], weighted: bool, views: bool, fingerprint: Fingerprint
) -> str:
    """Key of the table that `calibrate` makes; "" where nothing is kept."""
    if cache.folder is None:
        return ""
    named = [image.name for image in images]
    asked = {"images": fingerprint(tuple(images)), "names": named, "weighted": weighted, "views": views}
    return cache.key("calibration", {**_of_program(program), **asked})


def kept_table(cache: Cache, key: str) -> tuple[CalibrationTable, str] | None:
    """A table and when it was made; None where none is kept."""

    def read(entry: Entry) -> tuple[CalibrationTable, str]:
        with TemporaryDirectory(prefix="qexport-") as folder:
            path = Path(folder) / TABLE
            path.write_bytes(entry.read(TABLE, cache.limit))
            return load_table(path), entry.made

    return cache.read(key, read) if key else None


def keep_table(cache: Cache, key: str, table: CalibrationTable) -> None:
    """Keep a table."""
    if key:
        with TemporaryDirectory(prefix="qexport-") as folder:
            save_table(table, Path(folder) / TABLE)
            cache.keep(key, {TABLE: Path(folder) / TABLE})


def artifact_key(cache: Cache, source: Source, request: BuildRequest, fingerprint: Fingerprint) -> str:
    """Key of an artifact and of what is known of it: all that they depend on; "" where nothing is kept."""
    if cache.folder is None:
        return ""
    empty = replace(request, table=None, plan=None, candidate=None, images=(), samples=())
    given = {name: each for name, each in to_plain(empty).items() if name not in PLACES}
    return cache.key(
        "artifact",
        {
            "request": {**given, "name": request.path.name, "candidate_kept": request.candidate_path is not None},
            "plan": to_json(request.plan) if request.plan else None,  # passes read the rules, too
            "candidate": _digest(request.candidate) if request.candidate else None,
            "table": identity_of_table(request.table) if request.table else None,
            "images": [
                [fingerprint(each), *(image.name for image in each)] for each in (request.images, request.samples)
            ],
            "model": source.checkpoint.fingerprint,
            **_of_program(source.program),
        },
    )


def _of_program(program: Program) -> dict[str, Any]:
    """All of a program: the graph of a classifier, and so its fingerprint, is the same for any number of images."""
    noun = program.input, program.layout, program.raw, tuple(program.values.values())
    return {"program": program.fingerprint, "noun": repr(noun)}


def identity_of_table(table: CalibrationTable) -> str:
    """SHA-256 over all that a plan is made from."""
    total = hashlib.sha256(repr((table.program, table.preprocess, table.images, table.made_by)).encode())
    for name, each in table.statistics.items():
        arrays = [array.tobytes() for array in (each.counts, each.importance) if array is not None]
        numbers = (each.minimum, each.maximum, each.limit, each.lowest, each.highest, each.images)
        total.update(repr((name, *numbers)).encode() + b"".join(arrays))
    return total.hexdigest()


def build_once(source: Source, request: BuildRequest, cache: Cache, key: str, *, progress: Progress = SILENT) -> Built:
    """Build and verify one artifact, unless an earlier run has: see `build`.

    Args:
        key: see `artifact_key`.
    """
    if known := kept_artifact(cache, key, request):
        with progress.step(f"Taking {request.path.name} of the run of {known.result.taken}"):
            return known
    built = build(source, request, progress=progress)
    if key and _unchanged(cache, source, request, key):
        _keep(cache, key, built.result)
    return built


def _unchanged(cache: Cache, source: Source, request: BuildRequest, key: str) -> bool:
    """Whether images and the file of a candidate still are what the key is of."""
    try:
        return artifact_key(cache, source, request, fingerprint) == key
    except (OSError, InputError):  # one of them is gone
        return False


def kept_artifact(cache: Cache, key: str, request: BuildRequest) -> Built | None:
    """Write what an earlier run has built to where it is asked for; None where nothing is kept, or it is damaged."""

    def read(entry: Entry) -> Built:
        finished = from_plain(Finished, read_json(entry, FINISHED))
        values = {name: from_plain(kind, finished.result[name]) for name, kind in _known_fields().items()}
        contents = {name: entry.read(name, cache.limit) for name in finished.files}
        if any(hashlib.sha256(contents[name]).hexdigest() != digest for name, digest in finished.files.items()):
            raise ValueError("files differ from what was built")
        result = ArtifactResult(backend=find_backend(request.target.format), taken=entry.made, **values)
        return Built(_placed(result, contents, request), {})

    return cache.read(key, read) if key else None


def _placed(result: ArtifactResult, contents: Mapping[str, bytes], request: BuildRequest) -> ArtifactResult:
    """The result with its files, once they lie where the request wants them."""
    plan = request.plan_path if PLAN in contents else None
    candidate = request.candidate_path if CANDIDATE in contents else None
    fit = result.fit and replace(
        result.fit, files=tuple(request.path.with_name(each.name) for each in result.fit.files)
    )
    named = {MAIN: request.path, PLAN: plan, CANDIDATE: candidate}
    named |= {f"{BESIDE}{each.name}": each for each in (fit.files if fit else ())}
    for name, path in named.items():
        parts = {each.removeprefix(name): content for each, content in contents.items() if _is_part(each, name)}
        if path is not None and parts:
            _write(path, parts)
    artifact = replace(result.artifact, path=request.path)
    if describe_artifact(request.path, artifact.format, artifact.precision) != artifact:
        raise ValueError("another artifact than was built")
    return replace(result, artifact=artifact, fit=fit, plan=plan, candidate=candidate)


def _is_part(each: str, name: str) -> bool:
    return each == name or each.startswith(f"{name}/")


def _write(path: Path, parts: Mapping[str, bytes]) -> None:
    """Write a file, whose part has no name, or a folder of files."""
    with write_whole(path) as temporary:
        if "" in parts:
            temporary.write_bytes(parts[""])
            return
        temporary.mkdir()
        for name, content in parts.items():
            (temporary / Path(name).name).write_bytes(content)


def _keep(cache: Cache, key: str, result: ArtifactResult) -> None:
    fit = result.fit and replace(result.fit, files=tuple(Path(each.name) for each in result.fit.files))
    artifact = replace(result.artifact, path=Path(result.artifact.path.name))
    plain = to_plain(replace(result, artifact=artifact, fit=fit))
    named = {MAIN: result.artifact.path, PLAN: result.plan, CANDIDATE: result.candidate}
    named |= {f"{BESIDE}{each.name}": each for each in (result.fit.files if result.fit else ())}
    files = {part: file for name, path in named.items() if path for part, file in _files(name, path).items()}
    digests = {name: _digest(path) for name, path in files.items()}
    known = {name: plain[name] for name in _known_fields()}
    with suppress(TypeError):  # another package's backend tells of numbers that are none of JSON's: not kept, then
        cache.keep(key, {FINISHED: written_json(to_plain(Finished(digests, known))), **files})


def _files(name: str, path: Path) -> dict[str, Path]:
    return {f"{name}/{each.name}": each for each in sorted(path.iterdir())} if path.is_dir() else {name: path}


def _digest(path: Path) -> str:
    """SHA-256 of a file, or of the files of a folder."""
    return describe_artifact(path, "", "").sha256


def _known_fields() -> dict[str, Any]:
    """Fields of an artifact's result that are plain data and no places, with their types."""
    hints, others = get_type_hints(ArtifactResult), ("backend", "plan", "candidate", "taken")
    return {field.name: hints[field.name] for field in fields(ArtifactResult) if field.name not in others}
