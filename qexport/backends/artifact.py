"""A file that was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Artifact:
    """A file that was written."""

    path: Path
    format: str
    precision: str
    sha256: str
    bytes: int


def describe_artifact(path: Path, format_name: str, precision: str) -> Artifact:
    """Hash and measure a written file, or the files of a folder in the order of their names."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    contents = [file.read_bytes() for file in files]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    return Artifact(path, format_name, precision, digest, sum(map(len, contents)))


SUFFIX = ".manifest.json"


SAMPLES = "samples.npz"


def manifest_path(artifact: Path) -> Path:
    """Where an artifact's manifest lies: beside it, also where it is a folder."""
    return artifact.with_name(artifact.name + SUFFIX)
