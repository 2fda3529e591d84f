"""The folder of a run: artifacts of one model, from as many runs as there are. One run at a time writes into it.

What belongs to one artifact is named in its manifest, so that a later run with another precision or format takes other
names for its plan, candidate and samples, and keeps the earlier report beside its own.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qexport.backends.artifact import SUFFIX, manifest_path
from qexport.errors import InputError
from qexport.inspection.manifest import parsed
from qexport.progress import Progress
from qexport.system.files import make_folder, remove_unfinished
from qexport.system.given_files import read_text
from qexport.system.json_form import parse_json
from qexport.vocabulary import alternatives

REPORT = "report.json"
KEYS = {key: re.compile(rf"([^/\\]+\.)?{key}(_\w+)?\.(json|npz)") for key in ("plan", "candidate", "samples")}
"""Entries of manifests that name files beside artifacts, and the names that runs give those."""
WORD = re.compile(r"[\w-]{1,40}")
"""A format or a precision, of which a file's name is made."""
LOCK = ".qexport.lock"
"""A file to lock where the system cannot lock a folder, such as on some network drives; it may stay."""
PAUSE = 0.2
"""Seconds between two looks at whether another run has ended."""


@dataclass(frozen=True)
class Model:
    """What a folder's artifacts are of: the model's file name, SHA-256 of its weights, fingerprint of its program."""

    file: str
    weights: str
    program: str


@contextmanager
def run_folder(wanted: Path, named: bool, model: Model, progress: Progress) -> Iterator[Path]:
    """Yield the folder to write to, locked for the time of the block; the system unlocks it when a process dies.

    Args:
        named: the user did; if not, it is another folder where that one holds another model's artifacts.

    Raises:
        InputError: a named folder does, or it cannot be written.
    """
    digest = hashlib.sha256(f"{model.weights} {model.program}".encode()).hexdigest()[:8]
    own = wanted.with_name(f"{wanted.name}-{digest}")
    for folder in (wanted,) if named else (wanted, own):
        if not named and folder != own and (held := _of_another(folder, model)):
            with progress.step("Choosing a folder") as advance:
                advance(f"{folder} holds {held}, so files go to {own}")
            continue
        make_folder(folder)
        with locked(folder, progress):
            other = _of_another(folder, model)
            if not other:
                yield folder
                return
        if folder == (wanted if named else own):
            raise InputError(f"folder {folder} holds {other}", "give another --out, or remove the folder")


@contextmanager
def locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold a folder's lock for the time of the block; wait for who holds it. What killed runs have begun there goes."""
    release = _lock(folder)
    if release is None:
        with progress.step(f"Waiting for another run that writes to {folder}"):
            while release is None:
                time.sleep(PAUSE)
                make_folder(folder)
                release = _lock(folder)
    try:
        remove_unfinished(folder)
        yield
    finally:
        release()


def _of_another(folder: Path, model: Model) -> str:
    """What a folder holds of another model; "" where nothing."""
    for manifest in manifests_in(folder).values():
        weights = manifest.get("weights") or {}
        if weights.get("sha256") != model.weights:
            return f"artifacts of another model, {weights.get('file')} (sha256 {str(weights.get('sha256'))[:12]}…)"
        if manifest.get("program") != model.program:
            return f"artifacts of {weights.get('file')} with another image size, batch or head"
    return ""


def manifests_in(folder: Path) -> dict[str, dict[str, Any]]:
    """Manifests by the name of their artifact, of artifacts that are there."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        name = path.name.removesuffix(SUFFIX)
        try:
            content = parsed(path)
        except (OSError, ValueError):  # nobody's, then
            continue
        if (folder / name).exists():
            found[name] = content
    return found


def artifact_in(path: Path) -> Path:
    """The artifact that a run's folder, or its report, stands for: the only one in integers, or the only one.

    Returns:
        `path` itself where it is neither, or there is no artifact of a run.

    Raises:
        InputError: there are several, which it names.
    """
    of_report = path.name == REPORT and path.is_file()
    folder = path.parent if of_report else path
    if not folder.is_dir() or (not of_report and manifest_path(path).exists()):
        return path
    found = manifests_in(folder)
    integers = [name for name, each in found.items() if str(each.get("precision", "")).startswith(("int8", "w8"))]
    names = integers or list(found)
    if len(names) > 1:
        raise InputError(f"{folder} holds several artifacts", f"give {alternatives([str(folder / n) for n in names])}")
    return folder / names[0] if names else path


def report_in(path: Path) -> Path:
    """The report of a run's folder; `path` itself where it is no folder."""
    return path / REPORT if path.is_dir() else path


def free_name(folder: Path, wanted: str, artifact: str, key: str, same: Callable[[Mapping[str, Any]], bool]) -> str:
    """`wanted`, or a name of the artifact's own where other artifacts' manifests say that `wanted` is theirs.

    Args:
        key: the manifest's entry that names such files.
        same: whether a manifest is of an artifact that may share the file, or of the one that is replaced.
    """
    others = (each for name, each in manifests_in(folder).items() if name != artifact and not same(each))
    taken = {companion(each, key) for each in others}
    return f"{artifact}.{wanted}" if wanted in taken else wanted


def companion(manifest: Mapping[str, Any], key: str) -> str:
    """Name of a file beside an artifact, "" where its manifest has none that a run gives: it may come from anywhere."""
    entry = manifest.get(key)
    name = str(entry.get("file") if isinstance(entry, dict) else entry or "")
    return name if KEYS[key].fullmatch(name) else ""


def companions(folder: Path) -> set[str]:
    """Names of plans, candidates and samples that belong to the artifacts of a folder."""
    every = (companion(each, key) for each in manifests_in(folder).values() for key in KEYS)
    return {name for name in every if (folder / name).is_file()}


def keep_report(folder: Path, written: Set[str]) -> Path | None:
    """Give the folder's report another name where artifacts that are not written anew have their figures in it.

    Args:
        written: names of the artifacts of the run whose report comes next.

    Returns:
        Where it is now; None where it stays, to be replaced.
    """
    path = folder / REPORT
    entries = _entries(path)
    if kept := _of_others(entries, folder, written):
        formats = "-".join(dict.fromkeys(str(each["format"]) for each in entries))
        precision = next((str(each["precision"]) for each in kept if each["precision"] != "fp32"), "fp32")
        place = folder / f"report_{formats}_{precision}.json"
        os.replace(path, place)
        return place
    return None


def is_replaced(report: Path, written: Set[str]) -> bool:
    """Whether no artifact in a report's folder has its figures in it but those that were written anew."""
    return not _of_others(_entries(report), report.parent, written)


def _of_others(entries: list[dict[str, Any]], folder: Path, written: Set[str]) -> list[dict[str, Any]]:
    """Entries of a report whose artifacts are there and were not written anew."""
    return [each for each in entries if os.path.exists(folder / _file(each)) and _file(each) not in written]


def report_beside(artifact: Path) -> Path:
    """The report of the run that wrote an artifact: `report.json` beside it, or an earlier one that was kept."""
    folder = artifact.absolute().parent
    manifest = manifests_in(folder).get(artifact.name) or {}
    for path in (folder / REPORT, *sorted(folder.glob("report_*.json"))):
        if any(_file(each) == artifact.name and each["sha256"] == manifest.get("sha256") for each in _entries(path)):
            return path
    return folder / REPORT


def _entries(path: Path) -> list[dict[str, Any]]:
    """A report's artifacts whose file is named, in words that may be part of a name; none of what is no report."""
    try:
        entries = [each for each in parse_json(read_text(path))["artifacts"] if isinstance(each, dict)]
        return [
            each
            for each in entries
            if all(WORD.fullmatch(str(each.get(key, ""))) for key in ("format", "precision"))
            and {"path", "sha256"} <= set(each)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _file(entry: Mapping[str, Any]) -> str:
    return str(entry["path"]).replace("\\", "/").rsplit("/", 1)[-1]


def _lock(folder: Path) -> Callable[[], None] | None:
    """Lock a folder and return what unlocks it; None where another process has it."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows
        return _lock_file(folder)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if isinstance(error, BlockingIOError) else _lock_file(folder)
    return lambda: os.close(descriptor)


def _lock_file(folder: Path) -> Callable[[], None] | None:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock.release
