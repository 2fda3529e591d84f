"""A file that was written."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from qexport.errors import InputError
from qexport.system.given_files import read_bytes, special_kind
from qexport.system.nearby import or_nearby


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
    contents = [read_bytes(file) for file in files]
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    return Artifact(path, format_name, precision, digest, sum(map(len, contents)))


def check_artifact(path: Path, remedy: str = "") -> None:
    """Refuse what is neither a file nor a folder of files, before any runtime opens it.

    Args:
        remedy: in place of giving an artifact.

    Raises:
        InputError: it says what it is.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist", (remedy or GIVE) + or_nearby(path))
    for file in (path, *(path.iterdir() if path.is_dir() else ())):
        if kind := special_kind(file):
            raise InputError(f"{file} is {kind}, not a file", remedy or GIVE)


GIVE = "give an artifact that qexport wrote"
SUFFIX = ".manifest.json"


SAMPLES = "samples.npz"


def manifest_path(artifact: Path) -> Path:
    """Where an artifact's manifest lies: beside it, also where it is a folder."""
    return artifact.with_name(artifact.name + SUFFIX)
