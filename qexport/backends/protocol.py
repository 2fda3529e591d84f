"""The seam to runtimes: what a backend offers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qexport.backends.device_fit import DeviceFit
from qexport.backends.info import BackendInfo
from qexport.lowering.convolutions import ConvolutionStack
from qexport.lowering.request import Lowering
from qexport.lowering.stored import StoredGraph


class Runner(Protocol):
    """A loaded artifact."""

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch (n, channels, height, width) in 0..1.

        Returns:
            Every output as float32: the decoded one first, boxes in pixels, behind it the prototypes of masks (n, k,
            height, width), where there are any.
        """
        ...


@runtime_checkable
class EngineBuilder(Protocol):
    """A backend whose files are built into an engine, its `info.engine`, for one machine or device."""

    def write_script(self, folder: Path) -> None:
        """Write what builds the engine elsewhere."""
        ...

    def build(self, graph: Path, path: Path, metadata: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        """Build the engine; raise `EngineNotBuiltError` where that cannot be done here.

        Args:
            options: as in `Lowering`.
        """
        ...


@runtime_checkable
class DeviceChecker(Protocol):
    """A backend for a device that is not here: its files are checked against what the device documents."""

    def fit(self, file: Path, path: Path) -> DeviceFit:
        """Return what the device would make of a file that is going to be at `path`."""
        ...


@runtime_checkable
class LowersFloats(Protocol):
    """A backend whose runtime computes floats in less than FP32 of its own accord where the CPU has it.

    FP32 files are what others are compared with, so its `runner` and `read` keep those in FP32. Other
    files run as the runtime has them.
    """

    def by_default(self, path: Path, threads: int) -> tuple[str, Runner] | None:
        """The type that an FP32 file is computed in where nobody asks, and what runs it so; None where it is FP32."""
        ...


@runtime_checkable
class RunsConvolutions(Protocol):
    """A backend whose runtime can be timed without a model: what its arithmetic is worth on this machine."""

    def convolutions(self, stack: ConvolutionStack, threads: int) -> Mapping[str, Callable[[], object]]:
        """Type of arithmetic that the runtime really computes in here ("FP32", "BF16", "INT8", …) → one run in it."""
        ...


class Backend(Protocol):
    """One export format and the runtime that executes it.

    Its class is what a package registers as entry point of `qexport.backends`. Importing its module must not import the
    runtime.
    """

    info: BackendInfo

    def lower(self, request: Lowering, path: Path) -> None:
        """Write the artifact; with a plan obey it, without one write float.

        Equal requests give equal files.

        Raises:
            UsageError: a precision that `info` does not list.
            ConversionError: the converter refuses the program.
        """
        ...

    def read(self, path: Path) -> StoredGraph:
        """Read an artifact's tensor types and scales back from the file."""
        ...

    def runner(self, path: Path, threads: int) -> Runner:
        """Load an artifact for execution on the CPU."""
        ...
