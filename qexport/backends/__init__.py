"""The seam to runtimes: what a backend offers, and how one is found by name.

Built-in backends register under the same entry-point group as third-party ones, `qexport.backends`; only the one
that is asked for is imported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qexport.errors import UsageError
from qexport.profile import RuntimeProfile

if TYPE_CHECKING:
    from qexport.plan import QuantPlan
    from qexport.program import Program

GROUP = "qexport.backends"


class Runner(Protocol):
    """A loaded artifact.

    One method, so that tests and other runtimes need nothing else.
    """

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch (n, channels, height, width) in 0..1; return the decoded output, boxes in pixels."""
        ...


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as read back from an artifact.

    Attributes:
        dtype: "int8", "float32", …
        scale, zero_point: as in `TensorQuant`; empty when the tensor is not quantised.
        integers: the values of a constant, in the program's layout, None for activations.
    """

    dtype: str
    scale: tuple[float, ...]
    zero_point: tuple[int, ...]
    integers: NDArray[np.integer] | None = None


@dataclass(frozen=True)
class StoredGraph:
    """What an artifact says about itself.

    Attributes:
        tensors: by plan name; only those the file still names.
        integer_macs, total_macs: multiply-accumulates by the kernels' tensor types, counted from the file.
        operators: kernel name → how often it occurs.
    """

    tensors: Mapping[str, StoredTensor]
    integer_macs: int
    total_macs: int
    operators: Mapping[str, int]

    @property
    def coverage(self) -> float:
        """Share of the multiply-accumulates that run in integer kernels, 0..1."""
        return self.integer_macs / self.total_macs if self.total_macs else 0.0


class Backend(Protocol):
    """One export format and the runtime that executes it."""

    name: str
    suffix: str
    profile: RuntimeProfile
    precisions: frozenset[str]

    def lower(self, program: Program, plan: QuantPlan | None, metadata: Mapping[str, Any], path: Path) -> None:
        """Write the artifact; with a plan obey it, without one write float. Raise `ConversionError` if it cannot."""
        ...

    def read(self, path: Path) -> StoredGraph:
        """Read an artifact's tensor types and scales back from the file."""
        ...

    def runner(self, path: Path, threads: int) -> Runner:
        """Load an artifact for execution on the CPU."""
        ...


@dataclass(frozen=True)
class Artifact:
    """A file that was written."""

    path: Path
    format: str
    precision: str
    sha256: str
    bytes: int


def describe_artifact(path: Path, format_name: str, precision: str) -> Artifact:
    """Hash and measure a written file."""
    content = path.read_bytes()
    return Artifact(path, format_name, precision, hashlib.sha256(content).hexdigest(), len(content))


def available_formats() -> tuple[str, ...]:
    """Names of all registered backends, sorted; none of them is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def find_backend(name: str) -> Backend:
    """Import and return the backend called `name`.

    Raises:
        UsageError: no such backend.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            backend: Backend = entry.load()()
            return backend
    raise UsageError(f"unknown format {name}", f"choose from {', '.join(available_formats())}")
