"""Figures of earlier runs, which are taken for exactly the bytes that they were measured of.

What a figure depends on is its key: the file's bytes, those of every image and label as the validator reads them, the
float file that fidelity refers to, threads, packages and machine; latency also what it was timed beside, and the host.
"""

from __future__ import annotations

import hashlib
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from qexport.backends.artifact import describe_artifact
from qexport.data.evaluation_set import EvaluationSet
from qexport.measurement.accuracy import Accuracy
from qexport.measurement.average_precision import ImageScores
from qexport.measurement.image_detections import ImageDetections
from qexport.measurement.latency import Latency
from qexport.measurement.spool import Spool
from qexport.system.array_form import packed, unpacked
from qexport.system.cache import Cache, Entry, read_json, written_json
from qexport.system.capabilities import control_group_limits
from qexport.system.given_files import read_bytes
from qexport.verification.outcome import OutputFidelity
from qexport.verification.result import ArtifactResult

Noun = TypeVar("Noun")
NOUN, ARRAYS = "noun.json", "arrays.bin"
"""Files of entries."""
RESTLESS = timedelta(hours=1)
"""For so long latencies of a restless machine are taken: the next run may find it quiet."""
BLOCK = 256
"""Images that an accuracy's entry has in one file: no more are in memory at once."""


@dataclass(frozen=True)
class Images:
    """What an accuracy holds of some images, by name, as its mappings."""

    detections: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
    scores: Mapping[str, ImageScores]
    fidelity_scores: Mapping[str, ImageScores]
    found: Mapping[str, ImageDetections]


PARTS = tuple(each.name for each in fields(Images))


@dataclass(frozen=True)
class Timing:
    """One latency: place of the artifact among those that are timed, the type that it is computed in, see `Timed`."""

    artifact: int
    kind: str
    latency: Latency


@dataclass(frozen=True)
class Timings:
    """What was timed in turns."""

    rows: tuple[Timing, ...]


@dataclass(frozen=True)
class Compared:
    """Outputs of a file beside those of its float file."""

    outputs: tuple[OutputFidelity, ...]


def kept(cache: Cache, key: str, kind: type[Noun]) -> tuple[Noun, str] | None:
    """What is kept and when it was made, in UTC; None where nothing is."""

    def read(entry: Entry) -> tuple[Noun, str]:
        return unpacked(kind, read_json(entry, NOUN), entry.read(ARRAYS, cache.limit)), entry.made

    return cache.read(key, read) if key else None


def keep(cache: Cache, key: str, noun: Any) -> None:
    """Keep figures."""
    if key:
        plain, block = packed(noun)
        cache.keep(key, {NOUN: written_json(plain), ARRAYS: block})


def kept_accuracy(cache: Cache, key: str, links: Mapping[str, Path]) -> tuple[Accuracy, str] | None:
    """An accuracy of an earlier run and when it was measured.

    Args:
        links: file name in the evaluation set → the image, which may have lain elsewhere then.
    """

    def read(entry: Entry) -> tuple[Accuracy, str]:
        spools: dict[str, Spool[Any]] = {part: Spool() for part in PARTS}
        for number in range(sum(name.endswith(f"-{ARRAYS}") for name in entry.names)):
            plain, block = read_json(entry, f"{number}-{NOUN}"), entry.read(f"{number}-{ARRAYS}", cache.limit)
            images = unpacked(Images, plain, block)
            for part, spool in spools.items():
                for name, value in getattr(images, part).items():
                    spool.add(name, replace(value, path=links[name]) if isinstance(value, ImageDetections) else value)
        if not all(set(each) <= set(links) for each in spools.values()):
            raise ValueError("it is of other images")
        accuracy = unpacked(Accuracy, read_json(entry, NOUN), b"")
        kept: Any = spools  # by the names of fields
        return replace(accuracy, **kept), entry.made

    return cache.read(key, read) if key else None


def keep_accuracy(cache: Cache, key: str, accuracy: Accuracy) -> None:
    """Keep an accuracy, without where its images lie."""
    if not key:
        return
    every: dict[str, Mapping[str, Any]] = {part: getattr(accuracy, part) for part in PARTS}
    names = list(dict.fromkeys(name for each in every.values() for name in each))
    plain, _ = packed(replace(accuracy, detections={}, scores={}, fidelity_scores={}, found={}))
    files: dict[str, bytes | Path] = {NOUN: written_json(plain)}
    with tempfile.TemporaryDirectory(prefix="qexport-") as folder:
        for number, start in enumerate(range(0, len(names), BLOCK)):
            some = names[start : start + BLOCK]
            images = {
                part: {name: _nameless(each[name]) for name in some if name in each} for part, each in every.items()
            }
            plain, block = packed(Images(**images))
            for name, content in ((NOUN, written_json(plain)), (ARRAYS, block)):
                files[f"{number}-{name}"] = path = Path(folder) / f"{number}-{name}"
                path.write_bytes(content)
        cache.keep(key, files)


def _nameless(value: Any) -> Any:
    """What is kept of an image, without where that lies."""
    return replace(value, path=Path(value.path.name)) if isinstance(value, ImageDetections) else value


def identity(item: ArtifactResult) -> dict[str, str]:
    """Which file it is, by its bytes, and what runs it."""
    artifact = item.artifact
    return {"sha256": artifact.sha256, "format": artifact.format, "precision": artifact.precision}


def unchanged(items: Sequence[ArtifactResult]) -> bool:
    """Whether files still have the bytes that were measured."""
    files = (item.artifact for item in items)
    return all(describe_artifact(each.path, each.format, each.precision) == each for each in files)


def timing_key(cache: Cache, items: Sequence[ArtifactResult], batch: NDArray[np.float32], threads: int) -> str:
    """Key of the latencies of what is timed in turns; "" where none are kept, as of engines, whose GPU nobody knows."""
    if cache.folder is None or any(item.engine for item in items):
        return ""
    parts = {"files": [identity(item) for item in items], "batch": hashlib.sha256(batch.tobytes()).hexdigest()}
    machine = {"threads": threads, "host": platform.node(), "quota": control_group_limits()[0]}
    return cache.key("latency", {**parts, "shape": batch.shape, **machine})


def still_holds(timings: Timings, made: str) -> bool:
    """Whether latencies are to be taken that were measured at a time, see `kept`."""
    restless = any(row.latency.restless for row in timings.rows)
    return not restless or datetime.now(UTC) - datetime.fromisoformat(made) < RESTLESS


def placed(cache: Cache, key: str, links: Mapping[str, Path]) -> str:
    """Key of an accuracy whose images lie at places, see `kept_accuracy`."""
    return cache.key(
        "placed", {"accuracy": key, "places": {name: str(path.absolute()) for name, path in links.items()}}
    )


def set_digest(shards: Sequence[EvaluationSet]) -> str:
    """SHA-256 over what validators read of all shards: names, images, labels, classes; not where they lie.

    "" where a file of it cannot be read, which the validator leaves out and names.
    """
    total = hashlib.sha256()
    for data in shards:
        root = data.yaml if data.yaml.is_dir() else data.yaml.parent
        total.update(repr((list(data.links), data.single_class, data.labelled)).encode("utf-8", "surrogateescape"))
        # Validators leave what they have read of the labels in files of their own.
        for path in sorted(each for each in root.rglob("*") if each.is_file() and each.suffix != ".cache"):
            try:
                content = read_bytes(path)
            except OSError:
                return ""
            if path == data.yaml:
                content = content.replace(str(root).encode(), b"")
            name = path.relative_to(root).as_posix().encode("utf-8", "surrogateescape")
            total.update(name + b"\0" + hashlib.sha256(content).digest())
    return total.hexdigest()
