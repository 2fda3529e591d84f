"""Samples of a whole run: a file of its own, or that of artifacts beside it, where the images are the same."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from qexport.detections.agreement import Findings
from qexport.detections.layout import to_json
from qexport.errors import InputError
from qexport.inspection.run_folder import companion, free_name, manifests_in
from qexport.inspection.samples import FILE, Samples, detect, load_samples, sample_images, save_samples
from qexport.measurement.attempt import Unmeasured, attempt
from qexport.measurement.kept import identity, keep, kept, unchanged
from qexport.programs.program import Program
from qexport.system.cache import Cache
from qexport.verification.result import ArtifactResult


@dataclass(frozen=True)
class Found:
    """What an artifact finds in every sample."""

    images: tuple[Findings, ...]


def keep_samples(
    program: Program,
    images: Sequence[Path],
    written: Sequence[ArtifactResult],
    folder: Path,
    threads: int,
    missing: list[Unmeasured],
    cache: Cache,
) -> str | None:
    """Keep what each artifact that runs here finds in a few images; return the file's name, None for none.

    Args:
        missing: gains which artifact could not be run.
        cache: what artifacts have found in earlier runs.
    """
    samples, found = sample_images(program, images), dict[str, tuple[Findings, ...]]()
    if samples is None:
        return None
    for item in (item for item in written if item.runs_here):
        path = item.artifact.path
        with attempt(missing, "samples", path):
            found[path.name] = _found(item, samples, threads, cache)
    if not found:
        return None
    name, earlier = _place(folder, replace(samples, found=found), {item.artifact.path.name for item in written})
    save_samples(replace(samples, found={**earlier, **found}), folder / name)
    return name


def _found(item: ArtifactResult, samples: Samples, threads: int, cache: Cache) -> tuple[Findings, ...]:
    """What an artifact finds now, or found in an earlier run; nobody knows the GPU of an engine."""
    given = {"layout": to_json(samples.layout), "input": asdict(samples.input), "threads": threads}
    pixels = {"shape": samples.images.shape, "pixels": hashlib.sha256(samples.images.tobytes()).hexdigest()}
    key = (
        "" if item.engine or cache.folder is None else cache.key("samples", {"file": identity(item), **given, **pixels})
    )
    if earlier := kept(cache, key, Found):
        return earlier[0].images
    found = detect(item.backend.runner(item.artifact.path, threads), samples.batches, samples.layout)
    if key and unchanged((item,)):
        keep(cache, key, Found(found))
    return found


def _place(folder: Path, samples: Samples, names: set[str]) -> tuple[str, dict[str, tuple[Findings, ...]]]:
    """Name of the file for samples, and what others' artifacts found in the same images, which are in it already."""
    others = {name: each for name, each in manifests_in(folder).items() if name not in names}
    for name in sorted({companion(each, "samples") for each in others.values()} - {""}):
        with suppress(InputError):
            earlier = load_samples(folder / name)
            same = earlier.layout == samples.layout and earlier.input == samples.input
            if same and np.array_equal(earlier.images, samples.images):
                return name, {artifact: found for artifact, found in earlier.found.items() if artifact in others}
    first = min(samples.found)
    return free_name(folder, FILE, first, "samples", lambda each: each.get("artifact") in names), {}
